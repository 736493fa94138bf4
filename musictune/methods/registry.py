"""Finding methods by their short names: whatever modules of this folder define."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil

import musictune.methods
from musictune.errors import InputError
from musictune.methods.base import TuningMethod


@functools.cache
def methods() -> dict[str, type[TuningMethod]]:
    """Every method in ``musictune.methods`` by its short name."""
    found = {}
    for info in pkgutil.iter_modules(musictune.methods.__path__, "musictune.methods."):
        if info.name == __name__:
            continue
        module = importlib.import_module(info.name)
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, TuningMethod) and not inspect.isabstract(kind):
                found[kind.name] = kind
    return found


def find(name: str) -> type[TuningMethod]:
    """The method called ``name``.

    Raises:
        InputError: there is none.
    """
    known = methods()
    if name not in known:
        raise InputError(f"method {name!r} is unknown; choose from {', '.join(sorted(known))}")
    return known[name]
