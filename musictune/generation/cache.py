"""Keys and values of everything that was played, written in place."""

from __future__ import annotations

import copy

import torch


class Cache:
    """Static keys and values of one attention block per layer.

    A row is one sequence: a clip has one, or with guidance two that follow each other.

    Args:
        layers: attention blocks.
        rows: sequences at most.
        heads: of each block.
        capacity: positions at most.
        size: of a head.
        dtype, device: of what is kept.

    Attributes:
        keys, values: per layer ``(rows, heads, capacity, size)``.
        capacity: positions at most.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        heads: int,
        capacity: int,
        size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (rows, heads, capacity, size)

        self.capacity = capacity
        # What lies past a row's end is multiplied by nothing, so it must be a number.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]

    def rows(self, span: slice) -> Cache:
        """Some of the rows, seen in place."""
        part = copy.copy(self)
        part.keys, part.values = ([t[span] for t in held] for held in (self.keys, self.values))
        return part

    @staticmethod
    def nbytes(
        layers: int, rows: int, heads: int, capacity: int, size: int, dtype: torch.dtype
    ) -> int:
        """Bytes that such a cache takes when it is full."""
        return 2 * layers * rows * heads * capacity * size * dtype.itemsize

    def move(self, source: slice, target: slice, length: int) -> None:
        """Copy ``length`` positions of some rows over others."""
        for held in (*self.keys, *self.values):
            held[target, :, :length] = held[source, :, :length]
