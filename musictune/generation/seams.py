"""Whether one hears where windows of music were joined: figures beside those of other places.

How much level and sound jump at a place, and how unlikely the model finds what follows there, is
measured at the seam and at places of the same clip that are none. Music jumps by itself, so only
what stands far out of these counts. Measures and limits are our choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.generation.likelihood import frame_nll, resting
from musictune.models.base import Batch
from musictune.models.codec import SpectralCodec
from musictune.models.musicgen import MusicGen

LOOK = 1.0
"""Seconds after a seam that are played before it is judged."""

OUTLIER = 3.0
"""Robust deviations from which on a seam stands out."""

_FLOORS = {"level": 0.5, "flux": 0.5, "mel": 0.3, "nll": 0.1}  # least deviation: dB, dB, dB, nats
_EVERY = 0.1  # seconds between places that a seam is compared with
_APART = 0.6  # seconds that they keep from every seam
_LEAST = 8  # places, without which nothing is said to stand out
_REACH = 20.0  # seconds before a seam in which they are looked for
_SPAN = 0.5  # seconds on each side for sound and likelihood
_LEVEL_SPAN = 0.25  # seconds on each side for the level
_HOPS = 50  # spectral frames a second
_BANDS = 40
_SILENT = -60.0  # dB of full scale
_STUCK = 0.9  # share of frames that repeat the one before

Figures = dict[str, float]


@dataclass(frozen=True)
class Seam:
    """A place where a window was joined on.

    Attributes:
        second: where, from the beginning of the clip.
        figures: ``level``, jump in dB over a quarter of a second on each side; ``flux``, the
            largest change in dB from one spectral frame to the next but one that shares no sample
            with it, mean over mel bands, within 40 ms; ``mel``, distance in dB of the sound in
            half a second on each side; ``nll``, nats per token of the half second after. What
            cannot be measured is missing.
        deviations: of each figure, how many robust deviations it lies above the median of the
            places that are no seams; missing where there are too few of them.
        places: that it was compared with.
        collapsed: what follows is silent or one token held.
        drawn: how often the music after the seam was drawn until it stayed.
    """

    second: float
    figures: Figures
    deviations: Figures
    places: int
    collapsed: bool = False
    drawn: int = 1

    @property
    def worst(self) -> float:
        """The largest deviation, infinite for a collapse."""
        if self.collapsed:
            return math.inf
        return max(self.deviations.values(), default=0.0)

    @property
    def stands_out(self) -> bool:
        """Whether other luck should be tried."""
        return self.worst > OUTLIER


@dataclass
class SeamJudge:
    """Compares the seams of one clip, in order, with the music between them.

    Only what is known so far is compared with: a verdict does not change when more music follows.

    Args:
        model: that makes the clip.
        prompt: of the clip.
        melody: of the clip.
        context: frames before a seam from which the model's likelihood is read.
    """

    model: MusicGen
    prompt: str
    context: int
    melody: Clip | None = None
    _known: list[Figures] = field(default_factory=list)
    _last: int = 0  # frame of the seam before

    def judge(self, codes: Tensor, seam: int) -> tuple[Seam, list[Figures]]:
        """Figures of a seam.

        Args:
            codes: ``(codebooks, frames)`` int64 of the clip so far, a little past the seam.
            seam: the first frame after it.

        Returns:
            The seam, and figures of the places since the one before it, for :meth:`accept`.
        """
        rate = self.model.frame_rate
        first = max(0, min(self._last, seam - 1), seam - round(_REACH * rate))
        places = self._places(codes, first, seam)
        shown = sound_figures(self.model, codes[:, first:], places - first)
        start = max(0, seam - self.context)
        unlikely = frame_nll(self.model, codes[:, start:], self.prompt, self.melody)
        span = max(1, round(_SPAN * rate))
        # The model knows the beginning of what it hears least; it is not compared with.
        settled = start + min(2 * span, self.context // 2)
        for place, figures in shown.items():
            frame = place + first
            if frame == seam or settled <= frame:
                figures["nll"] = float(unlikely[frame - start : frame - start + span].mean())
        own = shown.pop(seam - first)
        found = Seam(
            round(seam / rate, 3),
            {name: round(value, 3) for name, value in own.items()},
            deviations(own, [*self._known, *shown.values()]),
            len(self._known) + len(shown),
            self._collapsed(codes, seam),
        )
        return found, list(shown.values())

    def accept(self, seam: int, around: list[Figures]) -> None:
        """Go on from a seam; the places since the last one are compared with from now on."""
        self._known += around
        self._last = seam

    def _places(self, codes: Tensor, first: int, seam: int) -> Tensor:
        """Frames to measure at: ``seam`` and places away from all seams and ends."""
        rate, frames = self.model.frame_rate, codes.shape[-1]
        apart, span = round(_APART * rate), max(1, round(_SPAN * rate))
        every = torch.arange(first, frames, max(1, round(_EVERY * rate)))
        inside = (every >= first + apart) & (every + span <= frames)
        return torch.cat([every[inside & ((every - seam).abs() >= apart)], torch.tensor([seam])])

    def _collapsed(self, codes: Tensor, seam: int) -> bool:
        after = codes[:, seam:]
        if after.shape[-1] * 2 < LOOK * self.model.frame_rate:
            return False  # too little to tell a rest from a collapse
        held = (after == codes[:, seam - 1 : -1]).all(0).float().mean()
        if float(held) >= _STUCK:
            return True
        power = _power(self.model, after).sum(1)
        return bool(10 * math.log10(float(power.mean()) + 1e-12) < _SILENT)


def deviations(own: Figures, others: list[Figures]) -> Figures:
    """How many robust deviations each figure lies above the median of the others'."""
    found = {}
    for name, value in own.items():
        each = torch.tensor([other[name] for other in others if name in other])
        if len(each) < _LEAST:
            continue
        middle = each.median()
        spread = 1.4826 * float((each - middle).abs().median())
        found[name] = round((value - float(middle)) / max(spread, _FLOORS[name]), 2)
    return found


