# mypy: disable-error-code="no-untyped-def"
"""The Triton side of one new position in :mod:`musictune.kernels.attention`.

Three kernels: the layer norm inside a product with few rows; attention over parts of the cache,
whose program that owns the new position also writes it; and the joining of the parts.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from musictune.kernels.runtime import interpreted

_LOG2E = tl.constexpr(1.4426950408889634)
_PER_MULTIPROCESSOR = 4
"""Programs of attention for each multiprocessor, so that enough loads are on their way."""


def norm_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """``LayerNorm(x) Wᵀ + bias``; see :func:`musictune.kernels.attention.norm_linear`."""
    x, weight = x.contiguous(), weight.contiguous()
    (rows, width), outs = x.shape, len(weight)
    y = torch.empty(rows, outs, dtype=x.dtype, device=x.device)
    block_r, block_o, block_k, warps = product_blocks(rows, width, x.element_size())
    grid = (triton.cdiv(outs, block_o), triton.cdiv(rows, block_r))
    _norm_linear[grid](
        x,
        norm_weight,
        norm_bias,
        weight,
        x if bias is None else bias,
        y,
        rows,
        width,
        outs,
        eps,
        BIAS=bias is not None,
        BLOCK_R=block_r,
        BLOCK_O=block_o,
        BLOCK_K=block_k,
        FULL=interpreted(),
        num_warps=warps,
        num_stages=4,
    )
    return y


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    scale: float,
    longest: int,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    new: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """See :func:`musictune.kernels.attention.attend`."""
    rows, heads, size = query.shape
    query, positions = _dense(query), positions.contiguous()
    key, value = (query, query) if new is None else (_dense(new[0]), _dense(new[1]))
    out = torch.empty(rows, heads, size, dtype=query.dtype, device=query.device)
    block_d, block_n = cache_blocks(size, longest)
    splits, chunk = shares(rows * heads, longest, block_n, _multiprocessors(query.device))
    parts, sums = out, out
    if splits > 1:
        parts = out.new_empty(rows, heads, splits, size, dtype=torch.float32)
        sums = out.new_empty(rows, heads, splits, dtype=torch.float32)
    steps = key_scales is not None and value_scales is not None
    key_steps = key_scales if steps else keys
    value_steps = value_scales if steps else values
    assert key_steps is not None and value_steps is not None
    _attend[(rows, heads, splits)](
        query,
        keys,
        values,
        key_steps,
        value_steps,
        key,
        value,
        positions,
        parts,
        sums,
        size,
        scale,
        longest,
        chunk,
        *query.stride()[:2],
        *keys.stride()[:3],
        *values.stride()[:3],
        *key_steps.stride()[:2],
        *value_steps.stride()[:2],
        *key.stride()[:2],
        *value.stride()[:2],
        APPEND=new is not None,
        EIGHT_BIT=steps,
        SPLITS=splits,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
        num_warps=4,
    )
    if splits > 1:
        _join[(rows, heads)](
            parts,
            sums,
            out,
            size,
            SPLITS=splits,
            BLOCK_S=triton.next_power_of_2(splits),
            BLOCK_D=block_d,
            num_warps=1 if splits <= 8 else 4,
        )
    return out


def product_blocks(rows: int, width: int, bytes_each: int) -> tuple[int, int, int, int]:
    """Rows, outputs and inputs of a tile of the product, and warps.

    Up to 16 rows the product only reads its weight: many small tiles keep all memory busy. With
    more rows a tile of the weight serves more of them.
    """
    # A product of tiles needs 16 in each direction.
    limit = (512 if rows <= 16 else 256) // bytes_each
    block_k = max(16, min(limit, triton.next_power_of_2(width)))
    if rows <= 16:
        return 16, 16, block_k, 2
    return min(64, triton.next_power_of_2(rows)), 32, block_k, 4


def cache_blocks(size: int, longest: int) -> tuple[int, int]:
    """Entries of a key, and keys, of a tile of the cache: 8 KiB or so at 16 bits."""
    block_d = max(8, triton.next_power_of_2(size))
    return block_d, max(16, min(4096 // block_d, 128, triton.next_power_of_2(longest)))


def shares(pairs: int, longest: int, block: int, multiprocessors: int) -> tuple[int, int]:
    """Into how many parts the cache of each (row, head) is cut, and places of a part.

    As many as fill the device, of whole tiles; rows that have not come far leave theirs idle.
    """
    wanted = max(1, _PER_MULTIPROCESSOR * multiprocessors // pairs)
    tiles = triton.cdiv(longest, block)
    chunk = triton.cdiv(tiles, min(wanted, tiles)) * block
    return triton.cdiv(longest, chunk), chunk


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # the interpreter: few shares, of several tiles each
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@triton.jit
def _norm_linear(
    x,
    norm_weight,
    norm_bias,
    weight,
    bias,
    y,
    rows,
    width,
    outs,
    eps,
    BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FULL: tl.constexpr,
):
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    left = x + r[:, None] * width
    # Each program takes the moments anew: rows are few and lie in the cache, the weight does not.
    # Two passes, since E[x²] - E[x]² loses all digits where the mean is large.
    total = tl.zeros((BLOCK_R, BLOCK_K), dtype=tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        there = (r[:, None] < rows) & (k[None, :] < width)
        total += tl.load(left + k[None, :], mask=there, other=0.0).to(tl.float32)
    mean = tl.sum(total, 1) / width
    total = tl.zeros((BLOCK_R, BLOCK_K), dtype=tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        there = (r[:, None] < rows) & (k[None, :] < width)
        centred = tl.load(left + k[None, :], mask=there, other=0.0).to(tl.float32) - mean[:, None]
        total += tl.where(there, centred * centred, 0.0)
    spread = 1 / tl.sqrt(tl.sum(total, 1) / width + eps)
    result = tl.zeros((BLOCK_R, BLOCK_O), dtype=tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        there = (r[:, None] < rows) & (k[None, :] < width)
        value = tl.load(left + k[None, :], mask=there, other=0.0).to(tl.float32)
        gain = tl.load(norm_weight + k, mask=k < width, other=0.0).to(tl.float32)
        shift = tl.load(norm_bias + k, mask=k < width, other=0.0).to(tl.float32)
        value = (value - mean[:, None]) * spread[:, None] * gain[None, :] + shift[None, :]
        right = tl.load(
            weight + o[None, :] * width + k[:, None],
            mask=(o[None, :] < outs) & (k[:, None] < width),
            other=0.0,
        )
        if FULL:  # the interpreter's products of bf16 are wrong without an error
            result += tl.dot(value, right.to(tl.float32), input_precision="ieee")
        else:
            result += tl.dot(value.to(right.dtype), right, input_precision="ieee")
    if BIAS:
        result += tl.load(bias + o, mask=o < outs, other=0.0).to(tl.float32)[None, :]
    tl.store(
        y + r[:, None] * outs + o[None, :],
        result.to(y.dtype.element_ty),
        mask=(r[:, None] < rows) & (o[None, :] < outs),
    )


@triton.jit
def _attend(
    query,
    keys,
    values,
    key_scales,
    value_scales,
    new_key,
    new_value,
    positions,
    parts,
    sums,
    size,
    scale,
    longest,
    chunk,
    query_row,
    query_head,
    key_row,
    key_head,
    key_place,
    value_row,
    value_head,
    value_place,
    key_scale_row,
    key_scale_head,
    value_scale_row,
    value_scale_head,
    new_key_row,
    new_key_head,
    new_value_row,
    new_value_head,
    APPEND: tl.constexpr,
    EIGHT_BIT: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # a large cache has more than 2³¹ entries
    head = tl.program_id(1)
    split = tl.program_id(2)
    d = tl.arange(0, BLOCK_D)
    inside = d < size
    position = tl.load(positions + row).to(tl.int32)
    q = tl.load(query + row * query_row + head * query_head + d, mask=inside, other=0.0)
    q = q.to(tl.float32) * (scale * _LOG2E)
    keys += row * key_row + head * key_head
    values += row * value_row + head * value_head
    key_scales += row * key_scale_row + head * key_scale_head
    value_scales += row * value_scale_row + head * value_scale_head
    first = split * chunk
    bound = tl.minimum(first + chunk, longest)
    last = tl.minimum(bound, position + 1)
    if APPEND:
        owner = (position >= first) & (position < bound)
        at = new_key + row * new_key_row + head * new_key_head
        fresh_key = tl.load(at + d, mask=inside, other=0.0).to(tl.float32)
        at = new_value + row * new_value_row + head * new_value_head
        fresh_value = tl.load(at + d, mask=inside, other=0.0).to(tl.float32)
        # What later steps will read from the cache is what this one uses.
        if EIGHT_BIT:
            fresh_key = _put_codes(
                keys, key_scales, fresh_key, position, key_place, owner, d, inside
            )
            fresh_value = _put_codes(
                values, value_scales, fresh_value, position, value_place, owner, d, inside
            )
        else:
            stored = fresh_key.to(keys.dtype.element_ty)
            tl.store(keys + position * key_place + d, stored, mask=inside & owner)
            fresh_key = stored.to(tl.float32)
            stored = fresh_value.to(values.dtype.element_ty)
            tl.store(values + position * value_place + d, stored, mask=inside & owner)
            fresh_value = stored.to(tl.float32)
    # Each of BLOCK_N lanes keeps its own maximum and sums; they meet once, at the end.
    top = tl.full((BLOCK_N,), float("-inf"), dtype=tl.float32)
    mass = tl.zeros((BLOCK_N,), dtype=tl.float32)
    total = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for start in range(first, last, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        seen = n < last
        old = seen
        if APPEND:
            old = seen & (n < position)
        both = old[:, None] & inside[None, :]
        k = tl.load(keys + n[:, None] * key_place + d[None, :], mask=both, other=0)
        v = tl.load(values + n[:, None] * value_place + d[None, :], mask=both, other=0)
        k, v = k.to(tl.float32), v.to(tl.float32)
        if EIGHT_BIT:
            k *= tl.load(key_scales + n, mask=old, other=0.0).to(tl.float32)[:, None]
            v *= tl.load(value_scales + n, mask=old, other=0.0).to(tl.float32)[:, None]
        if APPEND:
            now = (n == position)[:, None]
            k = tl.where(now, fresh_key[None, :], k)
            v = tl.where(now, fresh_value[None, :], v)
        score = tl.where(seen, tl.sum(k * q[None, :], 1), float("-inf"))
        highest = tl.maximum(top, score)
        safe = tl.where(highest == float("-inf"), 0.0, highest)
        keep = tl.exp2(top - safe)
        share = tl.exp2(score - safe)
        mass = mass * keep + share
        total = total * keep[:, None] + share[:, None] * v
        top = highest
    best = tl.max(top, 0)
    weight = tl.exp2(top - tl.where(best == float("-inf"), 0.0, best))
    mass_all = tl.sum(mass * weight, 0)
    # NaN is passed on: a caller looks for it in the scores.
    result = tl.sum(total * weight[:, None], 0) / tl.where(mass_all == 0.0, 1.0, mass_all)
    place = (row * tl.num_programs(1) + head) * SPLITS + split
    tl.store(parts + place * size + d, result.to(parts.dtype.element_ty), mask=inside)
    if SPLITS > 1:
        log_mass = tl.log2(tl.where(mass_all == 0.0, 1.0, mass_all)) + best
        tl.store(sums + place, tl.where(mass_all == 0.0, float("-inf"), log_mass))


@triton.jit
def _put_codes(cache, scales, fresh, position, stride, owner, d, inside):
    """Write a vector in eight bits; what is read back from there."""
    # Rounded divisions: the same codes as on the CPU.
    step = tl.div_rn(tl.max(tl.abs(fresh), 0), 127.0).to(scales.dtype.element_ty)
    wide = step.to(tl.float32)
    code = tl.floor(tl.div_rn(fresh, tl.maximum(wide, 1.1754943508222875e-38)) + 0.5)
    code = tl.minimum(tl.maximum(code, -127.0), 127.0)
    tl.store(cache + position * stride + d, code.to(tl.int8), mask=inside & owner)
    tl.store(scales + position, step, mask=owner)
    return code * wide


@triton.jit
def _join(
    parts,
    sums,
    out,
    size,
    SPLITS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    s, d = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    inside = d < size
    sums += place * SPLITS
    parts += place * SPLITS * size
    log_mass = tl.load(sums + s, mask=s < SPLITS, other=float("-inf"))
    best = tl.max(log_mass, 0)
    weight = tl.exp2(log_mass - tl.where(best == float("-inf"), 0.0, best))
    both = (s[:, None] < SPLITS) & inside[None, :]
    part = tl.load(parts + s[:, None] * size + d[None, :], mask=both, other=0.0)
    mass = tl.sum(weight, 0)
    result = tl.sum(part * weight[:, None], 0) / tl.where(mass == 0.0, 1.0, mass)
    tl.store(out + place * size + d, result.to(out.dtype.element_ty), mask=inside)
