# mypy: disable-error-code="no-untyped-def"
"""The Triton side of :mod:`musictune.kernels.relative_attention`; imported only where it runs.

Attention is computed by tiles with a running softmax and recomputed in the backward pass, as in
FlashAttention-2 (Dao 2023, arXiv 2307.08691). What is ours is how a tile gets its relative logits.
The tile of queries ``i0 + a`` and keys ``j0 + b`` (both of a power of two) has the distances
``i0 - j0 + a - b``. Products of its queries with the table at ``i0 - j0 + c`` (high) and at
``i0 - j0 + c - BLOCK`` (low) hold all it needs: with ``c = (a - b) mod BLOCK`` a score reads
column ``c`` of its own row, from high where ``c <= a`` and else from low. So one gather within rows
turns distances into keys, the same gather turns gradients of scores back into distances, and the
low half of one tile is the high half of the next: one more product per tile. Tiles so far away
that every distance is clipped need no product at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from musictune.kernels.relative_attention_backward_triton import backward_keys, backward_queries
from musictune.kernels.relative_attention_tiles_triton import (
    LOG2E,
    far_products,
    key_ranges,
    load_rows,
    product,
    store_rows,
    table_rows,
    tile_scores,
    turn,
)
from musictune.kernels.runtime import interpreted

if TYPE_CHECKING:
    from musictune.kernels.relative_attention import Shape


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embeddings: Tensor | None,
    line: Tensor | None,
    shape: Shape,
) -> tuple[Tensor, Tensor]:
    """The output, and the log of each query's sum of exponentials ``(batch, heads, queries)``."""
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    batch, heads, queries, _ = query.shape
    output = torch.empty_like(query)
    total = torch.empty(batch, heads, queries, dtype=torch.float32, device=query.device)
    options = _options(query, embeddings, line, shape)
    grid = (triton.cdiv(queries, options["BLOCK"]), batch * heads)
    _forward[grid](
        query,
        key,
        value,
        *_tables(query, embeddings, line),
        output,
        total,
        *_numbers(query, key, embeddings, line, shape),
        **options,
    )
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
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    gradient = gradient.contiguous()
    batch, heads, queries, _ = query.shape
    dquery, dkey, dvalue = (torch.empty_like(part) for part in (query, key, value))
    found = [
        None if table is None else torch.zeros_like(table, dtype=torch.float32).contiguous()
        for table in (embeddings, line)
    ]
    dot = torch.empty_like(total)  # of each output with its gradient
    options = _options(query, embeddings, line, shape)
    tables = _tables(query, embeddings, line)
    numbers = _numbers(query, key, embeddings, line, shape)
    if embeddings is not None:
        options["num_warps"] = 8  # with half of them ptxas spills more than twice as much
    grid = (triton.cdiv(queries, options["BLOCK"]), batch * heads)
    sums = [dot if table is None else table for table in found]
    backward_queries[grid](
        query,
        key,
        value,
        *tables,
        output,
        gradient,
        total,
        dot,
        dquery,
        *sums,
        *numbers,
        **options,
    )
    grid = (triton.cdiv(key.shape[2], options["BLOCK"]), batch * heads)
    backward_keys[grid](
        query, key, value, *tables, gradient, total, dot, dkey, dvalue, *numbers, **options
    )
    made = [
        None if table is None or mine is None else mine.to(table.dtype)
        for table, mine in zip((embeddings, line), found, strict=True)
    ]
    return dquery, dkey, dvalue, *made


def _tables(query: Tensor, embeddings: Tensor | None, line: Tensor | None) -> tuple[Tensor, Tensor]:
    """As the kernels read them; something of no use stands for one that is not there."""
    return (
        query if embeddings is None else embeddings.to(query.dtype).contiguous(),
        query if line is None else line.float().contiguous(),
    )


def _numbers(
    query: Tensor, key: Tensor, embeddings: Tensor | None, line: Tensor | None, shape: Shape
) -> tuple[int | float, ...]:
    return (
        query.shape[1],
        query.shape[2],
        key.shape[2],
        query.shape[3],
        1 if embeddings is None else embeddings.shape[1],
        1 if line is None else line.shape[1],
        shape.low,
        shape.reach(embeddings, line),
        shape.window,
        shape.scale,
    )


