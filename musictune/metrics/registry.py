"""Finding metrics: whatever modules of this folder define."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from typing import TypeVar

import musictune.metrics
from musictune.metrics.base import ClipMetric, SetMetric

Kind = TypeVar("Kind")


@functools.cache
def set_metrics() -> tuple[SetMetric, ...]:
    """One of each metric of whole sets, by class name."""
    return tuple(kind() for kind in _found(SetMetric))  # type: ignore[type-abstract]


@functools.cache
def clip_metrics() -> dict[str, ClipMetric]:
    """One of each metric of single clips, by class name."""
    return {
        kind.__name__: kind()
        for kind in _found(ClipMetric)  # type: ignore[type-abstract]
    }


def _found(base: type[Kind]) -> list[type[Kind]]:
    found = {}
    for info in pkgutil.iter_modules(musictune.metrics.__path__, "musictune.metrics."):
        if info.ispkg or info.name == __name__:
            continue
        module = importlib.import_module(info.name)
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, base) and not inspect.isabstract(kind):
                found[name] = kind
    return [found[name] for name in sorted(found)]
