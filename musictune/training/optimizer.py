"""AdamW that moves single trained weights of a layer and writes them into it in one go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from musictune.kernels import sparse_adamw_step, use_triton
from musictune.methods.sparse import SelectedLinear


class SparseAdamW(torch.optim.AdamW):
    """``torch.optim.AdamW``, with one kernel per layer of trained elements on CUDA.

    State and its layout are AdamW's own, so each goes on from what the other saved. Without CUDA
    and Triton, and for all other parameters, it is AdamW itself.

    Args:
        parameters: parameters or groups, as for AdamW.
        module: where to look for layers of trained elements.
        options: AdamW's.
    """

    def __init__(self, parameters: Iterable[Any], module: nn.Module, **options: Any) -> None:
        super().__init__(parameters, **options)
        layers = (layer for layer in module.modules() if isinstance(layer, SelectedLinear))
        self._layers = {id(e.values): e for e in layers if e.chosen.kind == "elements"}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` is called first, with gradients, and its result is returned."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        done: list[tuple[nn.Parameter, Tensor]] = []
        for group in self.param_groups:
            if any(group.get(name) for name in ("amsgrad", "maximize", "capturable")):
                continue
            for values in group["params"]:
                layer = self._layers.get(id(values))
                if layer is None or values.grad is None or not use_triton(values):
                    continue
                self._move(layer, group)
                done.append((values, values.grad))
                values.grad = None  # AdamW passes over what has no gradient
        super().step()
        for values, gradient in done:
            values.grad = gradient
        return result

    def _move(self, layer: SelectedLinear, group: dict[str, Any]) -> None:
        values = layer.values
        assert values.grad is not None
        state = self.state[values]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(values)
            state["exp_avg_sq"] = torch.zeros_like(values)
        state["step"] += 1
        sparse_adamw_step(
            values.detach(),
            values.grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            layer.original,
            layer.base.weight.data,
            layer.indices,
            lr=float(group["lr"]),
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            step=int(state["step"]),
        )
        layer.moved()
