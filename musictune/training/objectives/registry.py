"""Finding objectives by their short names: whatever modules of this folder define."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil

import musictune.training.objectives
from musictune.errors import InputError
from musictune.training.objectives.base import Objective


@functools.cache
def objectives() -> dict[str, type[Objective]]:
    """Every objective in ``musictune.training.objectives`` by its short name."""
    package = musictune.training.objectives
    found: dict[str, type[Objective]] = {}
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if info.name == __name__:
            continue
        module = importlib.import_module(info.name)
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if (
                issubclass(kind, Objective)
                and not inspect.isabstract(kind)
                and "name" in vars(kind)
            ):
                found[kind.name] = kind
    return found


def find_objective(name: str) -> type[Objective]:
    """The objective called ``name``.

    Raises:
        InputError: there is none.
    """
    known = objectives()
    if name not in known:
        raise InputError(f"objective {name!r} is unknown; choose from {', '.join(sorted(known))}")
    return known[name]
