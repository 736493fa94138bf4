# mypy: disable-error-code="no-untyped-def"
"""The Triton side of :mod:`musictune.kernels.sparse_delta`; imported only where it runs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from musictune.kernels.runtime import interpreted

_ENTRIES = 32
"""Entries of a change that a program looks at together."""


def changed_product(
    x: Tensor, weight: Tensor, rows: Tensor, columns: Tensor, values: Tensor, bias: Tensor | None
) -> Tensor:
    """``x (W + Δ)ᵀ + bias``, where ``Δ[rows, columns] = values`` and ``rows`` are sorted."""
    x = x.contiguous()
    tokens, width = x.shape
    outs = len(weight)
    y = torch.empty(tokens, outs, dtype=x.dtype, device=x.device)
    block_t, block_o, block_k = _block(tokens, 64), _block(outs, 64), _block(width, 32)
    edges = torch.arange(triton.cdiv(outs, block_o) + 1, device=x.device) * block_o
    bounds = torch.searchsorted(rows, edges)
    grid = (triton.cdiv(tokens, block_t), triton.cdiv(outs, block_o))
    _changed_product[grid](
        x,
        weight,
        x if bias is None else bias,
        rows,
        columns,
        values,
        bounds,
        y,
        tokens,
        outs,
        width,
        weight.stride(0),
        weight.stride(1),
        BIAS=bias is not None,
        BLOCK_T=block_t,
        BLOCK_O=block_o,
        BLOCK_K=block_k,
        BLOCK_E=_ENTRIES,
        FULL=interpreted(),
    )
    return y


def sampled_gradient(dy: Tensor, x: Tensor, indices: Tensor, in_features: int) -> Tensor:
    """``dyᵀ x`` at ``indices``: tiles live in registers, those without entries are not formed."""
    dy, x = dy.contiguous(), x.contiguous()
    tokens, outs = dy.shape
    block_t, block_o, block_k = _block(tokens, 32), _block(outs, 64), _block(in_features, 64)
    across = triton.cdiv(in_features, block_k)
    rows, columns = indices // in_features, indices % in_features
    tile, order = (rows // block_o * across + columns // block_k).sort(stable=True)
    tiles, counts = tile.unique_consecutive(return_counts=True)
    bounds = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    local = (rows % block_o * block_k + columns % block_k)[order].to(torch.int32)
    result = torch.empty(len(indices), dtype=torch.float32, device=x.device)
    _sampled_gradient[(len(tiles),)](
        dy,
        x,
        tiles,
        bounds,
        local,
        order,
        result,
        tokens,
        outs,
        in_features,
        across,
        BLOCK_T=block_t,
        BLOCK_O=block_o,
        BLOCK_K=block_k,
        BLOCK_E=_ENTRIES,
        FULL=interpreted(),
    )
    return result


def adamw(tensors: tuple[Tensor, ...], numbers: tuple[float, ...]) -> None:
    """One step; see :func:`musictune.kernels.sparse_delta.sparse_adamw_step`."""
    count, block = len(tensors[0]), 1024
    _adamw[(triton.cdiv(count, block),)](*tensors, *numbers, count, BLOCK=block)


def _block(size: int, limit: int) -> int:
    # A product of tiles needs 16 in each direction.
    return max(16, min(limit, triton.next_power_of_2(size)))


@triton.jit
def _changed_product(
    x,
    weight,
    bias,
    rows,
    columns,
    values,
    bounds,
    y,
    tokens,
    outs,
    width,
    stride_o,
    stride_k,
    BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    FULL: tl.constexpr,
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    total = tl.zeros((BLOCK_T, BLOCK_O), dtype=tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        left = tl.load(
            x + t[:, None] * width + k[None, :],
            mask=(t[:, None] < tokens) & (k[None, :] < width),
            other=0.0,
        )
        right = tl.load(
            weight + o[None, :] * stride_o + k[:, None] * stride_k,
            mask=(o[None, :] < outs) & (k[:, None] < width),
            other=0.0,
        )
        if FULL:  # the interpreter's products of bf16 are wrong without an error
            left, right = left.to(tl.float32), right.to(tl.float32)
        total += tl.dot(left, right, input_precision="ieee")
    # The change of these outputs: each entry adds a column of x to one column of the tile, which
    # is a product with a matrix that has one value per row.
    first = tl.load(bounds + tl.program_id(1))
    last = tl.load(bounds + tl.program_id(1) + 1)
    for start in range(first, last, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        there = e < last
        row = tl.load(rows + e, mask=there, other=-1)
        column = tl.load(columns + e, mask=there, other=0)
        value = tl.load(values + e, mask=there, other=0.0).to(tl.float32)
        left = tl.load(
            x + t[:, None] * width + column[None, :],
            mask=(t[:, None] < tokens) & there[None, :],
            other=0.0,
        ).to(tl.float32)
        right = tl.where(row[:, None] == o[None, :], value[:, None], 0.0)
        total += tl.dot(left, right, input_precision="ieee")
    if BIAS:
        total += tl.load(bias + o, mask=o < outs, other=0.0).to(tl.float32)[None, :]
    tl.store(
        y + t[:, None] * outs + o[None, :],
        total.to(y.dtype.element_ty),
        mask=(t[:, None] < tokens) & (o[None, :] < outs),
    )


@triton.jit
def _sampled_gradient(
    dy,
    x,
    tiles,
    bounds,
    local,
    places,
    result,
    tokens,
    outs,
    width,
    across,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    FULL: tl.constexpr,
):
    tile = tl.load(tiles + tl.program_id(0))
    o = (tile // across) * BLOCK_O + tl.arange(0, BLOCK_O)
    k = (tile % across) * BLOCK_K + tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_O, BLOCK_K), dtype=tl.float32)
    for start in range(0, tokens, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        left = tl.load(
            dy + t[None, :] * outs + o[:, None],
            mask=(t[None, :] < tokens) & (o[:, None] < outs),
            other=0.0,
        )
        right = tl.load(
            x + t[:, None] * width + k[None, :],
            mask=(t[:, None] < tokens) & (k[None, :] < width),
            other=0.0,
        )
        if FULL:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total += tl.dot(left, right, input_precision="ieee")
    flat = tl.reshape(total, (BLOCK_O * BLOCK_K,))
    first = tl.load(bounds + tl.program_id(0))
    last = tl.load(bounds + tl.program_id(0) + 1)
    for start in range(first, last, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        there = e < last
        picked = tl.gather(flat, tl.load(local + e, mask=there, other=0), 0)
        tl.store(result + tl.load(places + e, mask=there, other=0), picked, mask=there)


@triton.jit
def _adamw(
    values,
    gradient,
    exp_avg,
    exp_avg_sq,
    original,
    weight,
    indices,
    decay,
    slow,
    fast,
    rate,
    spread,
    eps,
    count,
    BLOCK: tl.constexpr,
):
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = e < count
    g = tl.load(gradient + e, mask=there, other=0.0)
    mean = tl.load(exp_avg + e, mask=there, other=0.0)
    mean = slow * mean + (1 - slow) * g
    square = tl.load(exp_avg_sq + e, mask=there, other=0.0)
    square = fast * square + (1 - fast) * g * g
    value = tl.load(values + e, mask=there, other=0.0) * decay
    value -= rate * mean / (tl.sqrt(square) / spread + eps)
    tl.store(exp_avg + e, mean, mask=there)
    tl.store(exp_avg_sq + e, square, mask=there)
    tl.store(values + e, value, mask=there)
    before = tl.load(original + e, mask=there, other=0.0).to(tl.float32)
    place = tl.load(indices + e, mask=there, other=0)
    tl.store(weight + place, (before + value).to(weight.dtype.element_ty), mask=there)
