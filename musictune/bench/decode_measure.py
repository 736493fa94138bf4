"""Several ways of decoding measured in turn: time, and what they hold in memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from musictune.bench.decode_models import CAPTION
from musictune.bench.decode_sides import Side
from musictune.bench.memory import LiveBytes
from musictune.bench.step_profile import now
from musictune.console import Advance
from musictune.errors import CheckFailed
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen

MEMORY_STEPS = 50
"""Steps at most in which tensors are counted one by one, which is slow on a CPU."""


@dataclass(frozen=True)
class Measured:
    """What was found of one side.

    Attributes:
        name, precision, compiled: of the side.
        steps: decoded in each run.
        wall, cpu: seconds of each run, on the clock and of the process over all its threads.
        held: bytes held at most beside the weights, keys and values included, in a run of
            ``held_steps``; on CUDA by the allocator, elsewhere of the tensors that operations made.
        held_steps: how many those were.
        cache: bytes of keys and values at the end of a run.
        prepared: seconds that packing the weights took, once.
    """

    name: str
    precision: str
    compiled: bool
    steps: int
    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    held: int
    held_steps: int
    cache: int
    prepared: float

    @property
    def title(self) -> str:
        """How it is called in rows."""
        return f"{self.name} {self.precision}" + (" compiled" if self.compiled else "")

    @property
    def step(self) -> float:
        """Seconds of a step in the fastest run: what disturbs a machine only ever slows it."""
        return min(self.wall) / self.steps

    @property
    def median_step(self) -> float:
        """Seconds of a step in the median run."""
        return statistics.median(self.wall) / self.steps

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self) | {"step": self.step, "median_step": self.median_step}


def measure(
    sides: Sequence[Side], model: MusicGen, frames: int, repeats: int, advance: Advance
) -> list[Measured]:
    """Play each side ``repeats`` times in turn, after one run to warm up.

    Args:
        sides: not played yet.
        model: whose shape and device they have.
        frames: of each run.
        repeats: rounds; each begins with another side.
        advance: told of each run.

    Raises:
        CheckFailed: a side made another number of codes than the others.
    """
    delay = model.codebooks // model.channels
    steps = frames + delay - 1
    held_steps = steps if model.device.type == "cuda" else min(steps, MEMORY_STEPS)
    held = []
    for side in sides:
        held.append(_held(side, model.device, held_steps - delay + 1, held_steps))
        advance(text=side.title)
    gc.collect()
    gc.disable()
    try:
        for turn in range(repeats):
            for i in range(len(sides)):
                side = sides[(turn + i) % len(sides)]
                codes = _timed(side, model.device, frames, turn)
                if codes.shape[1:] != (model.codebooks, frames):
                    raise CheckFailed(f"{side.title} made codes {list(codes.shape)}, not {frames}")
                advance(text=side.title)
    finally:
        gc.enable()
    return [
        Measured(
            side.name, side.precision, side.compiled, steps, tuple(side.wall), tuple(side.cpu),
            bytes_, held_steps, side.cache_bytes(steps), side.prepared,
        )
        for side, bytes_ in zip(sides, held, strict=True)
    ]  # fmt: skip


def measure_codec(
    model: MusicGen, clips: int, frames: int, repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of turning ``clips`` of ``frames`` into audio: as we do, and as transformers does."""
    codes = torch.randint(model.vocabulary, (clips, model.codebooks, frames))
    batch = Batch(codes, torch.full((clips,), frames), (CAPTION,) * clips).to(model.device)
    codec = model.network.audio_encoder

    @torch.inference_mode()
    def theirs() -> None:
        for side in range(model.channels):
            codec.decode(batch.codes[None, :, side :: model.channels], [None] * clips)

    ways: list[tuple[Any, list[float]]] = [(lambda: model.decode(batch), []), (theirs, [])]
    for turn in range(repeats + 1):
        for way, found in ways if turn % 2 else ways[::-1]:
            start = now(model.device)
            way()
            if turn:
                found.append(now(model.device) - start)
    return ways[0][1], ways[1][1]


def _held(side: Side, device: torch.device, frames: int, steps: int) -> int:
    """Also warms up."""
    before = side.cache_bytes(steps) if side.holds_cache else 0
    if device.type == "cuda":
        side.play(frames, 0, False)  # what is allocated only once is not what a run holds
        torch.cuda.reset_peak_memory_stats(device)
        there = torch.cuda.memory_allocated(device)
        side.play(frames, 0, False)
        torch.cuda.synchronize(device)
        return before + torch.cuda.max_memory_allocated(device) - there
    if side.compiled:
        side.play(frames, 0, False)  # nothing is compiled while tensors are counted
    with LiveBytes() as live:
        side.play(frames, 0, False)
    return before + live.peak


def _timed(side: Side, device: torch.device, frames: int, seed: int) -> Tensor:
    start, cpu = now(device), time.process_time()
    codes = side.play(frames, seed, False)
    side.wall.append(now(device) - start)
    side.cpu.append(time.process_time() - cpu)
    return codes
