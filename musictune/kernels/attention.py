"""Attention: one new position over a cache of keys and values, and whole sequences for training.

Each function has one signature and runs in Triton on CUDA, in plain torch elsewhere. Those of one
position know no gradients, ask the device nothing and take shapes that do not depend on data, so
that a CUDA graph can hold them.

A cache is a pair of tensors ``(rows, heads, capacity, head_dim)``. ``positions`` ``(rows,)`` says
of each row, int32 or int64, where its newest key lies: the row attends to the places
``0..position``. A row at -1 holds nothing and gets zeros. Sums are fp32 whatever the data are.

With eight bits per element the cache holds int8 codes, and ``key_scales`` and ``value_scales``,
``(rows, heads, capacity)`` float, hold the size of a step of each key and value; see `quantize`.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from musictune.kernels.runtime import use_triton

_TINY = torch.finfo(torch.float32).tiny


@torch.no_grad()
def decode_attention(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    heads: int,
    eps: float = 1e-5,
    longest: int | None = None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    """Layer norm, query, key and value of one new position per row, and what it attends to.

    The new key and value are written into the cache at ``positions``. Rows need not be equally
    far: that is continuous batching, and both halves of classifier-free guidance are just rows.

    Args:
        x: ``(rows, width)``.
        norm_weight, norm_bias: ``(width,)``.
        qkv_weight: ``(3 * width, width)``: the rows of the query, the key and the value.
        qkv_bias: ``(3 * width,)`` or None.
        keys, values: the cache, changed in place.
        positions: ``(rows,)``, of the new key. Below ``longest``, which is not checked on CUDA:
            a row beyond is not written.
        heads: how many share ``width``; queries are scaled by ``head_dim ** -0.5``.
        eps: of the layer norm.
        longest: places of the cache that are looked at, at most; its capacity if None. One number
            per CUDA graph.
        key_scales, value_scales: of an int8 cache, changed in place.

    Returns:
        ``(rows, width)``: the heads side by side, before the output projection.

    Raises:
        ValueError: shapes or dtypes that do not fit together.
    """
    width = x.shape[1]
    if width % heads or qkv_weight.shape != (3 * width, width):
        raise ValueError(
            f"qkv_weight {tuple(qkv_weight.shape)} and {heads} heads do not fit a width of {width}"
        )
    qkv = norm_linear(x, norm_weight, norm_bias, qkv_weight, qkv_bias, eps)
    query, key, value = qkv.view(len(x), 3, heads, -1).unbind(1)
    new = (key, value)
    return attend(
        query, keys, values, positions, None, longest, key_scales, value_scales, new
    ).flatten(1)


@torch.no_grad()
def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    scale: float | None = None,
    longest: int | None = None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    new: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """One query per row and head over its cache, the places shared out among programs.

    Partial sums over parts of the cache are joined by their log-sum-exp (Flash-Decoding, Dao et
    al. 2023). For attention to a text of ``lengths`` tokens give ``lengths - 1`` as positions.

    Args:
        query: ``(rows, heads, head_dim)``.
        keys, values: the cache.
        positions: ``(rows,)``, the last place of each row that is attended to.
        scale: of the scores; ``head_dim ** -0.5`` if None.
        longest: places that are looked at, at most; the capacity if None.
        key_scales, value_scales: of an int8 cache.
        new: key and value ``(rows, heads, head_dim)`` to put at ``positions`` first, in place.

    Returns:
        ``(rows, heads, head_dim)`` in the dtype of ``query``.

    Raises:
        ValueError: shapes or dtypes that do not fit together.
    """
    _check_cache(query, keys, values, positions, (key_scales, value_scales), longest)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    longest = min(longest or keys.shape[2], keys.shape[2])
    if use_triton(query, keys, values, positions):
        from musictune.kernels import attention_decode_triton

        return attention_decode_triton.attend(
            query, keys, values, positions, scale, longest, key_scales, value_scales, new
        )
    on_cpu = positions.device.type == "cpu"  # elsewhere asking would stall the device
    if on_cpu and int(positions.max()) >= longest:
        raise ValueError(
            f"position {int(positions.max())} is beyond the {longest} places of the cache"
        )
    if new is not None:
        _append(keys, key_scales, positions, new[0])
        _append(values, value_scales, positions, new[1])
    cache = (keys, values, key_scales, value_scales)
    if on_cpu:
        return _by_position(query, cache, positions, scale)
    seen = torch.arange(longest, device=positions.device) <= positions[:, None]
    return _two_products(query, cache, scale, longest, seen[:, None, None])


@torch.no_grad()
def norm_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``LayerNorm(x) Wᵀ + bias`` for few rows, in one pass over the weight.

    Args:
        x: ``(rows, in)``.
        norm_weight, norm_bias: ``(in,)``.
        weight: ``(out, in)``, of the dtype of ``x``.
        bias: ``(out,)`` or None.
        eps: of the layer norm.

    Returns:
        ``(rows, out)`` in the dtype of ``x``.
    """
    if use_triton(x, weight):
        from musictune.kernels import attention_decode_triton

        return attention_decode_triton.norm_linear(x, norm_weight, norm_bias, weight, bias, eps)
    return F.linear(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps), weight, bias)


