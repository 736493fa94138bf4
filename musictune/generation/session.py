"""Continuous batching: clips of different lengths come and go while the others play on."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from musictune import console
from musictune.errors import InputError
from musictune.generation.attend import Places
from musictune.generation.decoder import HALVES, Changes, Decoder
from musictune.generation.graphs import SAMPLED, DeviceStep, Rows
from musictune.generation.listening import Listening
from musictune.generation.prefixes import Prefixes
from musictune.generation.request import UNKNOWN, Request
from musictune.generation.sampling import draw, uniforms
from musictune.models.devices import free_memory

if TYPE_CHECKING:
    from musictune.generation.engine import Engine

_LOOK = 64  # steps between two looks at whether all scores were numbers


@dataclass(eq=False)
class _Playing:
    """A clip in its place.

    Attributes:
        frames: of the codes that it gives.
        steps: columns until all codebooks have them, or it stops.
        step: the next column to be drawn.
        start: the position in the cache where column inputs begin; before it stands a prefix.
    """

    ticket: int
    request: Request
    frames: int
    steps: int
    fixed: Tensor
    luck: Tensor
    step: int = 0
    start: int = 0

    @property
    def position(self) -> int:
        return self.start + self.step


class Session:
    """Decodes a batch of requests, one column of tokens at a time.

    The model's weights are packed when the session begins; what happens to the model later is not
    heard. A clip's music depends on its own request only, not on its neighbours, and is the same
    whenever it joins. For one thread.

    Args:
        engine: what plays.
        batch: clips that play at once; others wait.
        longest: seconds of the longest request; what the model was trained on by default.
        guided: whether requests may use guidance, which costs a second row per clip.

    Attributes:
        stepped: clips that the last step moved on.

    Raises:
        InputError: ``batch`` or ``longest`` cannot be used.
    """

    def __init__(
        self, engine: Engine, batch: int = 8, longest: float | None = None, guided: bool = True
    ) -> None:
        if batch < 1:
            raise InputError(f"batch {batch} must be at least 1")
        self.engine, self.batch, self.guided = engine, batch, guided
        self.model = engine.model
        self.longest = self.model.max_seconds if longest is None else longest
        self._delay = self.model.codebooks // self.model.channels
        self._halves = HALVES if guided else 1
        self._decoder: Decoder = engine.decoder()
        self._steps = self.model.frames(self.longest) + self._delay - 1
        listens = Listening if self._decoder.crossed else Prefixes
        self._listening = listens(engine, self._decoder, batch, self._halves)
        self._capacity = self._steps + self._listening.prefix
        self.batch = self._fitting(batch)
        self._cache = self._decoder.cache(self.batch * self._halves, self._capacity)
        self._delays = torch.arange(self.model.codebooks) // self.model.channels
        self._waiting: deque[tuple[int, Request]] = deque()
        self._done: dict[int, Tensor] = {}
        self._next = 0
        self._looked = 0
        self.stepped = 0
        device, books, batch = self._decoder.device, self.model.codebooks, self.batch
        self._rows = Rows(
            torch.full((batch, books), self.model.pad, device=device),
            torch.zeros((batch, self._steps, books), dtype=torch.int64, device=device),
            torch.zeros((batch, self._steps, books), device=device),
            torch.zeros((batch, self._steps, books), dtype=torch.int64, device=device),
            torch.ones(batch, dtype=torch.bool, device=device),
        )
        self._places: list[_Playing] = []
        self._device: DeviceStep | None = None
        if device.type == "cuda":
            self._device = DeviceStep(self._decoder, self._cache, self._rows, self._halves)
        self._settled = False

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether something plays or waits."""
        return bool(self._places or self._waiting)

    def add(self, request: Request) -> int:
        """Ask for a clip.

        Returns:
            A ticket.

        Raises:
            InputError: the request cannot be played by this model in this session.
        """
        self.engine.check(request)
        if request.seconds > self.longest:
            raise InputError(
                f"{request.seconds:g} seconds is longer than the {self.longest:g} of this session"
            )
        if request.sampling.guidance != 1 and not self.guided:
            raise InputError(f"guidance {request.sampling.guidance:g} in a session without it")
        ticket, self._next = self._next, self._next + 1
        self._waiting.append((ticket, request))
        return ticket

    def cancel(self, ticket: int) -> None:
        """Forget a clip, wherever it is; its place is free at once."""
        self._waiting = deque(each for each in self._waiting if each[0] != ticket)
        self._done.pop(ticket, None)
        for place, playing in enumerate(self._places):
            if playing.ticket == ticket:
                self._leave(place)
                return

    @torch.no_grad()
    def step(self) -> list[int]:
        """Decode one column of all clips that play, after those that wait took free places.

        Returns:
            The tickets that are done by it.

        Raises:
            InputError: the model gives scores that are not numbers; the clips that had them are
                forgotten.
        """
        # A run that trains under autocast would round what the engine keeps exact.
        with torch.autocast(self._decoder.device.type, enabled=False):
            self._admit()
            self.stepped = len(self._places)
            if not self._places:
                return []
            changes = self._listening.changes(len(self._places))
            if self._device is not None and changes is None:
                self._step_on_device(self._device)
            else:
                self._step(changes)
            return self._note()

    def codes(self, ticket: int) -> Tensor:
        """The frames of which all codebooks are known, ``(codebooks, frames)`` int64.

        Raises:
            InputError: no such ticket.
        """
        if ticket in self._done:
            return self._done[ticket]
        for place, playing in enumerate(self._places):
            if playing.ticket == ticket:
                known = min(max(0, playing.step - self._delay + 1), playing.frames)
                return self._undelayed(place, known, playing.step)
        if any(each[0] == ticket for each in self._waiting):
            return torch.empty((self.model.codebooks, 0), dtype=torch.int64)
        raise InputError(f"no ticket {ticket} in this session; it was taken or cancelled")

    def take(self, ticket: int) -> Tensor:
        """The finished codes of ``ticket``, which is then forgotten.

        Raises:
            InputError: it is not finished.
        """
        if ticket not in self._done:
            raise InputError(f"ticket {ticket} is not finished")
        return self._done.pop(ticket)

    def _fitting(self, batch: int) -> int:
        """``batch``, or the half, the quarter... that memory has room for.

        Raises:
            InputError: there is none for even one clip.
        """
        each = self._decoder.cache_bytes(self._halves, self._capacity)
        free = free_memory(self._decoder.device)
        fits = batch
        while fits and fits * each > free:
            fits //= 2
        if not fits:
            raise InputError(
                f"{self.longest:g} seconds need about {each / 1e9:.1f} GB of memory for one clip's "
                f"keys and values, and {free / 1e9:.1f} GB are free; make it shorter"
            )
        if fits < batch:
            console.note(
                f"a batch of {batch} would need {batch * each / 1e9:.1f} GB for keys and values, "
                f"and {free / 1e9:.1f} GB are free; going on with {fits} at once"
            )
        return fits

    # --- places ---

    def _admit(self) -> None:
        free = self.batch - len(self._places)
        joining = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        if not joining:
            return
        first = len(self._places)
        starts = self._listening.join(first, [request for _, request in joining], self._cache)
        for place, ((ticket, request), start) in enumerate(
            zip(joining, starts, strict=True), first
        ):
            playing = self._prepared(ticket, request, start)
            self._places.append(playing)
            self._settled = False
            rows = self._rows
            rows.fixed[place, : playing.steps] = playing.fixed.to(rows.fixed.device)
            rows.luck[place, : playing.steps] = playing.luck.to(rows.luck.device)
            rows.finite[place] = True
            rows.column[place] = self.model.pad
            if request.given is not None and request.given.shape[1]:
                known = int((playing.fixed != SAMPLED).all(1).long().cumprod(0).sum())
                self._fill(place, playing, min(known, request.given.shape[1], playing.steps - 1))

    def _prepared(self, ticket: int, request: Request, start: int) -> _Playing:
        frames = self.model.frames(request.seconds)
        steps, books = frames + self._delay - 1, self.model.codebooks
        frame = torch.arange(steps)[:, None] - self._delays
        fixed = torch.full((steps, books), SAMPLED)
        fixed[(frame < 0) | (frame >= frames)] = self.model.pad
        if request.given is not None:
            given = request.given.cpu()
            known = (frame >= 0) & (frame < given.shape[1])
            index = frame.clamp(0, max(given.shape[1] - 1, 0))
            there = given.t().gather(0, index) if given.shape[1] else fixed
            fixed = torch.where(known, there, fixed)
        luck = uniforms([request.seed], steps, books)[:, 0]
        steps = min(steps, (request.stop or frames) + self._delay - 1)
        frames = min(steps, frames)
        return _Playing(ticket, request, frames, steps, fixed[:steps], luck[:steps], start=start)

    def _fill(self, place: int, playing: _Playing, frames: int) -> None:
        """Hear the columns that are given at once; the next one to be drawn is after them."""
        columns = self._rows.fixed[place, :frames]
        start = torch.full_like(columns[:1], self.model.pad)
        before = torch.cat([start, columns[:-1]])
        positions = torch.arange(playing.start, playing.start + frames, device=columns.device)
        hidden = self._decoder.embed(before, positions)
        self._listening.fill(place, hidden, self._cache, playing.start)
        self._rows.made[place, :frames] = columns
        playing.step = frames
        self._rows.column[place] = columns[-1]

    def _leave(self, place: int) -> None:
        """Free a place; the last clip moves into it."""
        places, halves = self._places, self._halves
        last = len(places) - 1
        if place != last:
            length = places[last].position
            source = slice(last * halves, (last + 1) * halves)
            target = slice(place * halves, (place + 1) * halves)
            self._cache.move(source, target, length)
            self._rows.move(last, place)
            self._listening.move(last, place)
            places[place] = places[last]
        places.pop()
        self._listening.leave(last)
        self._settled = False

    # --- a step ---

    def _step_on_device(self, device: DeviceStep) -> None:
        places = self._places
        if not self._settled:
            requests = [playing.request for playing in places]
            device.settle(
                [playing.step for playing in places],
                [playing.start for playing in places],
                [request.seed for request in requests],
                [request.sampling for request in requests],
            )
            self._settled = True
        longest = max(playing.position for playing in places)
        device.step(longest, self._listening.heard(self.batch))

    def _step(self, changes: Changes | None) -> None:
        rows, places = self._rows, self._places
        count = len(places)
        positions = [playing.position for playing in places]
        at = Places(positions, self._halves)
        alike = len(set(positions)) == 1
        where = positions[0] if alike else torch.tensor(positions, device=self._decoder.device)
        hidden = self._decoder.embed(rows.column[:count], where)
        if self._halves == HALVES:
            hidden = hidden.repeat_interleave(HALVES, 0)
        heard = self._listening.heard(count)
        hidden = self._decoder.step(hidden, self._cache, at, heard, self._halves, changes)
        scores = self._decoder.scores(hidden, self._guidance() if self.guided else None)
        rows.finite[:count] &= scores.isfinite().flatten(1).all(1)
        steps = [playing.step for playing in places]
        fixed, luck = self._of_step(steps)
        column = torch.where(fixed == SAMPLED, self._draw(scores, luck), fixed)
        rows.column[:count] = column
        self._keep(column, steps)
        self._settled = False

    def _guidance(self) -> Tensor:
        weights = [playing.request.sampling.guidance for playing in self._places]
        return torch.tensor(weights, device=self._decoder.device, dtype=self._decoder.state)[
            :, None
        ]

    def _of_step(self, steps: list[int]) -> tuple[Tensor, Tensor]:
        rows, count = self._rows, len(steps)
        if len(set(steps)) == 1:
            return rows.fixed[:count, steps[0]], rows.luck[:count, steps[0]]
        place = torch.arange(count, device=rows.fixed.device)
        step = torch.tensor(steps, device=rows.fixed.device)
        return rows.fixed[place, step], rows.luck[place, step]

    def _draw(self, scores: Tensor, luck: Tensor) -> Tensor:
        kinds = [playing.request.sampling for playing in self._places]
        parts, first = [], 0
        for sampling, group in groupby(kinds):
            count = len(list(group))
            span = slice(first, first + count)
            parts.append(draw(scores[span], luck[span], sampling))
            first += count
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _keep(self, column: Tensor, steps: list[int]) -> None:
        made, count = self._rows.made, len(steps)
        if len(set(steps)) == 1:
            made[:count, steps[0]] = column
            return
        made[torch.arange(count), torch.tensor(steps)] = column

    def _note(self) -> list[int]:
        """A column was drawn; who is done leaves, and so does who has no scores."""
        for playing in self._places:
            playing.step += 1
        self._looked += 1
        ending = any(playing.step == playing.steps for playing in self._places)
        if not ending and self._looked % _LOOK:
            return []  # asking at each step would make a GPU wait
        done, broken = [], False
        finite = self._rows.finite[: len(self._places)].tolist()
        for place in reversed(range(len(self._places))):
            playing = self._places[place]
            if not finite[place]:
                broken = True
                self._leave(place)
            elif playing.step == playing.steps:
                self._done[playing.ticket] = self._undelayed(place, playing.frames, playing.steps)
                done.append(playing.ticket)
                self._leave(place)
        if broken:
            raise InputError(
                f"base {self.model.base} gives scores that are not finite; its weights or an "
                "adapter's are damaged, or overflow in half precision: lower the adapter's "
                "weight, use another, or --precision float32"
            )
        return sorted(done)

    def _undelayed(self, place: int, frames: int, columns: int) -> Tensor:
        made = self._rows.made[place]
        index = (torch.arange(frames)[:, None] + self._delays).to(made.device)
        there = made.gather(0, index.clamp(max=max(columns - 1, 0)))
        return there.where(index < columns, UNKNOWN).t().contiguous()
