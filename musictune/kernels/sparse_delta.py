"""Products with a matrix that differs from another in few entries, and training those entries.

A change of a ``(out, in)`` matrix is given as ``indices``, int64 flat positions, sorted and
unique, and fp32 ``values``. Each function has one signature and runs in Triton on CUDA, in plain
torch elsewhere.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from musictune.kernels.runtime import use_triton

_TILE = 128
"""Rows of a dense tile of a gradient; from 64 to 256 it made no difference on a CPU."""

_SPARSE_BELOW = {torch.float32: 0.2, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Share of entries up to which one dot product per entry beats dense tiles, measured on a CPU."""


def linear_with_delta(
    x: Tensor, weight: Tensor, indices: Tensor, values: Tensor, bias: Tensor | None = None
) -> Tensor:
    """``x (W + Δ)ᵀ + bias`` without writing to ``weight`` or copying it.

    Gradients reach ``x``, ``values`` and ``bias``; ``weight`` is frozen.

    Args:
        x: ``(..., in)``.
        weight: ``(out, in)``, of the dtype of ``x``.
        indices: ``(entries,)`` where the change lies.
        values: ``(entries,)`` fp32, the change.
        bias: ``(out,)`` or None.

    Returns:
        ``(..., out)`` in the dtype of ``x``; sums are fp32.
    """
    y: Tensor = _LinearWithDelta.apply(x.reshape(-1, x.shape[-1]), weight, indices, values, bias)
    return y.view(*x.shape[:-1], len(weight))


def sampled_gradient(dy: Tensor, x: Tensor, indices: Tensor, in_features: int) -> Tensor:
    """The gradient of a matrix at a few entries: ``dyᵀ x`` there, and nowhere else.

    Where few entries are asked for, each is one dot product (a sampled dense-dense product); where
    many are, dense tiles of the rows that hold any are formed one after another.

    Args:
        dy: ``(tokens, out)``, the gradient of the layer's output.
        x: ``(tokens, in)``, its input, of the same dtype.
        indices: ``(entries,)``.
        in_features: the width of ``x``.

    Returns:
        ``(entries,)`` fp32.
    """
    if use_triton(dy, x, indices):
        from musictune.kernels import sparse_delta_triton

        return sparse_delta_triton.sampled_gradient(dy, x, indices, in_features)
    if len(indices) < _SPARSE_BELOW.get(x.dtype, 0) * dy.shape[1] * in_features:
        return _dot_products(dy, x, indices, in_features)
    return _tiles(dy, x, indices, in_features)


