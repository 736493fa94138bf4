# mypy: disable-error-code="no-untyped-def"
"""The Triton side of whole sequences in :mod:`musictune.kernels.attention`.

Forward, the gradient of the queries, and the gradients of keys and values: each keeps a tile of its
own in registers and walks along the other sequence. Scores are in base 2, and of each query the
logarithm of their sum is kept: +inf for one that saw nothing, whose weights then come out as zero.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from musictune.kernels.runtime import interpreted

LOG2E = tl.constexpr(1.4426950408889634)


def forward(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The output, and of each query the base-2 logarithm of the sum of its weights, fp32."""
    query, key, value = dense(query), dense(key), dense(value)
    batch, heads, queries, size = query.shape
    out = like(query)
    sums = torch.empty(batch, heads, queries, dtype=torch.float32, device=query.device)
    block_m, block_n, block_d, warps, stages = blocks(query, key, backward=False)
    _forward[(triton.cdiv(queries, block_m), batch * heads)](
        query,
        key,
        value,
        query if lengths is None else lengths,
        out,
        sums,
        heads,
        queries,
        key.shape[2],
        scale * LOG2E.value,
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        *out.stride()[:3],
        CAUSAL=causal,
        LENGTHS=lengths is not None,
        SIZE=size,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
        FULL=interpreted(),
        num_warps=warps,
        num_stages=stages,
    )
    return out, sums


def blocks(query: Tensor, key: Tensor, *, backward: bool) -> tuple[int, int, int, int, int]:
    """Queries, keys and entries of a tile, warps and stages: what fits into Hopper's registers."""
    # A product of tiles needs 16 in each direction.
    block_d = max(16, triton.next_power_of_2(query.shape[3]))
    wide = query.dtype == torch.float32
    if wide:  # no tensor cores: sums fill the registers sooner
        limit_m, limit_n, warps, stages = 32 if block_d <= 64 else 16, 32, 8, 1
    elif backward:
        limit_m, limit_n, warps, stages = 64, 64, 4 if block_d <= 64 else 8, 2
    else:
        limit_m, limit_n, warps, stages = 128, 64, 4 if block_d <= 64 else 8, 3
    return (
        max(16, min(limit_m, triton.next_power_of_2(query.shape[2]))),
        max(16, min(limit_n, triton.next_power_of_2(key.shape[2]))),
        block_d,
        warps,
        stages,
    )


def like(x: Tensor) -> Tensor:
    """Room for ``(batch, heads, places, size)`` in which the heads of a place lie together."""
    batch, heads, places, size = x.shape
    return x.new_empty(batch, places, heads, size).transpose(1, 2)


def dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@triton.jit
def tile(base, places, d, stride, limit, SIZE: tl.constexpr, FULL: tl.constexpr):
    """Rows ``places`` of a sequence; zeros beyond ``limit``."""
    inside = (places[:, None] < limit) & (d[None, :] < SIZE)
    tile = tl.load(base + places[:, None] * stride + d[None, :], mask=inside, other=0.0)
    if FULL:  # the interpreter's products of bf16 are wrong without an error
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def known_keys(lengths, batch, keys, LENGTHS: tl.constexpr):
    """How many keys are there."""
    known = keys
    if LENGTHS:
        known = tl.minimum(tl.load(lengths + batch).to(tl.int32), keys)
    return known


@triton.jit
def hide(score, m, n, known, offset, CAUSAL: tl.constexpr):
    seen = n[None, :] < known
    if CAUSAL:
        seen = seen & (n[None, :] <= m[:, None] + offset)
    return tl.where(seen, score, float("-inf"))


@triton.jit
def ends(m_first, block_m, known, offset, CAUSAL: tl.constexpr, BLOCK_N: tl.constexpr):
    """Up to which key all queries of a tile see everything, in whole tiles, and any sees any."""
    whole, end = known, known
    if CAUSAL:
        whole = tl.minimum(whole, tl.maximum(m_first + offset + 1, 0))
        end = tl.minimum(end, m_first + block_m + offset)
    return whole // BLOCK_N * BLOCK_N, end


@triton.jit
def _forward(
    query,
    key,
    value,
    lengths,
    out,
    sums,
    heads,
    queries,
    keys,
    scale,
    query_batch,
    query_head,
    query_place,
    key_batch,
    key_head,
    key_place,
    value_batch,
    value_head,
    value_place,
    out_batch,
    out_head,
    out_place,
    CAUSAL: tl.constexpr,
    LENGTHS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    FULL: tl.constexpr,
):
    pair = tl.program_id(1)
    batch, head = (pair // heads).to(tl.int64), pair % heads
    # The last tiles of a causal sequence have the most to do: they begin.
    m_first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    m, d = m_first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    key += batch * key_batch + head * key_head
    value += batch * value_batch + head * value_head
    base = query + batch * query_batch + head * query_head
    q = tile(base, m, d, query_place, queries, SIZE, FULL)
    known = known_keys(lengths, batch, keys, LENGTHS)
    offset = keys - queries
    whole, end = ends(m_first, BLOCK_M, known, offset, CAUSAL, BLOCK_N)
    top = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    mass = tl.zeros((BLOCK_M,), dtype=tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for part in tl.static_range(2):  # first the tiles that are seen whole, then the others
        for start in range(part * whole, whole + part * (end - whole), BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            k = tile(key, n, d, key_place, keys, SIZE, FULL)
            v = tile(value, n, d, value_place, keys, SIZE, FULL)
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            if part == 1:
                score = hide(score, m, n, known, offset, CAUSAL)
            top, mass, total = _gather_in(score, v, top, mass, total)
    empty = mass == 0.0
    mass = tl.where(empty, 1.0, mass)
    at = out + batch * out_batch + head * out_head + m[:, None] * out_place + d[None, :]
    inside = (m[:, None] < queries) & (d[None, :] < SIZE)
    tl.store(at, (total / mass[:, None]).to(out.dtype.element_ty), mask=inside)
    kept = tl.where(empty, float("inf"), top + tl.log2(mass))
    tl.store(sums + pair.to(tl.int64) * queries + m, kept, mask=m < queries)


@triton.jit
def _gather_in(score, v, top, mass, total):
    """One tile of keys into the running maximum, sum of weights and weighted sum."""
    highest = tl.maximum(top, tl.max(score, 1))
    safe = tl.where(highest == float("-inf"), 0.0, highest)
    share = tl.exp2(score - safe[:, None])
    keep = tl.exp2(top - safe)
    mass = mass * keep + tl.sum(share, 1)
    total = total * keep[:, None]
    total += tl.dot(share.to(v.dtype), v, input_precision="ieee")
    return highest, mass, total
