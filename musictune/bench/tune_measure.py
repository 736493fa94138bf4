"""One side of `musictune bench tune` measured: time, memory, and where the time goes."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from musictune.bench.memory import LiveBytes, optimizer_bytes, saved_for_backward, tensor_bytes
from musictune.bench.step_profile import PRODUCTS, Profile, StepProfile, now, sums_over
from musictune.bench.tune_sides import Side
from musictune.console import Advance
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen


@dataclass(frozen=True)
class Measured:
    """What was found of one side. All sizes are bytes, all times seconds per step.

    Attributes:
        name: of the side.
        trained: how many weights it trains.
        wall, cpu: of each step, on the clock and of the process over all its threads.
        saved: what autograd saved for backward, without parameters and buffers.
        state: gradients and the optimiser's state.
        peak: most that a step holds at one time beside what was there before it; on CUDA the
            allocator's figure, elsewhere the tensors that operations made.
        weight_gradients: most of that in products that sum over tokens in backward.
        adapter: parameters and buffers that the base has not.
        profile: where the time of a step goes, if asked for.
    """

    name: str
    trained: int
    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    saved: int
    state: int
    peak: int
    weight_gradients: int
    adapter: int
    profile: Profile | None = None

    @property
    def step(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.wall)

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        values = asdict(self) | {"step": self.step}
        return values | {"profile": None if self.profile is None else self.profile.as_json}


def measure(
    sides: Sequence[Side],
    model: MusicGen,
    batch: Batch,
    repeats: int,
    advance: Advance,
    *,
    profiled: bool = False,
) -> list[Measured]:
    """Measure ``sides`` in turn, ``repeats`` rounds of a step each, after two steps to warm up.

    Args:
        sides: not stepped yet.
        model: the base that they are copies of.
        batch: of every step.
        repeats: rounds; each begins with another side.
        advance: told of each step.
        profiled: take one more step of each side apart.
    """
    memory = []
    for side in sides:
        memory.append(_memory(side, model, batch))
        advance(text=side.name)
        side.step(batch)
        advance(text=side.name)
    gc.collect()
    gc.disable()
    try:
        for turn in range(repeats):
            for i in range(len(sides)):
                _timed(side := sides[(turn + i) % len(sides)], batch)
                advance(text=side.name)
    finally:
        gc.enable()
    found = []
    for side, figures in zip(sides, memory, strict=True):
        profile = None
        if profiled:
            profile = _profile(side, batch)
            advance(text=side.name)
        found.append(
            Measured(
                side.name,
                side.trained,
                tuple(side.wall),
                tuple(side.cpu),
                profile=profile,
                **figures,
            )
        )
    return found


def _timed(side: Side, batch: Batch) -> None:
    device = side.model.device
    start, cpu = now(device), time.process_time()
    side.step(batch)
    side.wall.append(now(device) - start)
    side.cpu.append(time.process_time() - cpu)


def _memory(side: Side, model: MusicGen, batch: Batch) -> dict[str, int]:
    """Also the first of the steps that warm up."""
    with saved_for_backward([model, side.model]) as saved:
        loss = side.model.nll(batch).mean()
    del loss
    tokens = sizes_of_sums(side.model, batch)
    phases = ["forward"]

    def is_weight_gradient(func: Any, args: tuple[Any, ...], made: Tensor) -> bool:
        if phases[-1] != "backward" or func.overloadpacket.__name__ not in PRODUCTS:
            return False
        return sums_over(args) in tokens

    device = side.model.device
    before = _reset_peak(device)
    with LiveBytes(is_weight_gradient) as live:
        side.step(batch, phases.append)
    base = tensor_bytes([*model.backbone.parameters(), *model.backbone.buffers()])
    own = tensor_bytes([*side.model.backbone.parameters(), *side.model.backbone.buffers()])
    return {
        "saved": saved.total,
        "state": optimizer_bytes(side.optimizer),
        "peak": _peak(device) - before if device.type == "cuda" else live.peak,
        "weight_gradients": live.apart_peak,
        "adapter": own - base,
    }


def _profile(side: Side, batch: Batch) -> Profile:
    watch = StepProfile(sizes_of_sums(side.model, batch), side.model.device)
    with watch:
        side.step(batch, watch.begin)
    return watch.profile(statistics.median(side.wall))


def sizes_of_sums(model: MusicGen, batch: Batch) -> set[int]:
    """What the gradient of a weight sums over: positions of all clips, or words of their texts."""
    steps = model.delay(batch.codes, batch.lengths, model.pad)[0].shape[-1]
    words = model.tokens(batch.texts)[0].shape[-1]
    return {len(batch) * steps, len(batch) * words}


def _reset_peak(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device) -> int:
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)