def sound_figures(model: MusicGen, codes: Tensor, places: Tensor) -> dict[int, Figures]:
    """Jumps of level and sound at places of a piece of music.

    Args:
        model: whose codec decodes.
        codes: ``(codebooks, frames)`` int64.
        places: frames, each measured at its beginning.

    Returns:
        ``level``, ``flux`` and ``mel`` as :class:`Seam` has them, for each place.
    """
    power = _power(model, codes)
    mel = 10 * (power @ _mel_filters(power.shape[1], model.sample_rate) + 1e-9).log10()
    mel = mel.maximum(mel.max() - 60)  # what is far below the rest is not heard
    total = power.sum(1)
    found: dict[int, Figures] = {}
    for place in places.tolist():
        at = round(place / model.frame_rate * _HOPS)
        if 0 < at < len(mel):
            found[place] = {
                "level": _jump(total[:, None], at, _LEVEL_SPAN, in_db=True),
                "flux": _flux(mel, at),
                "mel": _jump(mel, at, _SPAN),
            }
        else:
            found[place] = {}
    return found


def _jump(rows: Tensor, at: int, span: float, in_db: bool = False) -> float:
    count = round(span * _HOPS)
    before, after = rows[max(0, at - count) : at].mean(0), rows[at : at + count].mean(0)
    if in_db:
        before, after = 10 * (before + 1e-7).log10(), 10 * (after + 1e-7).log10()
    return float((after - before).abs().mean())


def _flux(mel: Tensor, at: int) -> float:
    """Spectral frames three apart share no sample; the largest step near ``at``."""
    near = mel[max(0, at - 4) : at + 4]
    if len(near) < 4:
        return 0.0
    return float((near[3:] - near[:-3]).abs().mean(1).max())


@torch.no_grad()
def _power(model: MusicGen, codes: Tensor) -> Tensor:
    """Power spectra ``(frames, bins)`` on the CPU, 50 a second; a row's sum is the mean power."""
    codec, rate = model.network.audio_encoder, model.sample_rate
    size = 2 ** round(math.log2(0.064 * rate))
    window = torch.hann_window(size)
    if isinstance(codec, SpectralCodec) and codec.config.hop_length * _HOPS == rate:
        # Its spectra are at hand without the search for a phase, which takes ten times as long.
        coded = codec.reconstruct(codec.dequantise(codes[None].to(model.device)))[0].float().cpu()
        magnitude = coded ** (1 / codec.config.compression)
        window = torch.hann_window(codec.config.window_length)
    else:
        lengths = torch.tensor([codes.shape[-1]])
        with resting(model):
            (clip,) = model.decode(Batch(codes[None], lengths, ("",)))
        magnitude = torch.stft(
            clip.mono().wave[0], size, rate // _HOPS, window=window, center=True,
            pad_mode="constant", return_complex=True,
        ).abs().T  # fmt: skip
    return 2 * magnitude.square() / (2 * (magnitude.shape[1] - 1) * window.square().sum())


def _mel_filters(bins: int, rate: int) -> Tensor:
    """``(bins, bands)``: triangles, evenly spaced on the mel scale (O'Shaughnessy 1987)."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    edges = torch.linspace(mel(40), mel(0.45 * rate), _BANDS + 2)
    edges = 700 * (10 ** (edges / 2595) - 1)
    hertz = torch.linspace(0, rate / 2, bins)[:, None]
    low, peak, high = edges[:-2], edges[1:-1], edges[2:]
    # A band narrower than the bins still takes the nearest one.
    width = rate / 2 / (bins - 1)
    rising = (hertz - low) / (peak - low).clamp_min(width)
    falling = (high - hertz) / (high - peak).clamp_min(width)
    return rising.minimum(falling).clamp_min(0)
