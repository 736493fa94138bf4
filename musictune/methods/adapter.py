"""Adapter folders: what was learned, for which base, with which words. Nothing is pickled.

``adapter.json`` names methods by their short names only: a file that travels with a model must not
be able to name code.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from musictune.data.concepts import Concept
from musictune.errors import InputError
from musictune.methods.base import TuningMethod
from musictune.methods.combined import Combined
from musictune.methods.composition import Depth, concept_names, rescale, same_name
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.identity import identity_behind, identity_of
from musictune.methods.pivotal import Pivotal
from musictune.methods.registry import find
from musictune.methods.sparse_change import SparseChange, read_changes
from musictune.methods.storage import load_json, save_json
from musictune.models.base import TunableModel

_SCHEMA = 1
_TAUGHT = "_taught_by"  # on a model: which adapter each word came from


def save_adapter(model: TunableModel, method: TuningMethod, folder: Path) -> None:
    """Write what ``method`` learned on ``model``: ``adapter.json`` and a folder per method."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = identity_behind(model, method)
    parts = parts_of(method)
    for part in parts:
        part.save(model, folder / part.name)
    concepts = [c for part in parts if isinstance(part, ConceptTokens) for c in part.concepts]
    content = {
        "schema": _SCHEMA,
        "musictune": _version(),
        "base": model.base,
        "fingerprint": identity.fingerprint,
        "identity": identity.plain(),
        "methods": [{"name": part.name, "folder": part.name} for part in parts],
        "concepts": [asdict(concept) for concept in concepts],
    }
    save_json(content, folder / "adapter.json")


def attach_adapter(model: TunableModel, folder: Path) -> TuningMethod:
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
    _check_base(model, content, folder)
    _check_words(model, folder)
    parts = [(find(name), folder / place) for name, place in _parts(content, folder)]
    if len(parts) == 1:
        method = parts[0][0].load(model, parts[0][1])
    else:
        method = Combined.loaded(model, parts)
    taught = getattr(model, _TAUGHT, {})
    setattr(model, _TAUGHT, taught | dict.fromkeys(concept_names(folder), folder))
    return method


def load_adapter(
    model: TunableModel, folder: Path, weight: float = 1.0, depth: Depth | None = None
) -> list[Concept]:
    """Merge an adapter into ``model``. Several can follow each other, if their words differ.

    A method that cannot be merged stays attached, with its effect scaled by ``weight``; load such
    adapters last.

    Args:
        model: changed in place.
        folder: an adapter folder, or a run with one in it.
        weight: 1 for all of it, 0.5 for half, 0 for the base.
        depth: how much of it each layer keeps, besides ``weight``; all by default.

    Returns:
        The concepts that the model has learned from it.

    Raises:
        InputError: no adapter, a damaged one, one for another base, a word that another adapter
            taught already, a weight that is no number, or ``depth`` for what cannot be merged.
    """
    if not math.isfinite(weight):
        raise InputError(f"adapter weight {weight} must be a number, such as 0.7")
    folder = adapter_folder(folder)
    live = live_methods(folder)
    if live and depth is not None:
        raise InputError(
            f"adapter {folder} cannot be scaled by depth: {live[0]} is not a change of weights; "
            "leave the depth out"
        )
    known = list(model.concepts)
    backbone = dict(model.backbone.named_parameters())
    before = {n: p.detach().clone() for n, p in backbone.items()} if depth else {}
    for part in reversed(parts_of(attach_adapter(model, folder))):
        if not part.mergeable:
            part.scale = weight  # type: ignore[attr-defined]
        elif depth is None or isinstance(part, ConceptTokens):
            part.merge(model, weight)
        else:
            part.merge(model)
    if depth is not None:
        rescale(model.backbone, before, weight, depth)
    model.requires_grad_(False)
    return [concept for concept in model.concepts if concept not in known]


def parts_of(method: TuningMethod) -> list[TuningMethod]:
    """The methods that ``method`` combines, or itself."""
    return list(method.methods) if isinstance(method, Combined) else [method]


def live_methods(folder: Path) -> list[str]:
    """The names of those methods of an adapter that cannot be merged.

    Raises:
        InputError: as :func:`adapter_folder`, or the adapter is damaged.
    """
    return [name for name in method_names(folder) if not find(name).mergeable]


def method_names(folder: Path) -> list[str]:
    """The short names of an adapter's methods.

    Raises:
        InputError: as :func:`live_methods`.
    """
    folder = adapter_folder(folder)
    return [name for name, _ in _parts(load_json(folder / "adapter.json"), folder)]


def is_sparse(folder: Path) -> bool:
    """Whether an adapter holds pivotal weights.

    Raises:
        InputError: there is no adapter, or a damaged one.
    """
    return Pivotal.name in method_names(folder)


def read_sparse(folder: Path) -> dict[str, SparseChange]:
    """What a pivotal adapter changes, by the names of matrices in the backbone; no model is needed.

    Args:
        folder: an adapter folder, or a run with one in it.

    Raises:
        InputError: there is no adapter, a damaged one, or one without pivotal weights.
    """
    folder = adapter_folder(folder)
    if not is_sparse(folder):
        raise InputError(
            f"adapter {folder} has no pivotal weights (it is {' + '.join(method_names(folder))}); "
            "give a run of --method pivotal"
        )
    part = folder / Pivotal.name
    return read_changes(part, load_json(part / "pivotal.json"))


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


def fingerprint(model: TunableModel) -> str:
    """A hash of the parts of a base that no method changes: text encoder and codec.

    Word embeddings are left out. :func:`musictune.methods.identity.identity_of` says more.
    """
    return identity_of(model).fingerprint


def _check_base(model: TunableModel, content: dict[str, Any], folder: Path) -> None:
    ours, saved = identity_of(model), content.get("identity")
    reason = None
    if isinstance(saved, dict):
        reason = ours.difference(saved)
    # Adapters of before had only this.
    if reason is None and content.get("fingerprint") != ours.fingerprint:
        reason = "weights differ from text encoder on"
    if reason is None:
        return
    size = f" ({_count(saved.get('weights'))})" if isinstance(saved, dict) else ""
    raise InputError(
        f"adapter {folder} was made for base {content.get('base')!r}{size}, this is "
        f"{model.base!r} ({_count(ours.weights)}): {reason}; pass its own base"
    )


def _check_words(model: TunableModel, folder: Path) -> None:
    known = {concept.name for concept in model.concepts}
    for name in concept_names(folder):
        if name in known:
            teacher = getattr(model, _TAUGHT, {}).get(name)
            if teacher is None:
                raise InputError(
                    f"adapter {folder} teaches <{name}>, which base {model.base!r} knows already; "
                    "use the base that it was made for"
                )
            raise InputError(same_name(name, teacher, folder))


def _count(weights: object) -> str:
    """A size that people know a base by."""
    if not isinstance(weights, int):
        return "of unknown size"
    for unit, name in ((10**9, "billion"), (10**6, "million")):
        if weights >= unit:
            return f"{weights / unit:.3g} {name} weights in its backbone"
    return f"{weights} weights in its backbone"


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
