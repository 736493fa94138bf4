# mypy: disable-error-code="no-untyped-def"
"""The backward kernels of :mod:`.relative_attention_triton`."""

from __future__ import annotations

import triton
import triton.language as tl

from musictune.kernels.relative_attention_tiles_triton import (
    LOG2E,
    add_entries,
    add_rows,
    far_products,
    key_ranges,
    load_rows,
    product,
    query_ranges,
    store_rows,
    table_rows,
    tile_scores,
    turn,
)


@triton.jit
def backward_queries(
    query,
    key,
    value,
    table,
    line,
    output,
    gradient,
    total,
    dot,
    dquery,
    dtable,
    dline,
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
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    which = tl.program_id(1).to(tl.int64)
    a = tl.arange(0, BLOCK)
    row = block * BLOCK + a
    there = row < queries
    start = block * BLOCK + keys - queries
    q = load_rows(query + which * queries * size, row, there, size, SIZE)
    given = load_rows(gradient + which * queries * size, row, there, size, SIZE)
    o = load_rows(output + which * queries * size, row, there, size, SIZE)
    shared = tl.sum(o.to(tl.float32) * given.to(tl.float32), 1)
    tl.store(dot + which * queries + row, shared, mask=there)
    level = tl.load(total + which * queries + row, mask=there, other=float("inf")) * LOG2E
    head = which % heads
    table += head * distances * size
    dtable += head * distances * size
    line += head * entries
    dline += head * entries
    first, near, ahead, last = key_ranges(start, keys, low, reach, window, CAUSAL, WINDOW, BLOCK)
    found = tl.zeros((BLOCK, SIZE), tl.float32)
    behind = tl.zeros((BLOCK,), tl.float32)
    beyond = tl.zeros((BLOCK,), tl.float32)
    if TABLE:
        back = far_products(q, table, distances, size, SIZE)
        e_high = table_rows(table, start - near + a, distances, size, SIZE)
        high = product(q, tl.trans(e_high), PRECISION, FULL)
        carried = tl.zeros((BLOCK, BLOCK), tl.float32)
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
                    e_low = table_rows(table, start - j - BLOCK + a, distances, size, SIZE)
                    below = product(q, tl.trans(e_low), PRECISION, FULL)
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
            weights = tl.exp2(scores - level[:, None])
            v = load_rows(value + which * keys * size, column, column < keys, size, SIZE)
            dscores = weights * (product(given, tl.trans(v), PRECISION, FULL) - shared[:, None])
            found += product(dscores.to(k.dtype), k, PRECISION, FULL)
            if kind < 0:
                behind += tl.sum(dscores, 1)
            elif kind > 0:
                beyond += tl.sum(dscores, 1)
            elif TABLE or LINE:
                turned = turn(dscores, BLOCK)
                upper = tl.where(a[None, :] <= a[:, None], turned, 0.0)
                lower = turned - upper
                if LINE:
                    entry = start - j + a + low
                    add_entries(dline, entry, entries, tl.sum(upper, 0))
                    add_entries(dline, entry - BLOCK, entries, tl.sum(lower, 0))
                if TABLE:
                    whole = (upper + carried).to(q.dtype)
                    found += product(whole, e_high, PRECISION, FULL)
                    add_rows(
                        dtable,
                        start - j + a,
                        distances,
                        size,
                        product(tl.trans(whole), q, PRECISION, FULL) * scale,
                        SIZE,
                    )
                    carried = lower
                    e_high = e_low
    if TABLE:
        distance = start - near - tl.cdiv(ahead - near, BLOCK) * BLOCK + a
        whole = carried.to(q.dtype)
        found += product(whole, e_high, PRECISION, FULL)
        add_rows(
            dtable,
            distance,
            distances,
            size,
            product(tl.trans(whole), q, PRECISION, FULL) * scale,
            SIZE,
        )
        column = tl.arange(0, SIZE)
        last_row = (distances - 1) * size + column
        e = tl.load(table + last_row, mask=column < size, other=0.0).to(tl.float32)
        found += behind[:, None] * e[None, :]
        of_last = tl.sum(behind[:, None] * q.to(tl.float32), 0) * scale
        tl.atomic_add(dtable + last_row, of_last, mask=column < size, sem="relaxed")
    if LINE:
        tl.atomic_add(dline + entries - 1, tl.sum(behind, 0), sem="relaxed")
        if not CAUSAL:
            tl.atomic_add(dline, tl.sum(beyond, 0), sem="relaxed")
    store_rows(dquery + which * queries * size, row, there, found * scale, size, SIZE)


@triton.jit
def backward_keys(
    query,
    key,
    value,
    table,
    line,
    gradient,
    total,
    dot,
    dkey,
    dvalue,
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
    which = tl.program_id(1).to(tl.int64)
    a = tl.arange(0, BLOCK)
    start = tl.program_id(0) * BLOCK
    offset = keys - queries
    column = start + a
    k = load_rows(key + which * keys * size, column, column < keys, size, SIZE)
    v = load_rows(value + which * keys * size, column, column < keys, size, SIZE)
    table += which % heads * distances * size
    line += which % heads * entries
    first, near, behind, last = query_ranges(
        start, offset, queries, keys, low, reach, window, CAUSAL, WINDOW, BLOCK
    )
    dk = tl.zeros((BLOCK, SIZE), tl.float32)
    dv = tl.zeros((BLOCK, SIZE), tl.float32)
    if TABLE:
        e_low = table_rows(table, near + offset - start - BLOCK + a, distances, size, SIZE)
    for kind in tl.static_range(-1, 1 if CAUSAL else 2):
        for i in range(
            behind if kind < 0 else (near if kind == 0 else first),
            last if kind < 0 else (behind if kind == 0 else near),
            BLOCK,
        ):
            row = i + a
            there = row < queries
            q = load_rows(query + which * queries * size, row, there, size, SIZE)
            own = 0.0
            if TABLE:
                if kind == 0:
                    e = table_rows(table, i + offset - start + a, distances, size, SIZE)
                    high = product(q, tl.trans(e), PRECISION, FULL)
                    below = product(q, tl.trans(e_low), PRECISION, FULL)
                    own = turn(tl.where(a[None, :] <= a[:, None], high, below), BLOCK)
                    e_low = e
                else:
                    own = far_products(q, table, distances, size, SIZE)[:, None]
            scores = tile_scores(
                q,
                k,
                i + offset - start + a[:, None] - a[None, :],
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
            level = tl.load(total + which * queries + row, mask=there, other=float("inf"))
            weights = tl.exp2(scores - level[:, None] * LOG2E)
            given = load_rows(gradient + which * queries * size, row, there, size, SIZE)
            dv += product(tl.trans(weights).to(v.dtype), given, PRECISION, FULL)
            shared = tl.load(dot + which * queries + row, mask=there, other=0.0)
            dscores = weights * (product(given, tl.trans(v), PRECISION, FULL) - shared[:, None])
            dk += product(tl.trans(dscores).to(k.dtype), q, PRECISION, FULL)
    store_rows(dkey + which * keys * size, column, column < keys, dk * scale, size, SIZE)
    store_rows(dvalue + which * keys * size, column, column < keys, dv, size, SIZE)
