"""Signal quality of a clip in one figure, from faults that can be heard without a reference."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from musictune.audio import Clip

Array = np.ndarray

_RATE = 32_000  # what the codecs of music models give; treble above 16 kHz is not asked for
_FRAME = 320  # samples, 10 ms, of levels
_SILENT = 1e-4  # of full scale, root mean square of the loudest frames: dither, not music
_SILENT_DB = -50.0  # below the loud frames of the same clip
_REST = 50  # frames of silence in one piece that may be music
_MOMENT = 64  # samples, 2 ms, of levels in which dropouts are sought
_GONE_DB, _FROM_DB, _BACK_DB = -60.0, -20.0, -30.0  # what a dropout falls to, from and back to
_EDGE = 2  # moments within which it falls: no damped note is that quick
_DROPOUT = range(4, 150)  # moments; a longer one is a rest, or silence
_TOP, _FLAT, _RUN = 0.98, 2e-5, 3  # at a cut top: how near the peak, how equal, how many samples
_STEEP = 8e-3  # of the peak, into a cut top and out of it; a rounded one in a soft file is not
_WINDOW = 2048
_FEWEST = 8  # windows from which a floor can be told
_BANDS = np.geomspace(500.0, 15_000.0, 49)  # Hz
_QUIET = 10  # percentile over time: what a bin has left when nothing plays in it
_QUIET_OF_NOISE = -math.log(1 - _QUIET / 100)  # the same of noise, relative to its mean power
_RANGE = 1e-7  # 70 dB below the loudest band there is no music
_ABOVE_NOISE = 10**0.5  # 5 dB


@dataclass(frozen=True)
class Faults:
    """What is wrong with a clip.

    Attributes:
        clipping: share of samples in cut-off tops.
        silence: share of the time in silences longer than a rest.
        dropouts: per second.
        offset: distance of the mean sample from 0, relative to the root mean square around it.
        noise: decibels of the steady floor under all frequencies, relative to the clip.
        missing: octaves below 15 kHz without music, as far as they were cut off: what fades out
            of itself is not missing.
    """

    clipping: float
    silence: float
    dropouts: float
    offset: float
    noise: float
    missing: float

    @property
    def quality(self) -> float:
        """1 without faults, towards 0 with each; the product of one factor for each (ours)."""
        return (
            1 / (1 + self.clipping / 0.01)
            * (1 - self.silence)
            / (1 + self.dropouts)
            / (1 + self.offset)
            * min(max((-self.noise - 5) / 40, 0.02), 1)
            * 2 ** (-0.7 * self.missing)
        )  # fmt: skip


class SignalQuality:
    """Reward: 1 for a clip without faults, towards 0 for noise, cut tops, silence or lost treble.

    Levels and rests of half a second make no difference. It cannot tell noise from music that
    covers all frequencies all the time, so that a dense band has less than a soloist: compare
    clips of like music. Tops that were cut before a filter or a lossy codec are not seen, nor
    dropouts that a codec has rounded.
    """

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)`` float32 from 0 to 1; 0 for silence."""
        found = [faults(clip) for clip in clips]
        return torch.tensor([one.quality if one else 0.0 for one in found], dtype=torch.float32)


def faults(clip: Clip) -> Faults | None:
    """The faults of a clip of any rate, layout and length; None for one that is silent."""
    wave = clip.mono().resample(_RATE).wave[0].double().numpy()
    mean = float(wave.mean())
    wave = wave - mean
    levels = _levels(wave, _FRAME)
    loud = float(np.percentile(levels, 95))
    if loud < _SILENT:
        return None
    decibels = _decibels(levels, loud)
    noise, missing = _floor_and_treble(wave, decibels > _SILENT_DB)
    return Faults(
        clipping=float(np.mean([_clipping(channel) for channel in clip.wave.numpy()])),
        silence=_silence(decibels),
        dropouts=_dropouts(_decibels(_levels(wave, _MOMENT), loud)),
        offset=abs(mean) / max(float(np.sqrt(np.square(wave).mean())), 1e-9),
        noise=noise,
        missing=missing,
    )