def quantize(states: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Keys or values in eight bits: 127 equal steps each way to the largest entry of each vector.

    An entry is off by at most half a step ``s``. Scores of a query ``q`` (scaled) are then off by
    at most ``d = s/2 · ‖q‖₁``, and an output of attention by at most ``tanh(d/2)`` times the range
    of the values, plus half a step of theirs: a softmax whose scores move by at most ``d`` moves
    by at most ``tanh(d/2)`` in total variation.

    Args:
        states: ``(..., head_dim)``.
        dtype: of the scales.

    Returns:
        Codes ``(..., head_dim)`` int8 and scales ``(...)``.
    """
    wide = states.float()
    scales = (wide.abs().amax(-1) / 127).to(dtype)
    steps = wide / scales.float().clamp_min(_TINY)[..., None]
    return (steps + 0.5).floor().clamp_(-127, 127).to(torch.int8), scales


def prefill_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    causal: bool = False,
    scale: float | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """Attention of whole sequences with gradients, in memory linear in their lengths.

    The tiles of scores are formed anew in the backward pass (FlashAttention-2, Dao 2023, arXiv
    2307.08691). There is no dropout. A query that may attend to nothing gets zeros.

    Args:
        query: ``(batch, heads, queries, head_dim)``.
        key, value: ``(batch, heads, keys, head_dim)``.
        causal: the last query sees every key, the one before it all but the last, and so on.
        scale: of the scores; ``head_dim ** -0.5`` if None.
        lengths: ``(batch,)``, of how many keys the first are there; all if None.

    Returns:
        ``(batch, heads, queries, head_dim)``, laid out so that ``transpose(1, 2)`` is contiguous
        on CUDA.

    Raises:
        ValueError: shapes or dtypes that do not fit together.
    """
    _check_sequences(query, key, value, lengths)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if use_triton(query, key, value):
        out: Tensor = _Prefill.apply(query, key, value, causal, scale, lengths)
        return out
    queries, keys = query.shape[2], key.shape[2]
    if lengths is None and (not causal or queries == keys):
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale)
    allowed = torch.ones(1, 1, 1, keys, dtype=torch.bool, device=query.device)
    places = torch.arange(keys, device=query.device)
    if causal:
        last = torch.arange(queries, device=query.device) + keys - queries
        allowed = allowed & (places <= last[:, None])
    if lengths is not None:
        allowed = allowed & (places < lengths[:, None])[:, None, None]
    empty = ~allowed.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(query, key, value, allowed | empty, scale=scale)
    return out.masked_fill(empty, 0)


class _Prefill(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        causal: bool,
        scale: float,
        lengths: Tensor | None,
    ) -> Tensor:
        from musictune.kernels import attention_prefill_triton

        out, sums = attention_prefill_triton.forward(query, key, value, causal, scale, lengths)
        ctx.save_for_backward(query, key, value, out, sums, lengths)
        ctx.options = (causal, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from musictune.kernels import attention_backward_triton

        query, key, value, out, sums, lengths = ctx.saved_tensors
        causal, scale = ctx.options
        gradients = attention_backward_triton.backward(
            gradient, query, key, value, out, sums, causal, scale, lengths
        )
        return *gradients, None, None, None


_Cache = tuple[Tensor | None, ...]
"""Keys, values and their scales."""


def _by_position(query: Tensor, cache: _Cache, positions: Tensor, scale: float) -> Tensor:
    """`attend`, equal neighbours together: nothing past the end of a row is read."""
    parts, first = [], 0
    for position, group in itertools.groupby(positions.tolist()):
        rows = slice(first, first + len(list(group)))
        own = tuple(tensor if tensor is None else tensor[rows] for tensor in cache)
        if position < 0:
            parts.append(torch.zeros_like(query[rows]))
        else:
            parts.append(_two_products(query[rows], own, scale, position + 1))
        first = rows.stop
    return torch.cat(parts)


def _two_products(
    query: Tensor, cache: _Cache, scale: float, end: int, seen: Tensor | None = None
) -> Tensor:
    """`attend` to the first ``end`` places, of them to those ``seen`` ``(rows, 1, 1, end)``.

    Two products are faster here than torch's fused attention: 10 times in bf16 on a CPU.
    """
    keys, values, key_scales, value_scales = cache
    assert keys is not None and values is not None
    wide = torch.promote_types(query.dtype, torch.float32)
    # Codes are larger than what they stand for, and may overflow float16.
    coded = key_scales is not None and query.dtype == torch.float16
    dtype = wide if coded else query.dtype
    held, said = keys[:, :, :end].to(dtype), values[:, :, :end].to(dtype)
    score = (query[:, :, None].to(dtype) @ held.transpose(2, 3)).to(wide) * scale
    if key_scales is not None:
        score *= key_scales[:, :, None, :end]
    if seen is not None:
        score.masked_fill_(~seen, -torch.inf)
    weights = score.softmax(-1)
    if value_scales is not None:
        weights *= value_scales[:, :, None, :end]
    if seen is not None:
        # What is not seen may be no number, and neither is a softmax of nothing.
        weights.masked_fill_(~seen, 0)
        said = said.masked_fill(~seen.transpose(2, 3), 0)
    return (weights.to(dtype) @ said)[:, :, 0].to(query.dtype)


def _append(cache: Tensor, scales: Tensor | None, positions: Tensor, new: Tensor) -> None:
    """Put ``new`` at ``positions``; rows at -1 stay as they are, without asking which those are."""
    rows = torch.arange(len(positions), device=positions.device)
    place, there = positions.long().clamp_min(0), positions >= 0
    if scales is not None:
        new, steps = quantize(new, scales.dtype)
        scales[rows, :, place] = torch.where(there[:, None], steps, scales[rows, :, place])
    old = cache[rows, :, place]
    cache[rows, :, place] = torch.where(there[:, None, None], new.to(cache.dtype), old)


def _check_cache(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    scales: tuple[Tensor | None, Tensor | None],
    longest: int | None,
) -> None:
    rows, heads, size = query.shape
    capacity = keys.shape[2] if keys.dim() == 4 else 0
    if not keys.shape == values.shape == (rows, heads, capacity, size) or capacity == 0:
        raise ValueError(
            f"keys {tuple(keys.shape)} and values {tuple(values.shape)} must both be (rows, heads, "
            f"capacity, head_dim) for a query of {tuple(query.shape)}"
        )
    if positions.shape != (rows,) or positions.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"positions must be {rows} int32 or int64, not {tuple(positions.shape)}")
    if longest is not None and longest < 1:
        raise ValueError(f"longest {longest} must be at least 1")
    if keys.stride(-1) != 1 or values.stride(-1) != 1:
        raise ValueError("the entries of a key and of a value must lie side by side in the cache")
    coded = {tensor.dtype == torch.int8 for tensor in (keys, values)}
    if coded != {scale is not None for scale in scales} or len(coded) > 1:
        raise ValueError("an int8 cache needs key_scales and value_scales, and no other has them")
    for scale in scales:
        if scale is not None and (scale.shape != keys.shape[:3] or scale.stride(-1) != 1):
            raise ValueError(f"scales must be (rows, heads, capacity), not {tuple(scale.shape)}")


def _check_sequences(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None) -> None:
    batch, heads, _, size = query.shape
    if key.shape != value.shape or (*key.shape[:2], key.shape[3]) != (batch, heads, size):
        raise ValueError(
            f"key {tuple(key.shape)} and value {tuple(value.shape)} must both be (batch, heads, "
            f"keys, head_dim) for a query of {tuple(query.shape)}"
        )
    if 0 in (*query.shape, key.shape[2]):
        raise ValueError(f"query {tuple(query.shape)} and key {tuple(key.shape)} hold nothing")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"query, key and value are {query.dtype}, {key.dtype} and {value.dtype}")
    if lengths is not None and lengths.shape != (batch,):
        raise ValueError(f"lengths must be {batch} numbers, not {tuple(lengths.shape)}")