def largest_gradients(dy: Tensor, x: Tensor, excluded: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Where outside ``excluded`` the gradient ``dyᵀ x`` of a matrix is largest.

    One dense tile of rows is alive at a time.

    Args:
        dy: ``(tokens, out)``.
        x: ``(tokens, in)``.
        excluded: flat positions to pass over, sorted and unique.
        count: how many to find at most.

    Returns:
        Flat positions and fp32 absolute gradients, the largest first.
    """
    width = x.shape[1]
    best, where = dy.new_empty(0, dtype=torch.float32), excluded.new_empty(0)
    starts = range(0, dy.shape[1], _TILE)
    bounds = _bounds(excluded, [start * width for start in (*starts, dy.shape[1])])
    for i, first in enumerate(starts):
        tile = (dy[:, first : first + _TILE].t() @ x).float().abs_().flatten()
        tile[excluded[bounds[i] : bounds[i + 1]] - first * width] = -1
        top, places = tile.topk(min(count, len(tile)))
        best, where = torch.cat([best, top]), torch.cat([where, places + first * width])
        best, order = best.topk(min(count, len(best)))
        where = where[order]
        del tile  # before the next one is made
    free = best >= 0
    return where[free], best[free]


@torch.no_grad()
def sparse_adamw_step(
    values: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    original: Tensor,
    weight: Tensor,
    indices: Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """AdamW (Loshchilov and Hutter 2019) on a change, then ``original + values`` into ``weight``.

    Args:
        values, gradient, exp_avg, exp_avg_sq: ``(entries,)`` fp32; all but ``gradient`` change.
        original: ``(entries,)`` the entries of ``weight`` without the change, in its dtype.
        weight: ``(out, in)``, contiguous; its entries ``indices`` change.
        indices: ``(entries,)``.
        lr, betas, eps, weight_decay: as in ``torch.optim.AdamW``; the decay is of the change.
        step: counts from 1.
    """
    slow, fast = betas[0], betas[1]
    rate = lr / (1 - slow**step)
    spread = math.sqrt(1 - fast**step)
    if use_triton(values, weight, indices):
        from musictune.kernels import sparse_delta_triton

        sparse_delta_triton.adamw(
            (values, gradient, exp_avg, exp_avg_sq, original, weight, indices),
            (1 - lr * weight_decay, slow, fast, rate, spread, eps),
        )
        return
    values.mul_(1 - lr * weight_decay)
    exp_avg.lerp_(gradient, 1 - slow)
    exp_avg_sq.mul_(fast).addcmul_(gradient, gradient, value=1 - fast)
    values.addcdiv_(exp_avg, exp_avg_sq.sqrt().div_(spread).add_(eps), value=-rate)
    weight.view(-1).index_copy_(0, indices, (original + values).to(weight.dtype))


class _LinearWithDelta(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, indices: Tensor, values: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight, indices, values)
        rows, columns = indices // x.shape[1], indices % x.shape[1]
        return _changed_product(x, weight, rows, columns, values, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, indices, values = ctx.saved_tensors
        wanted, width = ctx.needs_input_grad, x.shape[1]
        dx = dvalues = dbias = None
        if wanted[0]:
            columns, order = (indices % width).sort(stable=True)
            rows = (indices // width)[order]
            dx = _changed_product(dy, weight.t(), columns, rows, values[order], None)
        if wanted[3]:
            dvalues = sampled_gradient(dy, x, indices, width)
        if wanted[4]:
            dbias = dy.sum(0)
        return dx, None, None, dvalues, dbias


def _changed_product(
    x: Tensor, weight: Tensor, rows: Tensor, columns: Tensor, values: Tensor, bias: Tensor | None
) -> Tensor:
    """``x (W + Δ)ᵀ + bias``; ``rows`` are sorted."""
    if use_triton(x, weight, values):
        from musictune.kernels import sparse_delta_triton

        return sparse_delta_triton.changed_product(x, weight, rows, columns, values, bias)
    plain = F.linear(x, weight, bias)
    change = _compressed(rows, columns, values.float(), (len(weight), x.shape[1]))
    return plain + (change @ x.t().float()).t().to(plain.dtype)


def _dot_products(dy: Tensor, x: Tensor, indices: Tensor, width: int) -> Tensor:
    pattern = _compressed(
        indices // width,
        indices % width,
        torch.zeros(len(indices), device=x.device),
        (dy.shape[1], width),
    )
    return torch.sparse.sampled_addmm(pattern, dy.t().float(), x.float(), beta=0.0).values()


def _tiles(dy: Tensor, x: Tensor, indices: Tensor, width: int) -> Tensor:
    result = torch.empty(len(indices), dtype=torch.float32, device=x.device)
    held, local = (indices // width).unique_consecutive(return_inverse=True)
    flat = local * width + indices % width  # in the matrix of the rows that hold entries
    starts = range(0, len(held), _TILE)
    bounds = _bounds(flat, [start * width for start in (*starts, len(held))])
    for i, first in enumerate(starts):
        part = slice(bounds[i], bounds[i + 1])
        tile = dy.index_select(1, held[first : first + _TILE]).t() @ x
        result[part] = tile.view(-1)[flat[part] - first * width].float()
        del tile  # before the next one is made
    return result


def _bounds(ordered: Tensor, edges: list[int]) -> list[int]:
    bounds: list[int] = torch.searchsorted(ordered, ordered.new_tensor(edges)).tolist()
    return bounds


def _compressed(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A matrix of ``shape`` in compressed rows; ``rows`` are sorted."""
    _quiet_once()
    starts = torch.searchsorted(rows, torch.arange(shape[0] + 1, device=rows.device))
    return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


@functools.cache
def _quiet_once() -> None:
    """torch says once per process that its compressed rows are in beta; say it to nobody."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)
