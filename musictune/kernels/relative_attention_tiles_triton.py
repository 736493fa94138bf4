# mypy: disable-error-code="no-untyped-def"
"""Parts of a tile of attention with relative terms; see :mod:`.relative_attention_triton`."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def product(left, right, PRECISION: tl.constexpr, FULL: tl.constexpr):
    if FULL:  # the interpreter's products of bf16 are wrong without an error
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision=PRECISION)


@triton.jit
def load_rows(base, row, there, size, SIZE: tl.constexpr):
    column = tl.arange(0, SIZE)
    inside = there[:, None] & (column[None, :] < size)
    return tl.load(base + row[:, None] * size + column[None, :], mask=inside, other=0.0)


@triton.jit
def table_rows(table, distance, distances, size, SIZE: tl.constexpr):
    row = tl.minimum(tl.maximum(distance, 0), distances - 1)
    return load_rows(table, row, row >= 0, size, SIZE)


@triton.jit
def turn(tile, BLOCK: tl.constexpr):
    """From columns by distance to columns by key, or back."""
    a = tl.arange(0, BLOCK)
    return tl.gather(tile, (a[:, None] - a[None, :]) & (BLOCK - 1), 1)


@triton.jit
def tile_scores(
    q,
    k,
    apart,
    row_there,
    column_there,
    own,
    line,
    entries,
    low,
    window,
    scale,
    KIND: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    TABLE: tl.constexpr,
    LINE: tl.constexpr,
    PRECISION: tl.constexpr,
    FULL: tl.constexpr,
):
    """Scores in base 2, -inf where nothing is heard.

    ``own`` is what the table adds: a tile where KIND is 0 (near), a column where it is -1 (far
    back). Far ahead, KIND 1, there is no table.
    """
    scores = product(q, tl.trans(k), PRECISION, FULL)
    if TABLE:
        scores += own
    scores *= scale * LOG2E
    if LINE:
        if KIND == 0:
            entry = tl.minimum(tl.maximum(apart + low, 0), entries - 1)
            scores += tl.load(line + entry) * LOG2E
        elif KIND < 0:
            scores += tl.load(line + entries - 1) * LOG2E
        else:
            scores += tl.load(line) * LOG2E
    if KIND >= 0 or WINDOW:  # far back, what is not there is left out by whoever asks
        heard = row_there[:, None] & column_there[None, :]
        if CAUSAL:
            heard &= apart >= 0
        if WINDOW:
            heard &= (apart < window) & (apart > -window)
        scores = tl.where(heard, scores, float("-inf"))
    return scores


@triton.jit
def far_products(q, table, distances, size, SIZE: tl.constexpr):
    """Products of queries with the last row of the table."""
    column = tl.arange(0, SIZE)
    e = tl.load(table + (distances - 1) * size + column, mask=column < size, other=0.0)
    return tl.sum(q.to(tl.float32) * e.to(tl.float32)[None, :], 1)


@triton.jit
def store_rows(base, row, there, tile, size, SIZE: tl.constexpr):
    column = tl.arange(0, SIZE)
    inside = there[:, None] & (column[None, :] < size)
    where = base + row[:, None] * size + column[None, :]
    tl.store(where, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def add_entries(line, entry, entries, values):
    """Add to entries, those out of range to the nearest."""
    entry = tl.minimum(tl.maximum(entry, 0), entries - 1)
    tl.atomic_add(line + entry, values, sem="relaxed")


@triton.jit
def add_rows(table, distance, distances, size, tile, SIZE: tl.constexpr):
    """Add to rows of a table: to the last one what lies beyond, nothing before the first."""
    column = tl.arange(0, SIZE)
    row = tl.minimum(distance, distances - 1)
    inside = (distance >= 0)[:, None] & (column[None, :] < size)
    where = table + row[:, None] * size + column[None, :]
    tl.atomic_add(where, tile, mask=inside, sem="relaxed")


@triton.jit
def key_ranges(
    start,
    keys,
    low,
    reach,
    window,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Where a tile of queries, the first at position ``start``, begins to hear far keys, near
    keys, those far ahead, and where it ends; all but the end are whole tiles."""
    stop = tl.minimum(start + BLOCK, keys)
    first, last = 0, keys
    if WINDOW:
        first = tl.maximum(start - window + 1, 0) // BLOCK * BLOCK
        if not CAUSAL:
            last = tl.minimum(keys, stop - 1 + window)
    if CAUSAL:
        last = stop
    near = tl.maximum(first, tl.maximum(start + 1 - reach, 0) // BLOCK * BLOCK)
    ahead = last
    if not CAUSAL:
        whole = (start + BLOCK - 1 + low + BLOCK - 1) // BLOCK * BLOCK
        ahead = tl.maximum(near, tl.minimum(last, whole))
    return first, near, ahead, last


@triton.jit
def query_ranges(
    start,
    offset,
    queries,
    keys,
    low,
    reach,
    window,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """As :func:`key_ranges` for a tile of keys from ``start`` on: queries that hear it far ahead,
    near and far back. The query in row ``r`` is at position ``r + offset``."""
    first, last = 0, queries
    if CAUSAL:
        first = tl.maximum(start - offset, 0) // BLOCK * BLOCK
    elif WINDOW:
        first = tl.maximum(start - window + 1 - offset, 0) // BLOCK * BLOCK
    if WINDOW:
        stop = tl.minimum(start + BLOCK, keys)
        last = tl.minimum(queries, stop - 1 + window - offset)
    near = first
    if not CAUSAL:
        near = tl.maximum(first, tl.maximum(start - low - offset + 1, 0) // BLOCK * BLOCK)
    whole = tl.maximum(start + BLOCK - 1 + reach - offset + BLOCK - 1, 0) // BLOCK * BLOCK
    return first, near, tl.maximum(near, tl.minimum(last, whole)), last
