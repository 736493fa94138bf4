# mypy: disable-error-code="no-untyped-def"
"""The gradients of whole sequences; see :mod:`musictune.kernels.attention_prefill_triton`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from musictune.kernels.attention_prefill_triton import (
    LOG2E,
    blocks,
    dense,
    ends,
    hide,
    known_keys,
    like,
    tile,
)
from musictune.kernels.runtime import interpreted


def backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    sums: Tensor,
    causal: bool,
    scale: float,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value."""
    query, key, value, gradient = dense(query), dense(key), dense(value), dense(gradient)
    batch, heads, queries, size = query.shape
    keys = key.shape[2]
    dquery, dkey, dvalue = like(query), like(key), like(value)
    products = torch.empty_like(sums)  # of each query's output with its gradient
    block_m, block_n, block_d, warps, stages = blocks(query, key, backward=True)
    lengths_or_any = query if lengths is None else lengths
    common = {
        "CAUSAL": causal,
        "LENGTHS": lengths is not None,
        "SIZE": size,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_D": block_d,
        "FULL": interpreted(),
        "num_warps": warps,
        "num_stages": stages,
    }
    shape = (heads, queries, keys, scale)
    strides = (
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        *gradient.stride()[:3],
    )
    # This one also writes the products, which the next reads.
    _queries_backward[(triton.cdiv(queries, block_m), batch * heads)](
        query,
        key,
        value,
        lengths_or_any,
        gradient,
        out,
        sums,
        products,
        dquery,
        *shape,
        *strides,
        *out.stride()[:3],
        *dquery.stride()[:3],
        **common,
    )
    _keys_backward[(triton.cdiv(keys, block_n), batch * heads)](
        query,
        key,
        value,
        lengths_or_any,
        gradient,
        sums,
        products,
        dkey,
        dvalue,
        *shape,
        *strides,
        *dkey.stride()[:3],
        *dvalue.stride()[:3],
        **common,
    )
    return dquery, dkey, dvalue


@triton.jit
def _queries_backward(
    query,
    key,
    value,
    lengths,
    gradient,
    out,
    sums,
    products,
    dquery,
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
    gradient_batch,
    gradient_head,
    gradient_place,
    out_batch,
    out_head,
    out_place,
    dquery_batch,
    dquery_head,
    dquery_place,
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
    m_first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    m, d = m_first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    key += batch * key_batch + head * key_head
    value += batch * value_batch + head * value_head
    base = query + batch * query_batch + head * query_head
    q = tile(base, m, d, query_place, queries, SIZE, FULL)
    base = gradient + batch * gradient_batch + head * gradient_head
    do = tile(base, m, d, gradient_place, queries, SIZE, FULL)
    base = out + batch * out_batch + head * out_head
    o = tile(base, m, d, out_place, queries, SIZE, FULL)
    product = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    line = pair.to(tl.int64) * queries + m
    tl.store(products + line, product, mask=m < queries)
    log_mass = tl.load(sums + line, mask=m < queries, other=float("inf"))
    known = known_keys(lengths, batch, keys, LENGTHS)
    offset = keys - queries
    whole, end = ends(m_first, BLOCK_M, known, offset, CAUSAL, BLOCK_N)
    base_2 = scale * LOG2E
    dq = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for part in tl.static_range(2):  # first the tiles that are seen whole, then the others
        for start in range(part * whole, whole + part * (end - whole), BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            k = tile(key, n, d, key_place, keys, SIZE, FULL)
            v = tile(value, n, d, value_place, keys, SIZE, FULL)
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * base_2
            if part == 1:
                score = hide(score, m, n, known, offset, CAUSAL)
            share = tl.exp2(score - log_mass[:, None])
            inner = tl.dot(do, tl.trans(v), input_precision="ieee") - product[:, None]
            dq += tl.dot((share * inner).to(k.dtype), k, input_precision="ieee")
    at = dquery + batch * dquery_batch + head * dquery_head
    at += m[:, None] * dquery_place + d[None, :]
    inside = (m[:, None] < queries) & (d[None, :] < SIZE)
    tl.store(at, (dq * scale).to(dquery.dtype.element_ty), mask=inside)


@triton.jit
def _keys_backward(
    query,
    key,
    value,
    lengths,
    gradient,
    sums,
    products,
    dkey,
    dvalue,
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
    gradient_batch,
    gradient_head,
    gradient_place,
    dkey_batch,
    dkey_head,
    dkey_place,
    dvalue_batch,
    dvalue_head,
    dvalue_place,
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
    n_first = tl.program_id(0) * BLOCK_N
    n, d = n_first + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    query += batch * query_batch + head * query_head
    gradient += batch * gradient_batch + head * gradient_head
    sums += pair.to(tl.int64) * queries
    products += pair.to(tl.int64) * queries
    k = tile(key + batch * key_batch + head * key_head, n, d, key_place, keys, SIZE, FULL)
    v = tile(value + batch * value_batch + head * value_head, n, d, value_place, keys, SIZE, FULL)
    known = known_keys(lengths, batch, keys, LENGTHS)
    offset = keys - queries
    base_2 = scale * LOG2E
    # Queries before `begin` see none of these keys, those from `whole` on see all of them.
    begin, whole = 0, 0
    if CAUSAL:
        begin = tl.maximum(n_first - offset, 0) // BLOCK_M * BLOCK_M
        whole = tl.cdiv(tl.maximum(n_first + BLOCK_N - 1 - offset, 0), BLOCK_M) * BLOCK_M
    stop = tl.where(n_first < known, queries, 0)
    dk = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for part in tl.static_range(2):  # first the tiles on the edge, then those that see all
        low, high = begin, tl.minimum(whole, stop)
        if part == 1:
            low, high = whole, stop
        for start in range(low, high, BLOCK_M):
            m = start + tl.arange(0, BLOCK_M)
            q = tile(query, m, d, query_place, queries, SIZE, FULL)
            do = tile(gradient, m, d, gradient_place, queries, SIZE, FULL)
            log_mass = tl.load(sums + m, mask=m < queries, other=float("inf"))
            product = tl.load(products + m, mask=m < queries, other=0.0)
            score = tl.dot(k, tl.trans(q), input_precision="ieee") * base_2
            if part == 0:
                score = tl.where(n[:, None] <= m[None, :] + offset, score, float("-inf"))
            share = tl.exp2(score - log_mass[None, :])
            dv += tl.dot(share.to(do.dtype), do, input_precision="ieee")
            inner = tl.dot(v, tl.trans(do), input_precision="ieee") - product[None, :]
            dk += tl.dot((share * inner).to(q.dtype), q, input_precision="ieee")
    # A key that is not there was treated like the others above: its own sums alone are wrong.
    there = (n < known)[:, None]
    inside = (n[:, None] < keys) & (d[None, :] < SIZE)
    at = dkey + batch * dkey_batch + head * dkey_head + n[:, None] * dkey_place + d[None, :]
    tl.store(at, tl.where(there, dk * scale, 0.0).to(dkey.dtype.element_ty), mask=inside)
    at = dvalue + batch * dvalue_batch + head * dvalue_head + n[:, None] * dvalue_place + d[None, :]
    tl.store(at, tl.where(there, dv, 0.0).to(dvalue.dtype.element_ty), mask=inside)
