"""Attention of one new position to everything before it.

On a CPU: a product, softmax, a product. At these shapes two batched products read the cache about
as fast as memory allows, where torch's fused attention is slower and gives a row other bits in
another batch. On a GPU: one kernel over positions that the device holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor

from musictune.kernels import attention as kernels


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
    """

    def __init__(self, positions: Sequence[int], halves: int) -> None:
        self._groups: list[tuple[slice, int]] = []
        first = 0
        for position, group in groupby(positions):
            rows = len(list(group)) * halves
            self._groups.append((slice(first, first + rows), position))
            first += rows
        self._rows = first
        self._index: tuple[Tensor, Tensor] | None = None
        if len(self._groups) > 1:
            each = torch.tensor(positions).repeat_interleave(halves)
            self._index = torch.arange(first), each

    def attend(
        self, block: Reads, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Write a new key and value per row, and attend to all of the row's.

        Args:
            block: whose attention it is.
            query, key, value: ``(rows, heads, size)``.
            keys, values: the cache, ``(rows or more, heads, capacity, size)``.

        Returns:
            ``(rows, width)``.
        """
        self._append(keys, key)
        self._append(values, value)
        parts = [
            self._attend(block, query[rows], keys[rows], values[rows], position)
            for rows, position in self._groups
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _append(self, held: Tensor, new: Tensor) -> None:
        if self._index is None:
            held[: self._rows, :, self._groups[0][1]] = new
            return
        rows, positions = self._index
        held[rows, :, positions] = new.to(held.dtype)

    def _attend(
        self, block: Reads, query: Tensor, keys: Tensor, values: Tensor, position: int
    ) -> Tensor:
        stop, at = position + 1, None
        if block.relative:
            at = torch.full((len(query),), position, device=query.device)
        return attend(block, query, keys[:, :, :stop], values[:, :, :stop], positions=at)


class DevicePlaces:
    """As :class:`Places`, with positions that only the device knows: a CUDA graph can hold it.

    Args:
        positions: ``(rows,)`` int64.
        longest: places of the cache that are looked at; above every position.
    """

    def __init__(self, positions: Tensor, longest: int) -> None:
        self.positions, self.longest = positions, longest

    def attend(
        self, block: Reads, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """As :meth:`Places.attend`."""
        rows = len(query)
        keys, values = keys[:rows], values[:rows]
        if not (block.memories or block.relative):
            scale = 1.0 if block.folded else block.scale
            return kernels.attend(
                query, keys, values, self.positions, scale, self.longest, new=(key, value)
            ).flatten(1)
        order = torch.arange(self.longest, device=query.device)
        index = torch.arange(rows, device=query.device)
        keys[index, :, self.positions] = key.to(keys.dtype)
        values[index, :, self.positions] = value.to(values.dtype)
        mask = torch.zeros((rows, self.longest), dtype=query.dtype, device=query.device)
        mask = mask.masked_fill(order > self.positions[:, None], -torch.inf)[:, None, None]
        keys, values = keys[:, :, : self.longest], values[:, :, : self.longest]
        return attend(block, query, keys, values, mask, self.positions)


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
