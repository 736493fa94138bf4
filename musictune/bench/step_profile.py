"""Where the time of one training step goes, and how much of it is arithmetic that must be done."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from musictune.kernels import codebook_loss

FORWARD = "products, forward"
INPUT = "products, input gradient"
WEIGHT = "products, weight gradient"
ATTENTION = "attention"
LOSS = "loss"
OPTIMISER = "optimiser"
REST = "other operations"
BETWEEN = "between operations"
CATEGORIES = (FORWARD, INPUT, WEIGHT, ATTENTION, LOSS, OPTIMISER, REST, BETWEEN)

PRODUCTS = ("mm", "bmm", "addmm", "addmm_", "addbmm", "baddbmm", "_linear_pointwise", "linear")
"""Operations that are matrix products, by name."""

_OF_LOSS = {"_tile": FORWARD, "_add_product": WEIGHT}
"""What products of the fused loss are, by its function: its forward pass makes gradients too."""


@dataclass(frozen=True)
class Profile:
    """One step, taken apart.

    Attributes:
        seconds: by category; `LOSS` is the fused loss without its matrix products, which are among
            the products; `BETWEEN` is what no operation accounts for: Python and dispatch.
        flops: of the matrix products, by category; a multiplication and an addition are two.
        slowest: seconds of the single operations that took longest in all.
    """

    seconds: dict[str, float]
    flops: dict[str, float]
    slowest: dict[str, float]

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "seconds": {name: round(value, 6) for name, value in self.seconds.items()},
            "flops": dict(self.flops),
            "slowest": {name: round(value, 6) for name, value in self.slowest.items()},
        }


class StepProfile(TorchDispatchMode):
    """Times each operation of a step and counts the work of its matrix products.

    Args:
        tokens: sizes of the dimension that a weight's gradient sums over: clips times steps, and
            clips times words of their texts.
        device: whose work is waited for.

    Attributes:
        phase: ``forward``, ``backward`` or ``optimiser``; the caller sets it.
    """

    def __init__(self, tokens: set[int], device: torch.device) -> None:
        super().__init__()
        self.phase = "forward"
        self._tokens = tokens
        self._device = device
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._flops: defaultdict[str, float] = defaultdict(float)
        self._operations: defaultdict[str, float] = defaultdict(float)

    def begin(self, phase: str) -> None:
        """Hear that ``phase`` begins."""
        self.phase = phase

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func`` on the clock."""
        function = _function_of_loss()
        asked = time.perf_counter()
        start = now(self._device)
        if function is not None:
            # Nothing that is dispatched is still under way: this was the wait for a Triton kernel.
            self._seconds[LOSS] += start - asked
        made = func(*args, **(kwargs or {}))
        taken = now(self._device) - start
        name = func.overloadpacket.__name__
        category = self._category(name, args, function)
        self._seconds[category] += taken
        self._operations[f"{self.phase}: {name}"] += taken
        if name in PRODUCTS:
            self._flops[category] += _flops(args, made)
        return made

    def profile(self, total: float) -> Profile:
        """What has been seen, of a step that takes ``total`` seconds when nobody watches."""
        seconds = {name: self._seconds[name] for name in CATEGORIES}
        seconds[BETWEEN] = max(0.0, total - sum(self._seconds.values()))
        slowest = sorted(self._operations.items(), key=lambda pair: -pair[1])[:12]
        return Profile(seconds, dict(self._flops), dict(slowest))

    def _category(self, name: str, args: tuple[Any, ...], function: str | None) -> str:
        if self.phase == "optimiser":
            return OPTIMISER
        if function is not None:
            return _OF_LOSS.get(function, INPUT) if name in PRODUCTS else LOSS
        if "attention" in name:
            return ATTENTION
        if name in PRODUCTS:
            if self.phase == "forward":
                return FORWARD
            return WEIGHT if sums_over(args) in self._tokens else INPUT
        return REST


def _function_of_loss() -> str | None:
    """Which function of the fused loss runs, forward or backward; None if none does."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == codebook_loss.__file__:
            return frame.f_code.co_name
        frame = frame.f_back
    return None


def sums_over(args: tuple[Any, ...]) -> int:
    """The dimension that a matrix product of ``args`` sums over; 0 if they are none."""
    matrices = [a for a in args if isinstance(a, Tensor) and a.dim() >= 2]
    return int(matrices[-2].shape[-1]) if len(matrices) >= 2 else 0


def now(device: torch.device) -> float:
    """Seconds on the clock once ``device`` has done all it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _flops(args: tuple[Any, ...], made: Any) -> float:
    return 2.0 * sums_over(args) * made.numel() if isinstance(made, Tensor) else 0.0