def _options(
    query: Tensor, embeddings: Tensor | None, line: Tensor | None, shape: Shape
) -> dict[str, Any]:
    """Constants of a kernel.

    Tiles are as large as ptxas fits into the registers of sm_90 without spilling much, which is
    all that was measured: choosing by time needs a GPU.
    """
    size = max(16, triton.next_power_of_2(query.shape[3]))
    largest = 64 if size <= 64 and query.element_size() == 2 else 32
    if interpreted():
        largest = 16
    tf32 = query.is_cuda and torch.backends.cuda.matmul.allow_tf32
    return {
        "CAUSAL": shape.causal,
        "WINDOW": shape.window > 0,
        "TABLE": embeddings is not None,
        "LINE": line is not None,
        "SIZE": size,
        "BLOCK": max(16, min(largest, triton.next_power_of_2(query.shape[2]))),
        "PRECISION": "tf32" if tf32 else "ieee",
        "FULL": interpreted(),
        "num_warps": 4 if query.element_size() == 2 else 8,
        "num_stages": 2,
    }


@triton.jit
def _forward(
    query,
    key,
    value,
    table,
    line,
    output,
    total,
    heads,
    queries,
    keys,
    size,
    distances,
    entries,
    low,
    reach,
    window,
    scale,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    TABLE: tl.constexpr,
    LINE: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    FULL: tl.constexpr,
):
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # causal rows with most keys first
    which = tl.program_id(1).to(tl.int64)
    a = tl.arange(0, BLOCK)
    row = block * BLOCK + a
    there = row < queries
    start = block * BLOCK + keys - queries
    q = load_rows(query + which * queries * size, row, there, size, SIZE)
    table += which % heads * distances * size
    line += which % heads * entries
    first, near, ahead, last = key_ranges(start, keys, low, reach, window, CAUSAL, WINDOW, BLOCK)
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK,), tl.float32)
    found = tl.zeros((BLOCK, SIZE), tl.float32)
    if TABLE:
        back = far_products(q, table, distances, size, SIZE)
        high = product(
            q,
            tl.trans(table_rows(table, start - near + a, distances, size, SIZE)),
            PRECISION,
            FULL,
        )
    for kind in tl.static_range(-1, 1 if CAUSAL else 2):
        for j in range(
            first if kind < 0 else (near if kind == 0 else ahead),
            near if kind < 0 else (ahead if kind == 0 else last),
            BLOCK,
        ):
            column = j + a
            k = load_rows(key + which * keys * size, column, column < keys, size, SIZE)
            own = 0.0
            if TABLE:
                if kind == 0:
                    e = table_rows(table, start - j - BLOCK + a, distances, size, SIZE)
                    below = product(q, tl.trans(e), PRECISION, FULL)
                    own = turn(tl.where(a[None, :] <= a[:, None], high, below), BLOCK)
                    high = below
                else:
                    own = back[:, None]
            scores = tile_scores(
                q,
                k,
                start - j + a[:, None] - a[None, :],
                there,
                column < keys,
                own,
                line,
                entries,
                low,
                window,
                scale,
                kind,
                CAUSAL,
                WINDOW,
                TABLE,
                LINE,
                PRECISION,
                FULL,
            )
            before = highest
            highest = tl.maximum(before, tl.max(scores, 1))
            level = tl.where(highest == float("-inf"), 0.0, highest)
            weights = tl.exp2(scores - level[:, None])
            kept = tl.exp2(before - level)
            mass = mass * kept + tl.sum(weights, 1)
            v = load_rows(value + which * keys * size, column, column < keys, size, SIZE)
            found = found * kept[:, None] + product(weights.to(v.dtype), v, PRECISION, FULL)
    mass = tl.where(there, mass, 1.0)
    highest = tl.where(there, highest, 0.0)
    store_rows(output + which * queries * size, row, there, found / mass[:, None], size, SIZE)
    tl.store(total + which * queries + row, (highest + tl.log2(mass)) / LOG2E, mask=there)
