"""Listeners that hear a clip a few seconds at a time, so that what was copied can be found in it.

Row ``i`` always begins at ``i`` times a fixed step, also in a recording heard in blocks of
whole steps. A row of zeros holds nothing to compare: silence, or the rest of a clip that fills no
excerpt.
"""

from __future__ import annotations

from importlib.metadata import version

import numpy as np

from musictune.audio import Clip
from musictune.metrics.base import Listener
from musictune.metrics.embedders.base import Embedder

Array = np.ndarray

SECONDS, HOP = 2.5, 1.25

_SILENT = 1e-3  # root mean square, -60 dB of full scale
_RATE, _WINDOW, _FRAME = 22_050, 4096, 1050

CHROMA_RATE = _RATE / _FRAME
"""Chroma frames per second: 21."""


class Excerpts(Listener):
    """How each excerpt of a clip sounds to an embedder: a unit row for each.

    An excerpt shorter than the embedder's window is one point; of a longer one the mean of its
    points is taken. A clip shorter than an excerpt is one.

    Args:
        embedder: what hears.
        seconds: length of an excerpt.
        hop: seconds between the beginnings of two.
    """

    def __init__(self, embedder: Embedder, seconds: float = SECONDS, hop: float = HOP) -> None:
        self.embedder = embedder
        self.seconds = seconds
        self.hop = hop
        self.key = f"{type(self).__name__}-{seconds:g}-{hop:g}-{embedder.key}"

    def hear(self, clip: Clip) -> Array:
        """``(excerpts, dim)`` float32, rows of length one or zero."""
        count = max(round(clip.seconds / self.hop), 1)
        rows = np.zeros((count, self.embedder.dim), np.float32)
        # Half a sample of slack, for lengths that resampling rounded down.
        last = clip.seconds - self.seconds + 0.5 / clip.sample_rate
        for index in range(count):
            start = index * self.hop
            if index and start > last:
                break
            excerpt = clip.crop(start, self.seconds)
            if _loudness(excerpt.wave.numpy()) < _SILENT:
                continue
            mean = self.embedder.hear(excerpt).mean(0, dtype=np.float64)
            rows[index] = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return rows


class ChromaFrames(Listener):
    """Pitch classes over time (Müller 2015, Fundamentals of Music Processing, 3.1).

    There are `CHROMA_RATE` rows a second. The tuning is taken as A = 440 Hz: estimated for
    each clip, it would hide a copy that is a little out of tune.
    """

    def __init__(self) -> None:
        self.key = f"{type(self).__name__}-{_RATE}-{_WINDOW}-{_FRAME}-librosa{version('librosa')}"

    def hear(self, clip: Clip) -> Array:
        """``(frames, 12)`` float32 from C on, rows of length one or zero."""
        import librosa

        wave = clip.mono().resample(_RATE).wave[0].numpy()
        count = max(round(len(wave) / _FRAME), 1)
        wave = np.pad(wave, (0, max(_WINDOW - len(wave), 0)))
        chroma = librosa.feature.chroma_stft(
            y=wave, sr=_RATE, n_fft=_WINDOW, hop_length=_FRAME, norm=2, tuning=0.0
        )
        loud = librosa.feature.rms(y=wave, frame_length=_WINDOW, hop_length=_FRAME)
        rows = np.where(loud >= _SILENT, chroma, 0.0).T.astype(np.float32)
        return np.ascontiguousarray(rows[:count])


def _loudness(wave: Array) -> float:
    return float(np.sqrt(np.square(wave, dtype=np.float64).mean()))
