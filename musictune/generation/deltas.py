"""Changes of a matrix that are added to its products, instead of to the matrix.

Each is far cheaper to read than the matrix itself, and gives a clip the same bits whatever other
clips there are. Sums are fp32.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.methods.sparse_change import SparseChange

_ALIGNED = 16
"""Outputs come in multiples of this: where rows start at other places in memory, the first clip's
sums would differ in their last bit from those of the others."""


_SMALL = 2**18
"""Bytes of a delta up to which calling it costs more than reading it, so that the deltas of
different clips had better be one: about 20 microseconds."""


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

    nbytes: int

    def add(self, x: Tensor, made: Tensor) -> None:
        """Add to ``made`` what it makes of ``x``, in place.

        Args:
            x: ``(clips, rows, in)`` fp32.
            made: ``(clips, rows, out)`` fp32.
        """


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
        elif change.chosen.kind == "elements" or 8 * change.values.numel() <= _SMALL:
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


def together(each: Sequence[Delta]) -> Delta | None:
    """One delta for clips that have different ones, a clip each; None if each is better alone.

    A clip gets the same bits from it.
    """
    if max(delta.nbytes for delta in each) > _SMALL:
        return None
    elements = [delta for delta in each if isinstance(delta, Elements)]
    if len(elements) == len(each):
        return Elements.beside(elements)
    low = [delta for delta in each if isinstance(delta, LowRank)]
    if len(low) == len(each) and len({delta.layout for delta in low}) == 1:
        return LowRank.beside(low)
    return None


class Elements:
    """Single weights, or few of any kind: one product with a matrix in compressed rows.

    Of gathering inputs, bags of embeddings and compressed rows these are the fastest for 1 to 16
    rows, with 32-bit indices a fifth more.
    """

    def __init__(
        self, parts: Sequence[tuple[Part, SparseChange]], outputs: int, device: torch.device
    ) -> None:
        _quiet_once()
        width = parts[0][0].shape[1]
        ordered = sorted(parts, key=lambda pair: pair[0].first)
        rows = torch.cat([c.positions // width + part.first for part, c in ordered])
        columns = torch.cat([c.positions % width for _, c in ordered])
        values = torch.cat([c.entries * part.scale for part, c in ordered])
        starts = torch.searchsorted(rows, torch.arange(outputs + 1))
        self._set(starts.int().to(device), columns.int().to(device), values.to(device), width)

    def _set(self, starts: Tensor, columns: Tensor, values: Tensor, width: int) -> None:
        self._parts, shape = (starts, columns, values), (len(starts) - 1, width)
        self._matrix = torch.sparse_csr_tensor(*self._parts, shape, check_invariants=False)
        self.nbytes = 4 * sum(len(part) for part in self._parts)

    @classmethod
    def beside(cls, each: Sequence[Elements]) -> Elements:
        """The matrices along the diagonal of one."""
        made = cls.__new__(cls)
        width = each[0]._matrix.shape[1]
        starts, columns, values = zip(*(delta._parts for delta in each), strict=True)
        before = itertools.accumulate((len(part) for part in values), initial=0)
        begin = [part[:-1] + first for part, first in zip(starts, before, strict=False)]
        end = starts[-1].new_tensor([sum(len(part) for part in values)])
        moved = [part + index * width for index, part in enumerate(columns)]
        made._set(torch.cat([*begin, end]), torch.cat(moved), torch.cat(values), width * len(each))
        return made

    def add(self, x: Tensor, made: Tensor) -> None:
        clips, rows, width = x.shape
        if clips * width == self._matrix.shape[1]:
            found = self._matrix @ x.transpose(1, 2).reshape(clips * width, rows)
            made += found.view(clips, -1, rows).transpose(1, 2)
        else:
            made += (self._matrix @ x.flatten(0, 1).t()).t().view_as(made)


class Rows:
    """Whole outputs."""

    def __init__(self, part: Part, change: SparseChange, device: torch.device) -> None:
        self._product = _Dense(change.values * part.scale, device)
        self._outputs = (change.chosen.indices + part.first).to(device)
        self.nbytes = 4 * change.values.numel()

    def add(self, x: Tensor, made: Tensor) -> None:
        made.index_add_(2, self._outputs, self._product(x))


class Columns:
    """Whole inputs: what is read of them, of layers that chose the same ones."""

    def __init__(self, parts: Sequence[tuple[Part, SparseChange]], device: torch.device) -> None:
        values = torch.cat([change.values * part.scale for part, change in parts])
        self._product = _Dense(values, device)
        self._inputs = parts[0][1].chosen.indices.to(device)
        first = parts[0][0].first
        self._outputs = slice(first, first + len(values))
        self.nbytes = 4 * values.numel()

    def add(self, x: Tensor, made: Tensor) -> None:
        made[..., self._outputs] += self._product(x.index_select(2, self._inputs))


class LowRank:
    """Two factors per layer; the first ones of all layers are one product."""

    def __init__(self, parts: Sequence[tuple[Part, Tensor, Tensor]], device: torch.device) -> None:
        self._down = _Dense(torch.cat([a.float() for _, a, _ in parts]), device)
        self._up: list[tuple[slice, slice, _Dense]] = []
        rank = 0
        for part, a, b in parts:
            outputs = slice(part.first, part.first + len(b))
            up = _Dense(b.float() * part.scale, device)
            self._up.append((slice(rank, rank + len(a)), outputs, up))
            rank += len(a)
        self.nbytes = sum(4 * (a.numel() + b.numel()) for _, a, b in parts)

    @property
    def layout(self) -> tuple[tuple[int, int, int], ...]:
        """Ranks and outputs of the layers."""
        return tuple((i.stop, o.start, o.stop) for i, o, _ in self._up)

    @classmethod
    def beside(cls, each: Sequence[LowRank]) -> LowRank:
        """With the factors of all, which have one layout."""
        made = cls.__new__(cls)
        made._down = _Dense.beside([delta._down for delta in each])
        ups = zip(*(delta._up for delta in each), strict=True)
        made._up = [(*up[0][:2], _Dense.beside([dense for *_, dense in up])) for up in ups]
        made.nbytes = sum(delta.nbytes for delta in each)
        return made

    def add(self, x: Tensor, made: Tensor) -> None:
        low = self._down(x)
        for inner, outputs, up in self._up:
            made[..., outputs] += up(low[..., inner])


class _Dense:
    """A product with an ``(out, in)`` matrix, apart for each clip; or with one for each."""

    def __init__(self, weight: Tensor, device: torch.device) -> None:
        self._out = len(weight)
        whole = F.pad(weight, (0, 0, 0, -len(weight) % _ALIGNED))
        self._weight = whole.t().contiguous().to(device)[None]

    @classmethod
    def beside(cls, each: Sequence[_Dense]) -> _Dense:
        """The matrices of all, which have one shape."""
        made = cls.__new__(cls)
        made._out, made._weight = each[0]._out, torch.cat([dense._weight for dense in each])
        return made

    def __call__(self, x: Tensor) -> Tensor:
        """``(clips, rows, in)`` to ``(clips, rows, out)``."""
        return torch.bmm(x, self._weight.expand(len(x), -1, -1))[..., : self._out]


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
