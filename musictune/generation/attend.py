"""Attention of one new position to everything before it, on a CPU: a product, softmax, a product.

At these shapes two batched products read the cache about as fast as memory allows, where torch's
fused attention is slower and gives a row other bits in another batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor


class Reads(Protocol):
    """An attention block as it is read here."""

    module: Any
    memories: list[Any]
    relative: list[Any]
    scale: float
    folded: bool


class Places:
    """Where in the cache the new position of each row is.

    Rows at different positions are attended to group by group, each over its own length: nothing
    past a row's end is read, and its sums are those it would have alone.

    Args:
        positions: of each clip.
        halves: rows of a clip.
        shut: ``(rows, positions)``, True for positions that a row must not hear; None for none.
    """

    def __init__(self, positions: Sequence[int], halves: int, shut: Tensor | None = None) -> None:
        self._groups: list[tuple[slice, int]] = []
        first = 0
        for position, group in groupby(positions):
            rows = len(list(group)) * halves
            self._groups.append((slice(first, first + rows), position))
            first += rows
        self._rows = first
        self._shut = shut
        self._index: tuple[Tensor, Tensor] | None = None
        if len(self._groups) > 1:
            each = torch.tensor(positions).repeat_interleave(halves)
            self._index = torch.arange(first), each

    def append(self, held: Tensor, new: Tensor) -> None:
        """Write ``new`` ``(rows, heads, size)`` into ``held`` ``(rows, heads, capacity, size)``."""
        if self._index is None:
            held[: self._rows, :, self._groups[0][1]] = new
            return
        rows, positions = self._index
        held[rows, :, positions] = new.to(held.dtype)

    def attend(self, block: Reads, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """``(rows, heads, size)`` to ``(rows, width)``."""
        parts = [
            self._attend(block, query[rows], keys[rows], values[rows], rows, position)
            for rows, position in self._groups
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend(
        self, block: Reads, query: Tensor, keys: Tensor, values: Tensor, rows: slice, position: int
    ) -> Tensor:
        stop = position + 1
        mask = at = None
        if self._shut is not None:
            mask = torch.zeros((len(query), 1, 1, stop), device=query.device)
            mask.masked_fill_(self._shut[rows, None, None, :stop], -torch.inf)
        if block.relative:
            at = torch.full((len(query),), position, device=query.device)
        return attend(block, query, keys[:, :, :stop], values[:, :, :stop], mask, at)


def attend(
    block: Reads,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    said: Tensor | None = None,
) -> Tensor:
    """Softmax attention of one query per row.

    Args:
        block: whose relative terms and memories take part.
        query: ``(rows, heads, size)``, scaled if the block folds its scale.
        keys, values: ``(rows, heads, positions, size)``.
        mask: ``(rows, 1, 1, positions)``, added to the scores.
        positions: ``(rows,)`` of the queries, for relative terms.
        said: ``(rows, 1, 1, 1)``, whether a row has a text, for memories; None if it need not.

    Returns:
        ``(rows, width)``.
    """
    rows, heads, size = query.shape
    asked = query.reshape(rows * heads, 1, size).to(keys.dtype)
    scores = torch.bmm(asked, keys.flatten(0, 1).transpose(1, 2))
    if not block.folded:
        scores = scores * block.scale
    if mask is not None or block.relative:
        scores = scores.view(rows, heads, 1, -1)
        if mask is not None:
            scores = scores + mask
        for term in block.relative:
            scores = scores + term.bias(query[:, :, None], positions, keys.shape[2])
        scores = scores.flatten(0, 1)
    shares = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
    found = torch.bmm(shares, values.flatten(0, 1))
    for memory in block.memories:
        if memory.scale != 0:
            answer = memory.answer(block.module, query[:, :, None], said)
            found = found + answer.reshape(found.shape)
    return found.view(rows, heads * size)
