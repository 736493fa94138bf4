"""The plain-torch side of :mod:`musictune.kernels.relative_attention`: queries block by block.

Scores of one block are held at a time, and made again for the backward pass, so that extra memory
grows with the length alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from musictune.kernels.relative_attention import Shape

_BLOCK_ELEMENTS = 1 << 18
"""Scores of a block, where at least :data:`_LEAST_ROWS` queries fit."""

_LEAST_ROWS = 16


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embeddings: Tensor | None,
    line: Tensor | None,
    shape: Shape,
) -> tuple[Tensor, Tensor]:
    """The output, and the log of each query's sum of exponentials ``(batch, heads, queries)``."""
    output = torch.empty_like(query)
    blocks = _Blocks(query, key, embeddings, line, shape)
    value = blocks.exactly(value)
    total = torch.empty(query.shape[:3], dtype=value.dtype, device=query.device)
    for block in blocks:
        scores = block.scores()
        highest = scores.amax(-1, keepdim=True)
        weights = scores.sub_(highest).exp_()
        mass = weights.sum(-1, keepdim=True)
        output[:, :, block.rows] = (weights @ value[:, :, block.keys] / mass).to(output.dtype)
        total[:, :, block.rows] = (mass.log_() + highest)[..., 0]
    return output, total


def backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embeddings: Tensor | None,
    line: Tensor | None,
    output: Tensor,
    total: Tensor,
    gradient: Tensor,
    shape: Shape,
) -> tuple[Tensor | None, ...]:
    """Gradients of the first five arguments."""
    blocks = _Blocks(query, key, embeddings, line, shape)
    value, output, gradient = (blocks.exactly(part) for part in (value, output, gradient))
    dkey, dvalue = torch.zeros_like(value), torch.zeros_like(value)
    dquery = torch.empty_like(query)
    for block in blocks:
        weights = block.scores().sub_(total[:, :, block.rows, None]).exp_()
        given = gradient[:, :, block.rows]
        dvalue[:, :, block.keys] += weights.transpose(2, 3) @ given
        dscores = given @ value[:, :, block.keys].transpose(2, 3)
        dscores -= (given * output[:, :, block.rows]).sum(-1, keepdim=True)
        dscores *= weights
        dquery[:, :, block.rows] = block.dquery(dscores).to(dquery.dtype)
        dkey[:, :, block.keys] += dscores.transpose(2, 3) @ block.query
    tables = [
        None if table is None else found.to(table.dtype)
        for table, found in ((embeddings, blocks.dembeddings), (line, blocks.dline))
    ]
    return dquery, dkey.to(key.dtype), dvalue.to(key.dtype), *tables


