"""Attention with trained terms of relative position, read where scores are made.

Two terms, alone or together: the relative logits of Music Transformer (Huang et al. 2018, arXiv
1809.04281), ``q_i · E[h, i - j]``, and the bucketed bias of T5 (Raffel et al. 2020, arXiv
1910.10683), ``b[h, bucket(j - i)]``. Neither a bias of length times length nor a skewed copy of
the relative logits is ever held: extra memory grows with the length, forward and backward.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from musictune.errors import InputError
from musictune.kernels.runtime import use_triton

T5_MAX_DISTANCE = 128
"""From this distance on T5 uses its last bucket."""


def relative_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    embeddings: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    max_distance: int = T5_MAX_DISTANCE,
) -> Tensor:
    """``softmax(scale * (q_i · (k_j + E[h, i - j])) + b[h, bucket(j - i)]) v``.

    Queries are the last positions of the keys, as with a cache. Distances beyond the table use its
    last row (the clipping of Shaw et al. 2018, arXiv 1803.02155); T5's last bucket does the same.
    Gradients reach all five tensors. On CUDA the tables' gradients are sums of atomic additions,
    whose last bits vary; under ``torch.use_deterministic_algorithms`` plain torch runs instead.

    Args:
        query: ``(batch, heads, queries, size)``.
        key, value: ``(batch, heads, keys, size)``, of its dtype; at least as many as queries.
        embeddings: ``(heads, distances, size)``, row ``d`` for the key ``d`` positions back; only
            for causal attention, as in the paper.
        bias: ``(heads, buckets)``, added to scaled scores.
        causal: a query hears keys up to its own position alone.
        window: only keys less than this many positions away are heard, one's own counted.
        scale: of products with the query; ``size ** -0.5`` if None.
        max_distance: of the buckets.

    Returns:
        ``(batch, heads, queries, size)`` in the dtype of ``query``; sums are fp32 or finer.

    Raises:
        InputError: shapes that do not fit, or a value out of its range.
    """
    _check(query, key, value, embeddings, causal, window)
    line, low = None, 0
    if bias is not None:
        if bias.dim() != 2 or len(bias) != query.shape[1]:
            raise InputError(
                f"bias of shape {list(bias.shape)} must be (heads, buckets) with "
                f"{query.shape[1]} heads"
            )
        farthest = min(max_distance, key.shape[2] - 1)
        low = 0 if causal else farthest
        apart = torch.arange(-low, farthest + 1, device=bias.device)
        buckets = t5_buckets(apart, bias.shape[1], max_distance, causal)
        line = bias.index_select(1, buckets)
    shape = Shape(
        causal, window or 0, query.shape[-1] ** -0.5 if scale is None else float(scale), low
    )
    result: Tensor = _RelativeAttention.apply(query, key, value, embeddings, line, shape)
    return result


def t5_buckets(apart: Tensor, buckets: int, max_distance: int, causal: bool = True) -> Tensor:
    """T5's bucket of each distance: exact while small, then logarithmic.

    Args:
        apart: whole numbers, query position minus key position.
        buckets: how many there are; without ``causal`` half of them are for keys that come later.
        max_distance: from here on it is the last bucket.
        causal: later keys are not heard; they get the bucket of distance 0.

    Returns:
        int64 of the shape of ``apart``.

    Raises:
        InputError: too few buckets, or no distance left for the logarithmic ones.
    """
    side = buckets if causal else buckets // 2
    exact = side // 2
    if exact < 1 or (not causal and buckets % 2):
        raise InputError(
            f"{buckets} buckets cannot be used; give at least 2, or an even number of at least 4 "
            "where later keys are heard too"
        )
    if max_distance <= exact:
        raise InputError(
            f"max_distance {max_distance} must be more than {exact} for {buckets} buckets"
        )
    first = torch.zeros_like(apart) if causal else (apart < 0).long() * side
    size = apart.clamp(min=0) if causal else apart.abs()
    share = (size.float().clamp(min=1) / exact).log() / math.log(max_distance / exact)
    large = (exact + (share * (side - exact)).long()).clamp(max=side - 1)
    return first + torch.where(size < exact, size, large)


@dataclass(frozen=True)
class Shape:
    """What both ways of computing are told besides tensors.

    Attributes:
        causal: as above.
        window: as above, 0 for none.
        scale: of products with the query.
        low: the entry of ``line`` that is for distance 0; those before it are for later keys.
    """

    causal: bool
    window: int
    scale: float
    low: int

    def reach(self, embeddings: Tensor | None, line: Tensor | None) -> int:
        """From this distance on every term of relative position stays the same."""
        table = 0 if embeddings is None else embeddings.shape[1] - 1
        return max(table, 0 if line is None else line.shape[1] - 1 - self.low)


class _RelativeAttention(torch.autograd.Function):
    """``embeddings`` (heads, distances, size) and ``line`` (heads, distances from -low on)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        embeddings: Tensor | None,
        line: Tensor | None,
        shape: Shape,
    ) -> Tensor:
        ctx.shape = shape
        with torch.autocast(query.device.type, enabled=False):
            output, total = _way(query).forward(query, key, value, embeddings, line, shape)
        ctx.save_for_backward(query, key, value, embeddings, line, output, total)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors, shape = ctx.saved_tensors, ctx.shape
        with torch.autocast(gradient.device.type, enabled=False):
            found = _way(gradient).backward(*tensors, gradient, shape)
        return *found, None


def _way(tensor: Tensor) -> Any:
    """The module with ``forward`` and ``backward`` for a tensor."""
    if use_triton(tensor) and not torch.are_deterministic_algorithms_enabled():
        return importlib.import_module("musictune.kernels.relative_attention_triton")
    return importlib.import_module("musictune.kernels.relative_attention_torch")


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embeddings: Tensor | None,
    causal: bool,
    window: int | None,
) -> None:
    if query.dim() != 4 or key.shape != value.shape or key.dim() != 4:
        raise InputError(
            f"query {list(query.shape)}, key {list(key.shape)} and value {list(value.shape)} must "
            "each be (batch, heads, positions, size), the last two equal"
        )
    heads, queries, size = query.shape[1:]
    if (key.shape[0], key.shape[1], key.shape[3]) != (len(query), heads, size):
        raise InputError(
            f"query {list(query.shape)} and key {list(key.shape)} differ in batch, heads or size"
        )
    if not 1 <= queries <= key.shape[2]:
        raise InputError(
            f"{queries} queries with {key.shape[2]} keys; give at least 1 and at most as many "
            "queries as keys, whose last positions they are"
        )
    if window is not None and window < 1:
        raise InputError(f"window {window} must be at least 1; None hears everything")
    if embeddings is None:
        return
    if not causal:
        raise InputError(
            "embeddings have a row per distance back, so they need causal attention; use bias "
            "where later keys are heard too"
        )
    wanted = (heads, max(1, embeddings.shape[1] if embeddings.dim() == 3 else 1), size)
    if tuple(embeddings.shape) != wanted:
        raise InputError(
            f"embeddings of shape {list(embeddings.shape)} must be (heads, distances, size) with "
            f"{heads} heads, at least 1 distance and size {size}"
        )
