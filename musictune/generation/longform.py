"""Music longer than a model was trained on: windows, each of which hears the end of the one before.

A window begins with the last seconds of what is there, whose positions are numbered anew, and plays
on to the length that the model knows. Where it begins to play is a seam; each is compared with the
music around it (:mod:`musictune.generation.seams`) and drawn again if it stands out. All clips of a
batch play their windows side by side.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.generation.engine import Engine, OnStep, check_seconds
from musictune.generation.likelihood import resting
from musictune.generation.request import Request
from musictune.generation.seams import LOOK, Seam, SeamJudge
from musictune.generation.session import Session
from musictune.generation.streaming import PIECE, StreamDecoder, stream_clip
from musictune.models.base import Batch
from musictune.models.melody import MusicGenMelody
from musictune.models.musicgen import MusicGen

LONGEST = 3600.0
"""Seconds of the longest clip."""

OVERLAP = 1 / 3
"""Share of a window that is heard from the one before, if nothing else is said."""

_MOST_OVERLAP = 0.9  # of a window; each must still play something
_GRAIN = 0.5  # seconds of music between two reports of a growing clip
_PIECE = 10.0  # seconds decoded at once


@dataclass(frozen=True, eq=False)
class Grown:
    """A clip as far as it is settled.

    Attributes:
        index: of its request.
        codes: ``(codebooks, frames)`` int64 on the CPU, from the beginning; what was reported
            once does not change.
        seams: of these frames.
        done: whether this is all.
    """

    index: int
    codes: Tensor
    seams: tuple[Seam, ...]
    done: bool


@dataclass(eq=False)
class _Growing:
    """A clip between its windows.

    Attributes:
        codes: of earlier windows.
        start: first frame of the window that plays.
        heard: frames of it that it is given.
        tried: verdicts on its seam, one for each draw.
        sure: whether its seam stays, or is none.
        steps: since it joined the session.
        told: frames reported.
    """

    index: int
    request: Request
    frames: int
    codes: Tensor
    judge: SeamJudge
    window: int = 0
    start: int = 0
    heard: int = 0
    tried: list[Seam] = field(default_factory=list)
    sure: bool = True
    steps: int = 0
    told: int = 0
    seams: list[Seam] = field(default_factory=list)


class LongForm:
    """Plays requests of any length, up to an hour.

    A clip's music depends on its own request only. Longer music begins with the same music as
    shorter music of the same seed, where both are longer than the model's window; what fits into
    one window is what :meth:`Engine.play` makes. Where a request names an adapter, its seams are
    judged by the base, which knows the adapter's words.

    Args:
        engine: what plays.
        overlap: seconds that each window hears of what is there; a third of a window if None.
        redraws: how often at most a seam that stands out is drawn again.

    Attributes:
        window: frames of a window.
        overlap: frames of it that are heard.

    Raises:
        InputError: an overlap that leaves nothing to play, or is below 0.
    """

    def __init__(self, engine: Engine, overlap: float | None = None, redraws: int = 2) -> None:
        model = engine.model
        longest = model.max_seconds
        wanted = longest * OVERLAP if overlap is None else overlap
        if not (math.isfinite(wanted) and 0 <= wanted <= longest * _MOST_OVERLAP):
            raise InputError(
                f"overlap {wanted:g} must be from 0 to {longest * _MOST_OVERLAP:g} seconds: this "
                f"base plays {longest:g} at a time"
            )
        if redraws < 0:
            raise InputError(f"redraws {redraws} must be at least 0")
        self.engine, self.model, self.redraws = engine, model, redraws
        self.window = model.frames(longest)
        self.overlap = min(round(wanted * model.frame_rate), self.window - 1)
        self._delay = model.codebooks // model.channels
        self._look = min(max(1, round(LOOK * model.frame_rate)), self.window - self.overlap)

    def check(self, request: Request) -> None:
        """Refuse what cannot be played.

        Raises:
            InputError: a length of 0, not a number or above an hour, given codes that leave
                nothing to play, or what :meth:`Engine.check` refuses of a window.
        """
        check_seconds(request.seconds)
        frames = self.model.frames(min(request.seconds, 10 * LONGEST))
        if request.seconds > LONGEST:
            raise InputError(
                f"{request.seconds:g} seconds is too long: {self.windows(frames)} windows or more, "
                f"and {_megabytes(self.model, request.seconds):,.0f} MB of sound in memory; at "
                f"most {LONGEST:g} seconds (an hour) are made at once"
            )
        given = request.given
        heard = None if given is None else given[..., -self.window :]
        self.engine.check(replace(request, seconds=self._seconds(self.window), given=heard))
        if given is not None and given.shape[-1] >= frames:
            raise InputError(
                f"{given.shape[-1] / self.model.frame_rate:g} seconds are given for a clip of "
                f"{request.seconds:g}; nothing is left to play"
            )

    def windows(self, frames: int, given: int = 0) -> int:
        """How many windows a clip of so many frames takes."""
        if frames <= self.window:
            return 1
        known, count = given, 0
        while known < frames:
            known, count = max(0, known - self.overlap) + self.window, count + 1
        return count

    def describe(self, seconds: float) -> str:
        """What a clip of this length takes, in words."""
        rate = self.model.frame_rate
        return (
            f"{seconds:g} s is more than the {self.window / rate:g} s this base plays at a time: "
            f"{self.windows(self.model.frames(seconds))} windows, each hearing the last "
            f"{self.overlap / rate:.3g} s; {_megabytes(self.model, seconds):,.0f} MB of sound per "
            "clip"
        )

    def play(
        self, requests: Sequence[Request], batch: int = 8, on_step: OnStep | None = None
    ) -> Iterator[Grown]:
        """Make clips, up to ``batch`` at once.

        Args:
            requests: of any lengths; ``given`` may be longer than a window, whose end is heard.
            batch: bounds the memory.
            on_step: called with the number of clips after each decoded step.

        Yields:
            The clips as they grow, every half second of music or so, and each once it is done.

        Raises:
            InputError: a request cannot be played, or the model gives scores that are no numbers.
        """
        asked = list(requests)
        if batch < 1:
            raise InputError(f"batch {batch} must be at least 1")
        for request in asked:
            self.check(request)
        if not asked:
            return
        longest = min(max(self.model.frames(request.seconds) for request in asked), self.window)
        guided = any(request.sampling.guidance != 1 for request in asked)
        with resting(self.model):
            session = Session(self.engine, min(batch, len(asked)), self._seconds(longest), guided)
            line = deque(self._begun(index, request) for index, request in enumerate(asked))
            playing: dict[int, _Growing] = {}
            while line or playing:
                while line and len(playing) < session.batch:
                    self._join(session, playing, line.popleft())
                done = session.step()
                if on_step:
                    on_step(session.stepped)
                for ticket, clip in list(playing.items()):
                    clip.steps += 1
                    grown = self._follow(session, playing, ticket, ticket in done)
                    if grown is not None:
                        yield grown

    def finished(
        self, requests: Sequence[Request], batch: int = 8, on_step: OnStep | None = None
    ) -> Iterator[Grown]:
        """As :meth:`play`, only whole clips."""
        return (grown for grown in self.play(requests, batch, on_step) if grown.done)

    # --- one clip ---

    def _begun(self, index: int, request: Request) -> _Growing:
        empty = torch.empty((self.model.codebooks, 0), dtype=torch.int64)
        codes = empty if request.given is None else request.given.cpu()
        judge = SeamJudge(self.model, request.prompt, max(self.overlap, self.window // 2))
        clip = _Growing(index, request, self.model.frames(request.seconds), codes, judge)
        self._next_window(clip)
        return clip

    def _next_window(self, clip: _Growing) -> None:
        known = clip.codes.shape[1]
        clip.start = 0 if clip.frames <= self.window else max(0, known - self.overlap)
        clip.heard = known - clip.start
        clip.sure, clip.tried = known == 0, []
        clip.judge.melody = self._melody(clip)

    def _join(self, session: Session, playing: dict[int, _Growing], clip: _Growing) -> None:
        """Play a window, or play it again with other luck."""
        wanted = clip.frames - clip.start
        if clip.frames > self.window:
            # The last frames of a request know that it ends there. Played a little further, they
            # are those of a longer clip.
            wanted = max(wanted, clip.heard + self._look) + self._delay - 1
        request = replace(
            clip.request,
            seconds=self._seconds(min(wanted, self.window)),
            seed=luck(clip.request.seed, clip.window, self._draw(clip)),
            given=clip.codes[:, clip.start :] if clip.heard else None,
            melody=clip.judge.melody,
        )
        clip.steps = 0
        playing[session.add(request)] = clip

    def _draw(self, clip: _Growing) -> int:
        """Which luck is next: new, or the best so far once there were enough."""
        tried = clip.tried
        if len(tried) <= self.redraws:
            return len(tried)
        return min(range(len(tried)), key=lambda i: tried[i].worst)

    def _follow(
        self, session: Session, playing: dict[int, _Growing], ticket: int, ended: bool
    ) -> Grown | None:
        """Look at a clip after a step."""
        clip = playing[ticket]
        fresh = clip.steps - self._delay + 1  # frames known after those that were given
        if not ended and not (fresh >= self._look if not clip.sure else self._tells(clip, fresh)):
            return None
        heard = session.take(ticket) if ended else session.codes(ticket)
        codes = torch.cat([clip.codes[:, : clip.start], heard.cpu()], 1)
        if ended:
            del playing[ticket]
        if not clip.sure and not self._settled(clip, codes):
            if not ended:
                session.cancel(ticket)
                del playing[ticket]
            self._join(session, playing, clip)
            return None
        codes = codes[:, : clip.frames]
        clip.told = codes.shape[1]
        if ended:
            clip.codes, clip.window = codes, clip.window + 1
            if clip.told < clip.frames:
                self._next_window(clip)
                self._join(session, playing, clip)
        return Grown(clip.index, codes, tuple(clip.seams), clip.told == clip.frames and ended)

    def _tells(self, clip: _Growing, fresh: int) -> bool:
        known = min(clip.start + clip.heard + fresh, clip.frames)
        return known - clip.told >= _GRAIN * self.model.frame_rate

    def _settled(self, clip: _Growing, codes: Tensor) -> bool:
        """Whether the window's seam stays as it is now."""
        seam = clip.codes.shape[1]
        final = len(clip.tried) > self.redraws
        with self.engine.adapters.speaking(clip.request.adapter):
            found, around = clip.judge.judge(codes[:, : seam + self._look], seam)
        if not final:
            clip.tried.append(found)
            if found.stands_out:
                # The last draw is kept if it is the best; else the best is played once more.
                last = len(clip.tried) - 1
                if last < self.redraws or self._draw(clip) != last:
                    return False
        clip.judge.accept(seam, around)
        clip.seams.append(replace(found, drawn=len(clip.tried)))
        clip.sure = True
        return True

    def _melody(self, clip: _Growing) -> Clip | None:
        """The tune from where the window begins; one that is shorter comes again."""
        melody = clip.request.melody
        if melody is None or not clip.start or not isinstance(self.model, MusicGenMelody):
            return melody
        from musictune.models.chroma import check_melody

        turned = round(clip.start / self.model.frame_rate * melody.sample_rate) % melody.samples
        melody = replace(melody, wave=melody.wave.roll(-turned, 1))
        try:
            check_melody(melody, self.model.chroma)
        except InputError:  # the tune rests here
            return None
        return melody

    def _seconds(self, frames: int) -> float:
        return frames / self.model.frame_rate


