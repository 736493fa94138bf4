"""Cutting recordings into windows of a few seconds, and telling windows apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from musictune.audio import Clip, info, read, stream

_SILENT = 1e-3  # root mean square, -60 dB of full scale
_STEP = 0.05  # seconds between places where loudness is compared
_SMOOTH = 5  # steps averaged, so that a cut lies within a pause and not at its edge
_SEARCH = 0.25  # share of a window in which its end may lie

_FINGERPRINT_RATE = 16_000  # Hz
_BANDS = 40
_CELL = 0.125  # seconds
_ALIKE = 0.98  # cosine of mean spectra below which two windows are surely different
_SAME = 0.995  # cosine of fingerprints from which two windows are one


class Window(NamedTuple):
    """A clip and where it starts in its recording, in seconds."""

    start: float
    clip: Clip


def cut(path: Path | str, seconds: float, *, on_silence: bool = True) -> Iterator[Window]:
    """Consecutive windows of at most ``seconds`` that cover the whole recording, in bounded memory.

    Args:
        path: an audio file of any length.
        seconds: the longest window.
        on_silence: end each window at the quietest place of its last quarter, rather than evenly.

    Raises:
        AudioError: as `musictune.audio.stream`.
    """
    rest: Clip | None = None
    done = 0
    for block in stream(path, seconds):
        wave = block.wave if rest is None else torch.cat([rest.wave, block.wave], 1)
        rest = Clip(wave, block.sample_rate, source=block.source)
        size = round(seconds * block.sample_rate)
        while rest is not None and rest.samples >= size:
            window = Clip(rest.wave[:, :size], rest.sample_rate, source=rest.source)
            end = _quietest(window) if on_silence else size
            yield Window(
                done / rest.sample_rate,
                Clip(rest.wave[:, :end], rest.sample_rate, source=rest.source),
            )
            done += end
            left = rest.wave[:, end:]
            rest = Clip(left, rest.sample_rate, source=rest.source) if left.shape[1] else None
    if rest is not None:
        yield Window(done / rest.sample_rate, rest)


def spread(path: Path | str, seconds: float, count: int) -> Iterator[Window]:
    """``count`` windows evenly over the recording, without reading what lies between them.

    Raises:
        AudioError: as `musictune.audio.read`.
    """
    length = info(path).seconds
    for index in range(count):
        start = index * length / count
        yield Window(start, read(path, start, min(seconds, length / count)))


def is_silent(clip: Clip) -> bool:
    """Whether the clip is below -60 dB of full scale."""
    return float(clip.wave.square().mean().sqrt()) < _SILENT


class Duplicates:
    """Remembers windows by a fingerprint, to find those that are nearly the same recording.

    The fingerprint is a log-mel spectrogram in cells of an eighth of a second: a new encoding or a
    new loudness leaves it as it is, another performance of the same notes does not.
    """

    def __init__(self) -> None:
        self._known: list[NDArray[np.float32]] = []
        self._spectra: list[NDArray[np.float32]] = []
        self._names: list[str] = []

    def find(self, clip: Clip) -> str | None:
        """The name of a remembered window that sounds the same, if there is one."""
        if not self._known:
            return None
        mine = _fingerprint(clip)
        # Comparing mean spectra first keeps this fast among tens of thousands of windows.
        alike = np.stack(self._spectra) @ _spectrum(mine) > _ALIKE
        for index in np.flatnonzero(alike):
            other = self._known[index]
            cells = min(mine.shape[1], other.shape[1])
            # Windows of one recording's copies end within a cell or two of each other.
            if max(mine.shape[1], other.shape[1]) - cells > 2:
                continue
            if _cosine(mine[:, :cells], other[:, :cells]) > _SAME:
                return self._names[index]
        return None

    def add(self, clip: Clip, name: str) -> None:
        """Remember a window."""
        mine = _fingerprint(clip)
        self._known.append(mine)
        self._spectra.append(_spectrum(mine))
        self._names.append(name)


def _quietest(window: Clip) -> int:
    """The sample at which to cut: the middle of the quietest quarter second near the end."""
    step = max(round(_STEP * window.sample_rate), 1)
    first = round(window.samples * (1 - _SEARCH))
    power = window.wave[:, first:].square().mean(0)
    steps = len(power) // step
    if steps < _SMOOTH:
        return window.samples
    loudness = power[: steps * step].reshape(steps, step).mean(1)
    smooth = torch.nn.functional.avg_pool1d(loudness[None, None], _SMOOTH, 1)[0, 0]
    # Among equally quiet places the last one, to keep windows long.
    place = len(smooth) - 1 - int(smooth.flip(0).argmin())
    return first + place * step + _SMOOTH * step // 2


def _fingerprint(clip: Clip) -> NDArray[np.float32]:
    """``(bands, cells)``."""
    import librosa

    wave = clip.mono().resample(_FINGERPRINT_RATE).wave[0].numpy()
    hop = round(_CELL * _FINGERPRINT_RATE / 4)
    if len(wave) < 1024:
        wave = np.pad(wave, (0, 1024 - len(wave)))
    power = librosa.feature.melspectrogram(
        y=wave, sr=_FINGERPRINT_RATE, n_fft=1024, hop_length=hop, n_mels=_BANDS
    )
    cells = max(power.shape[1] // 4, 1)
    pooled = power[:, : cells * 4].reshape(_BANDS, cells, -1).mean(2)
    # The floor hides what encoders add below what is heard.
    return np.log10(pooled / max(float(pooled.max()), 1e-12) + 1e-4).astype(np.float32)


def _spectrum(fingerprint: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean over time, of length one."""
    mean = fingerprint.mean(1)
    mean = mean - mean.mean()
    return mean / max(float(np.linalg.norm(mean)), 1e-9)


def _cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    one, other = one - one.mean(), other - other.mean()
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float((one * other).sum()) / size if size > 0 else 1.0
