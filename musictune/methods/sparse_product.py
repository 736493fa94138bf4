"""The product of a layer with a few trained weights, and its backward."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from musictune.methods.sparse import SelectedLinear, State


def plain_product(x: Tensor, base: nn.Linear, dtype: torch.dtype) -> Tensor:
    """``base`` applied to ``x``, computed in ``dtype``."""
    bias = None if base.bias is None else base.bias.to(dtype)
    return F.linear(x.to(dtype), base.weight.to(dtype), bias)


class SelectedProduct(torch.autograd.Function):
    """``x`` through a layer, with gradients of ``x`` and of the layer's ``values`` alone.

    Of the input, backward keeps what the chosen weights meet and nothing if none of them trains.
    The weight itself is the layer's: it is not kept, but asked for as forward saw it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        layer: SelectedLinear,
        state: State,
        dtype: torch.dtype,
    ) -> Tensor:
        """``(..., in)`` to ``(..., out)`` in ``dtype``."""
        ctx.layer, ctx.state, ctx.x = layer, state, (x.shape, x.dtype)
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(_met(x, layer, dtype))
        return plain_product(x, layer.base, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``x`` and ``values``, each only if it is asked for."""
        layer: SelectedLinear = ctx.layer
        shape, dtype = ctx.x
        flat = dy.reshape(-1, dy.shape[-1])
        dx = dvalues = None
        if ctx.needs_input_grad[0]:
            with layer.as_at(ctx.state) as weight:
                dx = (flat @ weight.to(dy.dtype)).view(shape).to(dtype)
        if ctx.needs_input_grad[1]:
            (met,) = ctx.saved_tensors
            dvalues = layer.learn(flat, met.reshape(-1, met.shape[-1]), ctx.state)
        return dx, dvalues, None, None, None


# The last input of which a part was kept: its tensor and version, what was kept of it, and that.
_last: tuple[weakref.ref[Tensor], int, tuple[bytes | None, torch.dtype], Tensor] | None = None


def _met(x: Tensor, layer: SelectedLinear, dtype: torch.dtype) -> Tensor:
    """What the chosen weights meet of ``x``, detached.

    Query, key and value projections read one tensor: where they have chosen the same columns,
    or compute in the same other dtype, they share what is kept.
    """
    global _last
    if layer.columns is None and x.dtype == dtype:
        return x.detach()
    version, asked = x._version, (layer.columns, dtype)
    if _last is not None and _last[0]() is x and _last[1:3] == (version, asked):
        return _last[3]
    kept = x.detach()
    if layer.columns is not None:
        kept = kept.index_select(-1, layer.indices)
    kept = kept.to(dtype)
    _last = (weakref.ref(x, _forget), version, asked, kept)
    return kept


def _forget(dead: weakref.ref[Tensor]) -> None:
    global _last
    if _last is not None and _last[0] is dead:
        _last = None
