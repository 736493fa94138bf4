"""Changes of a matrix that are added to its products, instead of to the matrix.

Each is far cheaper to read than the matrix itself, and gives a row the same bits whatever other
rows there are. Sums are fp32.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from musictune.generation.packing import product
from musictune.methods.sparse_change import SparseChange


@dataclass(frozen=True, eq=False)
class Part:
    """The change of one of the layers whose outputs follow each other in a product.

    Attributes:
        first: the first of its outputs among all of the product.
        shape: ``(out, in)`` of the layer.
        change: single weights, rows or columns, or two factors ``(rank, in)`` and ``(out, rank)``.
        scale: multiplies it.
    """

    first: int
    shape: tuple[int, int]
    change: SparseChange | tuple[Tensor, Tensor]
    scale: float = 1.0


class Delta(Protocol):
    """What one adapter adds to one product."""

    def add(self, x: Tensor, made: Tensor) -> None:
        """Add to ``made`` ``(rows, out)``, in place, what it makes of ``x`` ``(rows, in)``."""

    @property
    def nbytes(self) -> int: ...


def deltas(parts: Sequence[Part], outputs: int, device: torch.device) -> list[Delta]:
    """What is added to a product for the changes of its layers.

    Args:
        parts: at most one per layer.
        outputs: of the product.
        device: of the states.
    """
    found: list[Delta] = []
    single, low, columns = [], [], []
    for part in parts:
        change = part.change
        if isinstance(change, tuple):
            low.append((part, *change))
        elif change.chosen.kind == "elements":
            single.append((part, change))
        elif change.chosen.kind == "rows":
            found.append(Rows(part, change, device))
        else:
            columns.append((part, change))
    if single:
        found.append(Elements(single, outputs, device))
    if low:
        found.append(LowRank(low, device))
    for group in _alike(columns):
        found.append(Columns(group, device))
    return found


class Elements:
    """Single weights: one product with a matrix in compressed rows.

    Of gathering inputs, bags of embeddings and compressed rows these are the fastest for 1 to 16
    rows, with 32-bit indices a fifth more.
    """

    def __init__(
        self, parts: Sequence[tuple[Part, SparseChange]], outputs: int, device: torch.device
    ) -> None:
        _quiet_once()
        width = parts[0][0].shape[1]
        ordered = sorted(parts, key=lambda pair: pair[0].first)
        rows = torch.cat([c.chosen.indices // width + part.first for part, c in ordered])
        columns = torch.cat([c.chosen.indices % width for _, c in ordered])
        values = torch.cat([c.entries * part.scale for part, c in ordered])
        starts = torch.searchsorted(rows, torch.arange(outputs + 1))
        self._matrix = torch.sparse_csr_tensor(
            starts.int(), columns.int(), values, (outputs, width), check_invariants=False
        ).to(device)
        self.nbytes = 4 * (2 * len(values) + outputs + 1)

    def add(self, x: Tensor, made: Tensor) -> None:
        made += (self._matrix @ x.t()).t()


class Rows:
    """Whole outputs."""

    def __init__(self, part: Part, change: SparseChange, device: torch.device) -> None:
        self._product = product(change.values.to(device) * part.scale, None, "float32")
        self._outputs = (change.chosen.indices + part.first).to(device)
        self.nbytes = 4 * change.values.numel()

    def add(self, x: Tensor, made: Tensor) -> None:
        made.index_add_(1, self._outputs, self._product(x))


class Columns:
    """Whole inputs: what is read of them, of layers that chose the same ones."""

    def __init__(self, parts: Sequence[tuple[Part, SparseChange]], device: torch.device) -> None:
        values = torch.cat([change.values * part.scale for part, change in parts])
        self._product = product(values.to(device), None, "float32")
        self._inputs = parts[0][1].chosen.indices.to(device)
        first = parts[0][0].first
        self._outputs = slice(first, first + len(values))
        self.nbytes = 4 * values.numel()

    def add(self, x: Tensor, made: Tensor) -> None:
        made[:, self._outputs] += self._product(x.index_select(1, self._inputs))


class LowRank:
    """Two factors per layer; the first ones of all layers are one product."""

    def __init__(self, parts: Sequence[tuple[Part, Tensor, Tensor]], device: torch.device) -> None:
        self._down = product(
            torch.cat([a.to(device).float() for _, a, _ in parts]), None, "float32"
        )
        self._up = []
        rank = 0
        for part, a, b in parts:
            up = product(b.to(device).float() * part.scale, None, "float32")
            outputs = slice(part.first, part.first + len(b))
            self._up.append((slice(rank, rank + len(a)), outputs, up))
            rank += len(a)
        self.nbytes = sum(4 * (a.numel() + b.numel()) for _, a, b in parts)

    def add(self, x: Tensor, made: Tensor) -> None:
        low = self._down(x)
        for inner, outputs, up in self._up:
            made[:, outputs] += up(low[:, inner].contiguous())


def _alike(
    parts: Sequence[tuple[Part, SparseChange]],
) -> list[list[tuple[Part, SparseChange]]]:
    """Layers next to each other that chose the same columns, together."""
    groups: list[list[tuple[Part, SparseChange]]] = []
    for part, change in sorted(parts, key=lambda pair: pair[0].first):
        if groups:
            last, other = groups[-1][-1]
            follows = last.first + last.shape[0] == part.first
            if follows and torch.equal(other.chosen.indices, change.chosen.indices):
                groups[-1].append((part, change))
                continue
        groups.append([(part, change)])
    return groups


@functools.cache
def _quiet_once() -> None:
    """torch says once per process that its compressed rows are in beta; say it to nobody."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)
