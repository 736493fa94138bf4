"""A whole step on a GPU without the host: one CUDA graph per batch size and length of the cache.

Launching a step's kernels one by one takes longer than the kernels do. Everything that a step
reads and writes therefore lies in tensors that never move, where each clip is included, and a
recorded step is played again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from musictune.generation.attend import DevicePlaces
from musictune.generation.cache import Cache
from musictune.generation.decoder import HALVES, Decoder, Heard
from musictune.generation.sampling import Sampling, draw
from musictune.kernels import sampling as kernels

_BUCKET = 256
"""Positions by which the part of the cache that is looked at grows; a graph has one length."""

_GRAPHS = 64
"""Kept at most; the oldest makes room."""

SAMPLED = -1
"""Stands in a column for a token that is to be drawn."""


@dataclass(eq=False)
class Rows:
    """The columns of clips, a row per place; nothing here is ever replaced.

    Attributes:
        column: ``(batch, codebooks)`` the newest.
        fixed: ``(batch, steps, codebooks)`` what is known beforehand, else ``SAMPLED``.
        luck: ``(batch, steps, codebooks)`` uniform random numbers.
        made: ``(batch, steps, codebooks)`` what was played.
        finite: ``(batch,)`` whether all scores were numbers.
    """

    column: Tensor
    fixed: Tensor
    luck: Tensor
    made: Tensor
    finite: Tensor

    def move(self, source: int, target: int) -> None:
        """The clip of one place goes to another."""
        for held in (self.column, self.fixed, self.luck, self.made, self.finite):
            held[target] = held[source]


class DeviceStep:
    """Steps of all places at once, the state of which the device keeps.

    Args:
        decoder: what plays.
        cache: of all places.
        rows: of all places.
        halves: rows of the cache per clip.
        capture: record CUDA graphs; False runs the same operations one by one, on any device.

    Attributes:
        captured: graphs recorded.
        replayed: steps that a graph played.
    """

    def __init__(
        self, decoder: Decoder, cache: Cache, rows: Rows, halves: int, capture: bool = True
    ) -> None:
        self.decoder, self.cache, self.rows, self.halves = decoder, cache, rows, halves
        self.capture = capture
        self.captured = self.replayed = 0
        batch, device = len(rows.column), decoder.device
        self._batch = batch
        self._steps, self._starts, self._seeds, self._top_k = (
            torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(4)
        )
        self._temperature, self._guidance = (torch.ones(batch, device=device) for _ in range(2))
        self._index = torch.arange(batch, device=device)
        self._samplings: tuple[Sampling, ...] = ()
        self._graphs: dict[object, torch.cuda.CUDAGraph] = {}

    def settle(
        self, steps: Sequence[int], starts: Sequence[int], seeds: Sequence[int],
        samplings: Sequence[Sampling],
    ) -> None:  # fmt: skip
        """Tell the device who is in which place; for whenever somebody came or left."""
        self._samplings = tuple(samplings)
        values = (
            (self._steps, steps), (self._starts, starts), (self._seeds, seeds),
            (self._top_k, [each.top_k for each in samplings]),
            (self._temperature, [each.temperature for each in samplings]),
            (self._guidance, [each.guidance for each in samplings]),
        )  # fmt: skip
        for held, given in values:
            held.zero_()
            held[: len(given)] = torch.tensor(given, dtype=held.dtype)
        self._temperature[len(samplings) :] = 1

    @torch.no_grad()
    def step(self, longest: int, heard: Heard | None) -> None:
        """Play a column of every place.

        Args:
            longest: the largest position of this step.
            heard: by all places, not only those taken; in tensors that do not move.
        """
        clips = _rounded(len(self._samplings), self._batch)
        bucket = min(-(-(longest + 1) // _BUCKET) * _BUCKET, self.cache.capacity)
        if not self.capture:
            self._run(clips, bucket, heard)
            return
        place = None if heard is None else heard.mask.data_ptr()
        nucleus = self._samplings if self._has_nucleus else None
        key = (clips, bucket, place, nucleus)
        if key not in self._graphs:
            if len(self._graphs) >= _GRAPHS:  # users choose the samplings that make up a key
                del self._graphs[next(iter(self._graphs))]
            self._graphs[key] = self._record(clips, bucket, heard)
            self.captured += 1
        self._graphs[key].replay()
        self.replayed += 1

    @property
    def _has_nucleus(self) -> bool:
        return any(each.top_p for each in self._samplings)

    def _record(self, clips: int, longest: int, heard: Heard | None) -> torch.cuda.CUDAGraph:
        """Run once to load kernels, put everything back, and record."""
        kept = [t.clone() for t in (self._steps, self.rows.column, self.rows.finite)]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self._run(clips, longest, heard)
        torch.cuda.current_stream().wait_stream(aside)
        for held, before in zip(
            (self._steps, self.rows.column, self.rows.finite), kept, strict=True
        ):
            held.copy_(before)
        graph = torch.cuda.CUDAGraph()
        # A server decodes audio in another thread meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._run(clips, longest, heard)
        return graph

    def _run(self, clips: int, longest: int, heard: Heard | None) -> None:
        rows, decoder, index = self.rows, self.decoder, self._index[:clips]
        # Places that nobody has would else step past the end.
        steps = self._steps[:clips].clamp(max=rows.made.shape[1] - 1)
        positions = (self._starts[:clips] + steps).clamp(max=longest - 1)
        hidden = decoder.embed(rows.column[:clips], positions)
        if self.halves == HALVES:
            hidden = hidden.repeat_interleave(HALVES, 0)
        at = DevicePlaces(positions.repeat_interleave(self.halves), longest)
        each = 0 if heard is None else len(heard.said) // self._batch
        listened = None if heard is None else heard[slice(0, clips * each)]
        hidden = decoder.step(hidden, self.cache, at, listened, self.halves)
        tokens, finite = self._draw(hidden, clips, steps)
        fixed = rows.fixed[index, steps]
        column = torch.where(fixed == SAMPLED, tokens, fixed)
        rows.column[:clips] = column
        rows.made[index, steps] = column
        rows.finite[:clips] &= finite
        self._steps[:clips] += 1

    def _draw(self, hidden: Tensor, clips: int, steps: Tensor) -> tuple[Tensor, Tensor]:
        guided = self.halves == HALVES
        heads = self.decoder.head_weights
        if heads is None or self._has_nucleus:
            scale = self._guidance[:clips, None].to(hidden.dtype) if guided else None
            scores = self.decoder.scores(hidden, scale)
            luck = self.rows.luck[self._index[:clips], steps]
            idle = (Sampling(),) * (clips - len(self._samplings))
            drawn = [
                draw(scores[i], luck[i], each) for i, each in enumerate(self._samplings + idle)
            ]
            return torch.stack(drawn), scores.isfinite().flatten(1).all(1)
        if guided:
            hidden = hidden.unflatten(0, (-1, HALVES)).transpose(0, 1).flatten(0, 1)
        tokens, finite = kernels.sample(
            hidden, heads, self._guidance[:clips] if guided else None, self._temperature[:clips],
            self._top_k[:clips], self._seeds[:clips], steps,
        )  # fmt: skip
        return tokens, finite.all(1)


def _rounded(clips: int, batch: int) -> int:
    """The next power of two, so that few graphs serve all batch sizes."""
    return min(1 << (clips - 1).bit_length(), batch)
