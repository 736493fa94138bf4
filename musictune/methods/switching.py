"""Adapters that come and go on a loaded model within milliseconds, several at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musictune.data.concepts import Concept
from musictune.errors import InputError
from musictune.methods.adapter import (
    adapter_folder,
    attach_adapter,
    live_methods,
    method_names,
    parts_of,
    read_sparse,
)
from musictune.methods.composition import Depth, scales
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.pivotal import Pivotal
from musictune.methods.sparse_change import SparseChange
from musictune.models.base import MusicModel

_DENSE = 0.25  # share of changed weights from which a change is kept whole


@dataclass(eq=False)
class _Change:
    """The change of one parameter.

    Attributes:
        indices: int64 flat positions, or None for all of them.
        values: fp32 change there.
        original: the base's own bits there.
    """

    indices: Tensor | None
    values: Tensor
    original: Tensor

    def restore(self, flat: Tensor) -> None:
        if self.indices is None:
            flat.copy_(self.original)
        else:
            flat.scatter_(0, self.indices, self.original)

    def add(self, flat: Tensor, weight: float) -> None:
        """On top of whatever other adapters have written into ``flat``."""
        values = self.values if weight == 1.0 else self.values * weight
        if self.indices is None:
            flat.copy_(flat.float() + values)
        elif flat.dtype == torch.float32:
            flat.scatter_add_(0, self.indices, values)
        else:  # rounded once, not twice
            total = flat[self.indices].float() + values
            flat.scatter_(0, self.indices, total.to(flat.dtype))

    @property
    def nbytes(self) -> int:
        tensors = (self.values, self.original, self.indices)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


@dataclass(eq=False)
class _Added:
    """An adapter as it waits to be used."""

    folder: Path
    changes: dict[str, _Change]
    words: list[tuple[ConceptTokens, Tensor]] = field(default_factory=list)


class Adapters:
    """Several adapters on one model, any of them in use, in any mixture.

    ``add`` reads an adapter once; ``use`` then only writes the weights that adapters change into
    the model's own matrices, and back. Nothing is wrapped, so generation is as fast as the base's.
    What is kept is a few numbers per changed weight for sparse methods, a copy of each changed
    matrix for the others.

    The words of all adapters are known while any is in use. ``use()`` without any is the base, to
    the bit: it reads a concept's name as any unknown word.

    Args:
        model: a base; the weights it has now are what ``use()`` returns to. Change it in no other
            way meanwhile.
    """

    def __init__(self, model: MusicModel) -> None:
        self.model = model
        self._added: dict[str, _Added] = {}
        self._active: dict[str, float] = {}
        self._depth: Depth | None = None
        self._plain: tuple[Any, list[Concept]] = (model.tokenizer, model.concepts)
        self._worded = self._plain

    @property
    def names(self) -> list[str]:
        """Of all that were added."""
        return list(self._added)

    @property
    def active(self) -> dict[str, float]:
        """Those in use with their weights."""
        return dict(self._active)

    @property
    def nbytes(self) -> int:
        """Memory that waiting adapters take, besides the model."""
        changes = (c for added in self._added.values() for c in added.changes.values())
        return sum(change.nbytes for change in changes)

    def add(self, name: str, folder: Path | str) -> list[Concept]:
        """Read an adapter, so that it can be used under ``name``. What is in use stays in use.

        Args:
            name: any word that is not taken.
            folder: an adapter folder, or a run with one in it.

        Returns:
            The concepts that it teaches.

        Raises:
            InputError: the name is taken; no adapter, a damaged one, one for another base, one
                whose word another one teaches, or one that cannot be merged and so not switched.
        """
        if name in self._added:
            raise InputError(
                f"adapter name {name!r} is taken by {self._added[name].folder}; choose another"
            )
        folder = adapter_folder(Path(folder))
        if live := live_methods(folder):
            raise InputError(
                f"adapter {folder} cannot be switched: {live[0]} is no change of weights; "
                "load it alone with load_adapter"
            )
        before, depth = self._active, self._depth
        self._write({}, None)
        self.model.tokenizer, self.model.concepts = self._worded
        try:
            added = self._read(folder)
        finally:
            self.model.requires_grad_(False)
            self._write(before, depth)
        known = self._worded[1]
        self._worded = added[1]
        self._added[name] = added[0]
        self._write(before, depth)
        return [concept for concept in self._worded[1] if concept not in known]

    def use(self, weights: Mapping[str, float] | None = None, depth: Depth | None = None) -> None:
        """Use these adapters with these weights and no others; none for the base.

        Args:
            weights: by the names they were added under; their changes add up.
            depth: how much of them each layer keeps; all by default.

        Raises:
            InputError: an unknown name, or a weight that is no number; then nothing changes.
        """
        wanted = dict(weights or {})
        for name, weight in wanted.items():
            if name not in self._added:
                known = ", ".join(self._added) or "none"
                raise InputError(f"no adapter was added as {name!r}; known are: {known}")
            if not math.isfinite(weight):
                raise InputError(f"weight {weight} of adapter {name!r} must be a number, as 0.7")
        self._write(wanted, depth)

    @torch.no_grad()
    def _write(self, wanted: dict[str, float], depth: Depth | None) -> None:
        weights = self._weights()
        for name in self._active:
            for parameter, change in self._added[name].changes.items():
                change.restore(weights[parameter])
        factors = self._factors(depth)
        # In the order they were added, so that a mixture has one result only.
        for name in (name for name in self._added if name in wanted):
            added, weight = self._added[name], wanted[name]
            for parameter, change in added.changes.items():
                change.add(weights[parameter], weight * factors.get(parameter, 1.0))
        for name, added in self._added.items():
            for method, learned in added.words:
                method.weigh(learned, wanted.get(name, 1.0))
        self._active, self._depth = wanted, depth
        self.model.tokenizer, self.model.concepts = self._worded if wanted else self._plain

    def _weights(self) -> dict[str, Tensor]:
        """The changed parameters as they are now, seen flat; merging may have moved them."""
        names = {name for added in self._added.values() for name in added.changes}
        return {name: self.model.backbone.get_parameter(name).data.view(-1) for name in names}

    def _factors(self, depth: Depth | None) -> dict[str, float]:
        if depth is None:
            return {}
        return scales([name for name, _ in self.model.backbone.named_parameters()], depth)

    def _read(self, folder: Path) -> tuple[_Added, tuple[Any, list[Concept]]]:
        """The adapter and the vocabulary with its words; the backbone is left as it was."""
        model = self.model
        sparse = set(method_names(folder)) <= {Pivotal.name, ConceptTokens.name}
        backbone = dict(model.backbone.named_parameters())
        # Which weights move is known beforehand of sparse changes only.
        before = {} if sparse else {n: p.detach().clone() for n, p in backbone.items()}
        parts = parts_of(attach_adapter(model, folder))
        worded = (model.tokenizer, model.concepts)
        added = _Added(folder, {}, [(p, p.rows) for p in parts if isinstance(p, ConceptTokens)])
        for part in reversed(parts):
            if isinstance(part, ConceptTokens):
                continue
            if sparse:
                part.detach(model)
                added.changes = _chosen(model, read_sparse(folder))
            else:
                part.merge(model)
        if before:
            now = dict(model.backbone.named_parameters())
            added.changes = _moved(before, now)
            with torch.no_grad():
                for name, old in before.items():
                    now[name].copy_(old)
        return added, worded


def _chosen(model: MusicModel, changes: Mapping[str, SparseChange]) -> dict[str, _Change]:
    """Pivotal weights, on the model's device."""
    found = {}
    for name, change in changes.items():
        parameter = f"{name}.weight"
        flat = model.backbone.get_parameter(parameter).data.view(-1)
        indices = change.positions.to(flat.device)
        found[parameter] = _Change(indices, change.entries.to(flat.device), flat[indices])
    return found


@torch.no_grad()
def _moved(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> dict[str, _Change]:
    """What differs, as a list of weights where it is short and whole where it is long."""
    found = {}
    for name, old in before.items():
        flat, base = now[name].detach().view(-1), old.flatten()
        change = flat.float() - base.float()
        indices = change.nonzero()[:, 0]
        if not len(indices):
            continue
        if len(indices) > _DENSE * len(flat):
            found[name] = _Change(None, change, base.clone())
        else:
            found[name] = _Change(indices, change[indices], base[indices])
    return found
