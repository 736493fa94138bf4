"""Which family of embedders a name stands for."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import pkgutil
from pathlib import Path

import musictune.metrics.embedders
from musictune.errors import InputError
from musictune.metrics.embedders.base import Embedder
from musictune.metrics.embedders.folders import model_folder


@functools.cache
def embedders() -> dict[str, type[Embedder]]:
    """Every family in this folder by its short name, such as ``clap`` for ``ClapEmbedder``."""
    package = musictune.metrics.embedders
    found = {}
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        module = importlib.import_module(info.name)
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, Embedder) and not inspect.isabstract(kind):
                found[name.removesuffix("Embedder").lower()] = kind
    return found


def load_embedder(spec: str | Path | None = None) -> Embedder:
    """Load an embedder by what a person types.

    Args:
        spec: nothing for the bundled CLAP; a folder or Hub id, whose ``config.json`` tells the
            family; a family (``encodec``) for its usual model; or both (``vggish:weights.pth``),
            which a file needs as it does not tell.

    Raises:
        InputError: it is not there, of no known family, or damaged.
    """
    families = embedders()
    if spec is None:
        return families["clap"].load()
    family, colon, rest = str(spec).partition(":")
    if family in families and not Path(spec).exists():
        if not colon and not families[family].default:
            raise InputError(
                f"embedder {family} needs its weights; write {family}:FILE or {family}:FOLDER"
            )
        return families[family].load(rest if colon else families[family].default)
    folder = model_folder(spec)
    kind = _model_type(folder, str(spec))
    for known in families.values():
        if kind in known.model_types:
            return known.load(spec)
    types = sorted(t for known in families.values() for t in known.model_types)
    raise InputError(
        f"embedder {spec} is a {kind} model; use one of {', '.join(types)}, or the name of a "
        f"family with its weights ({', '.join(f'{name}:FILE' for name in sorted(families))})"
    )


def _model_type(folder: Path, name: str) -> str:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str(config["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"embedder {name} has no usable config.json; use a transformers folder or Hub id"
        ) from error