def _levels(wave: Array, size: int) -> Array:
    """``(frames,)`` root mean squares about the mean of each; of a shorter clip, one."""
    size = min(size, len(wave))
    # An offset would fill silences, also what is left of it where some of the clip has none.
    return np.asarray(wave[: len(wave) // size * size].reshape(-1, size).std(1))


def _decibels(levels: Array, loud: float) -> Array:
    return np.asarray(20 * np.log10(np.maximum(levels / loud, 1e-9)))


def _clipping(wave: Array) -> float:
    peak = float(np.abs(wave).max())
    if not peak:
        return 0.0
    clipped = 0
    for side in (wave / peak, -wave / peak):
        steps = np.abs(np.diff(side, prepend=0.0, append=0.0))
        # Sample i lies between steps i and i + 1: a run of equal ones has small steps inside it.
        first, last = _runs((steps[1:-1] <= _FLAT) & (side[1:] >= _TOP))
        cut = (last - first + 1 >= _RUN) & (steps[first] + steps[last + 1] > _STEEP)
        clipped += int((last - first + 1)[cut].sum())
    return clipped / len(wave)


def _silence(decibels: Array) -> float:
    first, last = _runs(decibels < _SILENT_DB)
    return float(np.maximum(last - first - _REST, 0).sum()) / len(decibels)


def _dropouts(decibels: Array) -> float:
    count = 0
    for first, last in zip(*_runs(decibels < _GONE_DB), strict=True):
        if last - first not in _DROPOUT or first < _EDGE or last + _EDGE > len(decibels):
            continue
        before, after = decibels[first - _EDGE : first], decibels[last : last + _EDGE]
        count += bool(before.max() > _FROM_DB and after.max() > _BACK_DB)
    return count / (len(decibels) * _MOMENT / _RATE)


def _floor_and_treble(wave: Array, sounding: Array) -> tuple[float, float]:
    """Decibels of the noise floor relative to the whole, and missing octaves.

    White noise has the same power in each bin, and at times when nothing plays there a bin has
    nothing else. So the floor is read where the music leaves most room: at a low percentile over
    time, the median over the bins of a band, and a low percentile over bands.
    """
    power = _power(wave, sounding)
    if len(power) < _FEWEST:
        return -math.inf, 0.0
    band = np.searchsorted(_BANDS, np.fft.rfftfreq(_WINDOW, 1 / _RATE)) - 1
    quiet = np.percentile(power, _QUIET, axis=0) / _QUIET_OF_NOISE
    floor, common = np.zeros(len(_BANDS) - 1), np.zeros(len(_BANDS) - 1)
    for index in range(len(floor)):
        floor[index] = np.median(quiet[band == index])
        common[index] = np.percentile(power[:, band == index].mean(1), 95)
    total, loudest = float(power.mean(0).sum()), float(common.max())
    if loudest <= _RANGE * total:  # below 500 Hz only
        return -math.inf, 0.0
    heard = np.flatnonzero(common > np.maximum(_RANGE * loudest, _ABOVE_NOISE * floor))
    if not len(heard):
        noise = float(np.percentile(floor, 10)) * power.shape[1] / total
        return 10 * math.log10(max(noise, 1e-20)), 0.0
    top = int(heard[-1]) + 1
    # Above the music there may be nothing at all, not even noise.
    noise = float(np.percentile(floor[:top], 10)) * power.shape[1] / total
    edge = 10 * math.log10(float(common[max(top - 3, 0) : top].max()) / loudest)
    cut = min(max((edge + 60) / 25, 0.0), 1.0)
    missing = math.log2(float(_BANDS[-1] / _BANDS[top]))
    return 10 * math.log10(max(noise, 1e-20)), cut * missing


def _power(wave: Array, sounding: Array) -> Array:
    """``(windows, bins)`` of the windows all of which sounds, or most if there are too few."""
    wave = np.pad(wave, (0, max(_WINDOW - len(wave), 0)))
    windows = np.lib.stride_tricks.sliding_window_view(wave, _WINDOW)[:: _WINDOW // 2]
    frames = np.arange(len(windows))[:, None] * (_WINDOW // 2) + np.arange(0, _WINDOW, _FRAME)
    share = sounding[np.minimum(frames // _FRAME, len(sounding) - 1)].mean(1)
    whole = share == 1
    windows = windows[whole if whole.sum() >= _FEWEST else share >= 0.5]
    windows = windows - windows.mean(1, keepdims=True)
    return np.asarray(np.square(np.abs(np.fft.rfft(windows * _shape(), axis=1))))


@functools.cache
def _shape() -> Array:
    # Its main lobe is narrow, so that between the harmonics of a held note there is a floor to see.
    return np.hanning(_WINDOW + 1)[:-1]


def _runs(marked: Array) -> tuple[Array, Array]:
    """Where runs of true begin, and where the next false is."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]])))
    return edges[::2], edges[1::2]