def luck(seed: int, window: int, draw: int) -> int:
    """The seed of one draw of a window; the first draw of the first window has the clip's own."""
    if window == draw == 0:
        return seed
    digest = hashlib.sha256(f"{seed} {window} {draw}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def decode_long(model: MusicGen, codes: Tensor, text: str = "") -> Clip:
    """Codes of any length to a clip, what exceeds the model's window ten seconds at a time.

    Args:
        model: whose codec decodes.
        codes: ``(codebooks, frames)`` int64.
        text: the caption of the clip.
    """
    frames = codes.shape[-1]
    if frames <= model.frames(model.max_seconds):
        return model.decode(Batch(codes[None], torch.tensor([frames]), (text,)))[0]
    clip = StreamDecoder(model, _PIECE).push(codes, final=True)
    assert clip is not None
    return replace(clip, caption=text, source=f"{model.base}: {text}")


def _megabytes(model: MusicGen, seconds: float) -> float:
    """Of a decoded clip, float32."""
    return seconds * model.sample_rate * model.channels * 4 / 1e6


def stream_long(long: LongForm, request: Request, piece: float = PIECE) -> Iterator[Clip]:
    """As :func:`stream_clip`, of any length.

    Args:
        long: what makes it.
        request: what to make.
        piece: seconds of music in each piece.

    Raises:
        InputError: as :func:`stream_clip`.
    """
    if request.seconds <= long.model.max_seconds:
        yield from stream_clip(long.engine, request, piece)
        return
    decoder = StreamDecoder(long.model, piece)
    for grown in long.play([request], batch=1):
        clip = decoder.push(grown.codes, final=grown.done)
        if clip is not None:
            yield clip
