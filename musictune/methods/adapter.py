"""Adapter folders: what was learned, for which base, with which words. Nothing is pickled.

``adapter.json`` names methods by their short names only: a file that travels with a model must not
be able to name code.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from musictune.data.concepts import Concept
from musictune.errors import InputError
from musictune.methods.base import TuningMethod
from musictune.methods.combined import Combined
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.registry import find
from musictune.methods.storage import load_json, save_json
from musictune.models.base import MusicModel

_SCHEMA = 1


def save_adapter(model: MusicModel, method: TuningMethod, folder: Path) -> None:
    """Write what ``method`` learned on ``model``: ``adapter.json`` and a folder per method."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = method.methods if isinstance(method, Combined) else [method]
    for part in parts:
        part.save(model, folder / part.name)
    concepts = [c for part in parts if isinstance(part, ConceptTokens) for c in part.concepts]
    content = {
        "schema": _SCHEMA,
        "musictune": _version(),
        "base": model.base,
        "fingerprint": fingerprint(model),
        "methods": [{"name": part.name, "folder": part.name} for part in parts],
        "concepts": [asdict(concept) for concept in concepts],
    }
    save_json(content, folder / "adapter.json")


def attach_adapter(model: MusicModel, folder: Path) -> TuningMethod:
    """Attach an adapter live: it can be trained on, disabled, merged.

    Args:
        model: an untouched base.
        folder: an adapter folder, or a run with one in it.

    Raises:
        InputError: no adapter, a damaged one, or one for another base.
    """
    folder = adapter_folder(folder)
    content = load_json(folder / "adapter.json")
    if content.get("schema") != _SCHEMA:
        raise InputError(
            f"adapter {folder} has schema {content.get('schema')!r}, this musictune reads {_SCHEMA}"
        )
    if content.get("fingerprint") != fingerprint(model):
        raise InputError(
            f"adapter {folder} was made for base {content.get('base')!r}, "
            f"whose weights differ from those of {model.base!r}; pass its own base"
        )
    parts = [(find(name), folder / place) for name, place in _parts(content, folder)]
    if len(parts) == 1:
        return parts[0][0].load(model, parts[0][1])
    return Combined.loaded(model, parts)


def load_adapter(model: MusicModel, folder: Path, weight: float = 1.0) -> list[Concept]:
    """Merge an adapter into ``model``. Several can follow each other, if their words differ.

    Args:
        model: changed in place.
        folder: an adapter folder, or a run with one in it.
        weight: 1 for all of it, 0.5 for half, 0 for the base.

    Returns:
        The concepts that the model has learned from it.

    Raises:
        InputError: no adapter, a damaged one, one for another base, or a weight that is no number.
    """
    if not math.isfinite(weight):
        raise InputError(f"adapter weight {weight} must be a number, such as 0.7")
    known = list(model.concepts)
    attach_adapter(model, folder).merge(model, weight)
    return [concept for concept in model.concepts if concept not in known]


def adapter_folder(folder: Path) -> Path:
    """``folder`` or the ``adapter`` folder in it.

    Raises:
        InputError: neither is an adapter.
    """
    for place in (folder, folder / "adapter"):
        if (place / "adapter.json").is_file():
            return place
    reason = "holds no adapter.json" if folder.is_dir() else "does not exist"
    raise InputError(f"adapter {folder} {reason}; give the folder that tune wrote")


def fingerprint(model: MusicModel) -> str:
    """A hash of the parts of a base that no method changes: text encoder and codec.

    Word embeddings are left out, as concepts add to them; values are rounded to bfloat16, so that a
    base loaded in half precision is the same base. Each method checks the shapes it needs itself.
    """
    encoder = model.text_encoder
    tables = {id(p) for p in encoder.get_input_embeddings().parameters()}
    digest = hashlib.sha256(str(getattr(model, "codec_key", "")).encode())
    for name, parameter in sorted(encoder.named_parameters()):
        if id(parameter) not in tables:
            digest.update(f"{name} {list(parameter.shape)}".encode())
            digest.update(_bytes(parameter))
    return digest.hexdigest()[:32]


def _bytes(parameter: nn.Parameter) -> bytes:
    rounded = parameter.detach().to(torch.bfloat16).cpu().contiguous()
    return rounded.view(torch.int16).numpy().tobytes()


def _parts(content: dict[str, object], folder: Path) -> list[tuple[str, str]]:
    """Checked (name, sub-folder) pairs; a sub-folder cannot lead out of the adapter."""
    try:
        parts = [(str(m["name"]), str(m["folder"])) for m in content["methods"]]  # type: ignore
    except (KeyError, TypeError) as error:
        raise InputError(f"adapter {folder} is damaged: adapter.json names no methods") from error
    if not parts or any(Path(place).name != place or place == ".." for _, place in parts):
        raise InputError(f"adapter {folder} is damaged: adapter.json has bad method folders")
    return parts


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("musictune")
    except PackageNotFoundError:  # run from a source tree
        return "0"