class _Blocks:
    """Blocks of queries, and the sums of the tables' gradients over them."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        embeddings: Tensor | None,
        line: Tensor | None,
        shape: Shape,
    ) -> None:
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        self.query, self.key = query, self.exactly(key)
        self.embeddings = None if embeddings is None else self.exactly(embeddings)
        self.line = None if line is None else self.exactly(line)
        self.shape = shape
        self.reach = shape.reach(embeddings, line)
        empty = query.new_zeros(0, dtype=self.dtype)
        self.dembeddings = (
            empty if embeddings is None else torch.zeros_like(self.exactly(embeddings))
        )
        self.dline = empty if line is None else torch.zeros_like(self.exactly(line))

    def exactly(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype)

    def __iter__(self) -> Iterator[_Block]:
        batch, heads, queries, _ = self.query.shape
        across = batch * heads * self.key.shape[2]
        rows = max(_LEAST_ROWS, min(queries, _BLOCK_ELEMENTS // max(across, 1)))
        for start in range(0, queries, rows):
            yield _Block(self, start, min(start + rows, queries))


class _Block:
    """Scores of a block of queries against all keys that any of them hears.

    Keys fall in three ranges: those so far back that all terms of position are saturated, the near
    ones, and those so far ahead (without ``causal``) that they are saturated again.

    Attributes:
        rows, keys: the queries and the keys, as slices.
        query: the queries times ``scale``.
    """

    def __init__(self, blocks: _Blocks, start: int, stop: int) -> None:
        shape, keys = blocks.shape, blocks.key.shape[2]
        self._of, self._shape = blocks, shape
        self._first = start + keys - blocks.query.shape[2]  # position of the first query
        self._count = stop - start
        last = self._first + self._count - 1
        ahead = 0 if shape.causal else (shape.window or keys) - 1
        low = max(0, self._first - shape.window + 1) if shape.window else 0
        self.rows = slice(start, stop)
        self.keys = slice(low, min(keys, last + ahead + 1))
        self._past = max(0, self._first - blocks.reach + 1 - low)
        later = max(self._past, last + shape.low - low)
        width = self.keys.stop - low
        self._later = width if shape.causal else min(width, later)
        self.query = blocks.exactly(blocks.query[:, :, self.rows]) * shape.scale

    def scores(self) -> Tensor:
        """``(batch, heads, rows, keys)``, -inf where nothing is heard."""
        of, past, later = self._of, self._past, self._later
        scores = self.query @ of.key[:, :, self.keys].transpose(2, 3)
        if of.embeddings is not None and past:
            scores[..., :past] += (self.query * of.embeddings[:, None, -1]).sum(-1, keepdim=True)
        if of.line is not None:
            scores[..., :past] += of.line[:, -1, None, None]
            scores[..., later:] += of.line[:, 0, None, None]
        if (of.embeddings is not None or of.line is not None) and later > past:
            scores[..., past:later] += self._near()
        if self._shape.causal or self._shape.window:
            scores.masked_fill_(self._unheard(), -math.inf)
        return scores

    def dquery(self, dscores: Tensor) -> Tensor:
        """The gradient of the queries; those of the tables are added to their sums."""
        of, past, later, scale = self._of, self._past, self._later, self._shape.scale
        found = dscores @ of.key[:, :, self.keys]
        if of.embeddings is not None and past:
            behind = dscores[..., :past].sum(-1, keepdim=True)
            found += behind * of.embeddings[:, None, -1]
            of.dembeddings[:, -1] += (behind * self.query).sum((0, 2))
        if of.line is not None:
            of.dline[:, -1] += dscores[..., :past].sum((0, 2, 3))
            of.dline[:, 0] += dscores[..., later:].sum((0, 2, 3))
        if (of.embeddings is None and of.line is None) or later <= past:
            return found * scale
        by_distance = self._unskewed(dscores[..., past:later])
        if of.embeddings is not None:
            index = self._distances().clamp(0, of.embeddings.shape[1] - 1)
            found += by_distance @ of.embeddings[:, index]
            of.dembeddings.index_add_(1, index, (by_distance.transpose(2, 3) @ self.query).sum(0))
        if of.line is not None:
            index = (self._distances() + self._shape.low).clamp(0, of.line.shape[1] - 1)
            of.dline.index_add_(1, index, by_distance.sum((0, 2)))
        return found * scale

    def _distances(self) -> Tensor:
        """Every distance between a row and a near key, the largest first."""
        largest = self._first + self._count - 1 - self.keys.start - self._past
        width = self._count + self._later - self._past - 1
        return largest - torch.arange(width, device=self.query.device)

    def _near(self) -> Tensor:
        """``(batch or 1, heads, rows, near keys)``.

        Each row holds its terms by distance, one place further on than the row before: a stride
        of one less than a row is the skew of Music Transformer without a copy.
        """
        of, rows = self._of, self._count
        made: Tensor | None = None
        if of.embeddings is not None:
            index = self._distances().clamp(0, of.embeddings.shape[1] - 1)
            made = self.query @ of.embeddings[:, index].transpose(1, 2)
        if of.line is not None:
            index = (self._distances() + self._shape.low).clamp(0, of.line.shape[1] - 1)
            terms = of.line[:, index][None, :, None]
            made = terms.repeat(1, 1, rows, 1) if made is None else made.add_(terms)
        assert made is not None
        return self._skewed(made)

    def _skewed(self, by_distance: Tensor) -> Tensor:
        batch, heads, rows, width = by_distance.shape
        return by_distance.as_strided(
            (batch, heads, rows, self._later - self._past),
            (heads * rows * width, rows * width, width - 1, 1),
            rows - 1,
        )

    def _unskewed(self, near: Tensor) -> Tensor:
        batch, heads, rows, keys = near.shape
        by_distance = near.new_zeros(batch, heads, rows, rows + keys - 1)
        self._skewed(by_distance).copy_(near)
        return by_distance

    def _unheard(self) -> Tensor:
        device = self.query.device
        position = self._first + torch.arange(self._count, device=device)[:, None]
        apart = position - torch.arange(self.keys.start, self.keys.stop, device=device)
        unheard = torch.zeros_like(apart, dtype=torch.bool)
        if self._shape.causal:
            unheard |= apart < 0
        if self._shape.window:
            unheard |= apart.abs() >= self._shape.window
        return unheard
