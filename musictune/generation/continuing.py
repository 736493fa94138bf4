"""Music that goes on from a recording, or fills a gap in one.

A model of this kind plays forwards only: it does not know what comes after a gap. So several
candidates go on from what stands before, and the one after which the model finds the rest of the
recording likeliest is kept. That choice is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.generation.engine import Engine, OnStep
from musictune.generation.likelihood import frame_nll
from musictune.generation.longform import luck
from musictune.generation.request import Request
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen

_WIDEST = 0.8  # of a window that a gap may be, so that both sides are heard
_LEAST_AFTER = 0.5  # seconds after a gap, to choose by
_FADE = 0.02  # seconds
_PIECE, _AROUND = 10.0, 1.0  # seconds coded at once, and heard on each side of them
_MOST_GAIN = 2.0


def parse_span(text: str, name: str) -> tuple[float, float | None]:
    """``START:END`` in seconds; either may be left out, which gives 0 and None.

    Args:
        text: what the user wrote.
        name: of the option, for errors.

    Raises:
        InputError: not two numbers, below 0, or an end that is not after the start.
    """
    start, colon, end = text.partition(":")
    try:
        first = float(start) if start.strip() else 0.0
        last = float(end) if end.strip() else None
    except ValueError:
        colon = ""
        first, last = 0.0, None
    if not colon or not math.isfinite(first) or (last is not None and not math.isfinite(last)):
        raise InputError(f"{name} {text!r} must be START:END in seconds, such as 2.5:6")
    if first < 0 or (last is not None and last <= first):
        raise InputError(f"{name} {text} must begin at 0 or later and end after it begins")
    return first, last


@torch.no_grad()
def encode_long(model: MusicGen, clip: Clip) -> Tensor:
    """Codes of a recording of any length, in bounded memory.

    What is shorter than a codec frame at the end is dropped: filled up with silence it would sound
    like a stop.

    Returns:
        ``(codebooks, frames)`` int64 on the CPU.

    Raises:
        InputError: shorter than one codec frame.
    """
    clip = clip.resample(model.sample_rate)
    hop = round(model.sample_rate / model.frame_rate)
    frames = clip.samples // hop
    if frames == 0:
        raise InputError(
            f"{clip.source or 'the recording'} has {clip.seconds:.3f} s; give at least "
            f"{1 / model.frame_rate:g} s"
        )
    if frames <= model.frames(model.max_seconds):
        return _encoded(model, replace(clip, wave=clip.wave[:, : frames * hop]))
    piece, around = (round(seconds * model.frame_rate) for seconds in (_PIECE, _AROUND))
    parts = []
    for first in range(0, frames, piece):
        last = min(first + piece, frames)
        start, stop = max(0, first - around), min(frames, last + around)
        part = _encoded(model, replace(clip, wave=clip.wave[:, start * hop : stop * hop]))
        parts.append(part[:, first - start : last - start])
    return torch.cat(parts, 1)


def continued(model: MusicGen, given: Tensor, request: Request) -> Request:
    """The request whose clip is ``given`` and then the music that ``request`` asks for.

    Args:
        model: that plays.
        given: ``(codebooks, frames)`` codes, as :func:`encode_long` makes them.
        request: ``seconds`` is the length of the new music.
    """
    frames = given.shape[-1] + model.frames(request.seconds)
    return replace(request, seconds=frames / model.frame_rate, given=given)


@dataclass(frozen=True, eq=False)
class Infilled:
    """A recording with its gap filled.

    Attributes:
        clip: the recording at its own rate, outside of the gap its own samples.
        codes: ``(codebooks, frames)`` int64 of the gap.
        nll: of what stands after the gap, nats per token, after each candidate.
        chosen: the candidate that was kept.
    """

    clip: Clip
    codes: Tensor
    nll: tuple[float, ...]
    chosen: int


def infill(
    engine: Engine,
    recording: Clip,
    gap: tuple[float, float],
    request: Request,
    *,
    candidates: int = 8,
    batch: int = 8,
    on_step: OnStep | None = None,
) -> Infilled:
    """Fill a gap in a recording.

    Both sides are coded apart, so that nothing of what was in the gap is known. The fades, of
    20 ms, lie within the gap.

    Args:
        engine: what plays.
        recording: of any rate; a mono model fills all channels alike.
        gap: where it begins and ends, in seconds.
        request: prompt, seed, sampling, melody and adapter, which plays but of which only the
            words are known when candidates are compared; its length is that of the gap.
        candidates: how many are made; the first has the seed of ``request``.
        batch: made at once.
        on_step: called with the number of clips after each decoded step.

    Raises:
        InputError: a gap that lies outside, is too long for the model's window, or has less than
            half a second behind it; fewer than one candidate.
    """
    if candidates < 1:
        raise InputError(f"candidates {candidates} must be at least 1")
    model, rate = engine.model, engine.model.frame_rate
    left, frames, right = _layout(model, recording, gap)
    start = gap[0]
    before = _cut(model, recording, start - left / rate, left)
    after = _cut(model, recording, start + frames / rate, right)
    asked = [
        replace(
            request,
            seconds=(left + frames) / rate,
            seed=luck(request.seed, 0, draw),
            given=before if left else None,
        )
        for draw in range(candidates)
    ]
    made = {index: codes.cpu() for index, codes in engine.play(asked, batch, on_step)}
    joined = [torch.cat([made[index], after], 1) for index in range(candidates)]
    with engine.adapters.speaking(request.adapter):
        unlikely = [
            float(frame_nll(model, codes, request.prompt, request.melody)[-right:].mean())
            for codes in joined
        ]
    chosen = min(range(candidates), key=unlikely.__getitem__)
    clip = _joined(model, recording, gap, joined[chosen], left)
    codes = made[chosen][:, left:]
    return Infilled(clip, codes, tuple(round(value, 4) for value in unlikely), chosen)


def steps(engine: Engine, gap: tuple[float, float], candidates: int) -> int:
    """What the arguments of ``on_step`` of :func:`infill` sum up to, for a bar."""
    return engine.steps(candidates, gap[1] - gap[0])


def _layout(model: MusicGen, recording: Clip, gap: tuple[float, float]) -> tuple[int, int, int]:
    """Frames heard before the gap, of the gap, and after it; all fit into the window."""
    start, end = gap
    rate, window = model.frame_rate, model.frames(model.max_seconds)
    said = f"gap {start:g}:{end:g}"
    if not (0 <= start < end and math.isfinite(end)):
        raise InputError(f"{said} must begin at 0 or later and end after it begins")
    if end + _LEAST_AFTER > recording.seconds:
        raise InputError(
            f"{said} needs {_LEAST_AFTER:g} s of music behind it, and there are "
            f"{recording.seconds:.2f} s in all; to play on from the end, use --continue"
        )
    frames = math.ceil(round((end - start) * rate, 6))
    if frames > window * _WIDEST:
        raise InputError(
            f"{said} is {end - start:g} s long; this base can fill up to "
            f"{window * _WIDEST / rate:g} s"
        )
    rest = window - frames
    there = int(start * rate)
    behind = int((recording.seconds - start) * rate - frames)
    right = min(behind, max(rest // 2, rest - there))
    return min(there, rest - right), frames, right


def _cut(model: MusicGen, recording: Clip, start: float, frames: int) -> Tensor:
    """Codes of ``frames`` codec frames from ``start`` on, and of nothing around them."""
    if frames == 0:
        return torch.empty((model.codebooks, 0), dtype=torch.int64)
    part = recording.crop(start, frames / model.frame_rate).resample(model.sample_rate)
    samples = frames * round(model.sample_rate / model.frame_rate)
    wave = F.pad(part.wave, (0, max(0, samples - part.samples)))  # one or two, from rounding
    return _encoded(model, replace(part, wave=wave[:, :samples]))


def _encoded(model: MusicGen, clip: Clip) -> Tensor:
    return model.encode([clip]).codes[0].cpu()


def _joined(
    model: MusicGen, recording: Clip, gap: tuple[float, float], codes: Tensor, left: int
) -> Clip:
    """The recording with the decoded gap in it.

    Args:
        codes: of the gap and both sides.
        left: frames of them before the gap.
    """
    lengths = torch.tensor([codes.shape[1]])
    (made,) = model.decode(Batch(codes[None], lengths, ("",)))
    rate = recording.sample_rate
    made = made.resample(rate)
    if made.channels != recording.channels:
        made = made.mono()
    first, last = (round(second * rate) for second in gap)
    begin = round(left / model.frame_rate * rate)
    original = recording.wave[:, max(0, first - begin) : first]
    # A codec changes levels a little, and turns down what overshoots.
    gain = _gain(original, made.wave[:, begin - original.shape[1] : begin])
    length = last - first
    fill = (made.wave[:, begin : begin + length] * gain).clamp(-1, 1)
    fill = fill.expand(recording.channels, -1)
    wave = recording.wave.clone()
    fade = max(1, min(round(_FADE * rate), length // 4))
    rise = ((torch.arange(fade) + 0.5) / fade * math.pi / 2).sin()
    # The two are not in phase: their powers add up, so the shares' squares do.
    up, down = torch.ones(length), torch.zeros(length)
    up[:fade], up[-fade:] = rise, rise.flip(0)
    down[:fade], down[-fade:] = rise.flip(0), rise
    wave[:, first:last] = (wave[:, first:last] * down + fill * up).clamp(-1, 1)
    return replace(recording, wave=wave)


def _gain(original: Tensor, decoded: Tensor) -> float:
    if original.numel() == 0:
        return 1.0
    power, coded = float(original.square().mean()), float(decoded.square().mean())
    if power < 1e-8 or coded < 1e-8:
        return 1.0
    return min(max(math.sqrt(power / coded), 1 / _MOST_GAIN), _MOST_GAIN)
