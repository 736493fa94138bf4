"""What can be heard in a clip without being told: its tempo, its key, how often notes begin.

`tempo_of` and `key_of` answer for one clip; `MusicalListener` keeps both, and what the key was
heard from, as a row that can be cached.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Self

import numpy as np

from musictune.audio import Clip
from musictune.metrics.base import Listener

Array = np.ndarray

_TONICS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
KEYS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in _TONICS)
"""The 24 keys, majors first, as the composer spells them."""
NO_KEY = "X"
"""What mir_eval calls a key that cannot be told."""

SLOWEST, FASTEST = 60.0, 180.0
"""Beats per minute of the composer's styles; a tempo outside is heard as its double or half."""
TOLERANCE = 0.04
"""How far a tempo may be off, as a share of it (Gouyon et al. 2006)."""
SHORTEST = 2.0
"""Seconds below which nothing is said of tempo and beats."""

RATE = 32_000
"""Hz of what is listened to."""
_HOP, _WINDOW = 320, 2048
_FRAMES = RATE / _HOP
_BANDS = 4
_SILENT = 1e-4  # a peak below it is dither, not music
# Multiples of the beat, and how much regularity there speaks for it: longer ones settle which of
# several pulses is the beat, and the eighths and sixteenths between rule out dotted ones.
_MULTIPLES = ((1.0, 1.0), (2.0, 1.0), (3.0, 1.0), (4.0, 1.0), (0.5, 0.5), (0.25, 0.5))

# Key profiles of Temperley (2007) from the Kostka-Payne corpus, tonic first. By mir_eval's weighted
# score they reach 0.57 on renders; Krumhansl and Kessler's (1982) 0.47, Albrecht and Shanahan's
# (2013) 0.53.
_MAJOR = (0.748, 0.060, 0.488, 0.082, 0.670, 0.460, 0.096, 0.715, 0.104, 0.366, 0.057, 0.400)
_MINOR = (0.712, 0.084, 0.474, 0.618, 0.049, 0.460, 0.105, 0.747, 0.404, 0.067, 0.133, 0.330)


@dataclass(frozen=True)
class Heard:
    """What was heard in one clip.

    Attributes:
        tempo: beats per minute, octave unknown; NaN where nothing repeats.
        key: one of `KEYS`, or `NO_KEY` for silence.
        clarity: correlation of the chroma with the profile of that key, -1 to 1; NaN without one.
        onset_rate: beginnings of notes per second.
        chroma: ``(12,)`` as by `mean_chroma`, from C on.
    """

    tempo: float
    key: str
    clarity: float
    onset_rate: float
    chroma: Array


class MusicalListener(Listener):
    """Hears tempo, onset rate and mean chroma: one row of 14 finite numbers for each clip."""

    def __init__(self) -> None:
        self.key = f"musical-1-librosa-{version('librosa')}"

    def hear(self, clip: Clip) -> Array:
        """``(1, 14)`` float32: tempo (0 where nothing repeats), onsets per second, 12 chroma."""
        wave = listened(clip)
        tempo = tempo_of_wave(wave)
        rate = len(onset_times(wave)) * RATE / len(wave)
        row = [0.0 if math.isnan(tempo) else tempo, rate, *mean_chroma(wave)]
        return np.array([row], dtype=np.float32)

    @staticmethod
    def read(rows: Array) -> Heard:
        """What the ``(1, 14)`` of one clip say."""
        tempo, rate, *chroma = np.asarray(rows, np.float64)[0]
        key, clarity = key_of_chroma(np.array(chroma))
        return Heard(float(tempo) or math.nan, key, clarity, float(rate), np.array(chroma))

    @classmethod
    def toy(cls) -> Self:
        """As quick as it gets."""
        return cls()


def tempo_of(clip: Clip) -> float:
    """Beats per minute between 60 and 180, by the autocorrelation of onsets in four bands.

    A beat is a lag at which onsets repeat, and repeat again after two to four of it, with
    something at its halves and quarters (a comb over lags, as in Klapuri et al. 2006). On renders
    and on codec round trips alike nine in ten are right up to the octave, where
    ``librosa.beat.beat_track`` has seven. NaN for silence and for less than two seconds.
    """
    return tempo_of_wave(listened(clip))


def tempo_fits(heard: float, asked: float, factors: Sequence[float] = (1.0, 2.0, 0.5)) -> bool:
    """Whether ``heard`` is within 4 % of ``asked`` times one of ``factors``.

    The tolerance is that of Gouyon et al. (2006), who also allow thirds and triples.
    """
    return any(abs(heard / (asked * factor) - 1) <= TOLERANCE for factor in factors)


def octave_distance(heard: float, asked: float) -> float:
    """Octaves between two tempi where doubles and halves are the same: 0 to 0.5."""
    octaves = math.log2(heard / asked)
    return abs(octaves - round(octaves))


def key_of(clip: Clip) -> str:
    """The key whose profile fits the clip's chroma best (Temperley 2007).

    One of `KEYS`, such as ``A minor``; `NO_KEY` for silence.
    """
    return key_of_chroma(mean_chroma(listened(clip)))[0]


def key_of_chroma(chroma: Array) -> tuple[str, float]:
    """The key that ``(12,)`` chroma fit best and their correlation; `NO_KEY` if all are equal."""
    if np.ptp(chroma) == 0:
        return NO_KEY, math.nan
    fits = np.corrcoef(chroma, _profiles())[0, 1:]
    return KEYS[int(fits.argmax())], float(fits.max())


def key_fit(chroma: Array, key: str) -> float:
    """Correlation of ``(12,)`` chroma with the profile of one of `KEYS`; -1 if all are equal."""
    if np.ptp(chroma) == 0:
        return -1.0
    return float(np.corrcoef(chroma, _profiles()[KEYS.index(key)])[0, 1])


def listened(clip: Clip) -> Array:
    """``(samples,)`` mono at `RATE`; all zeros where there is nothing to hear."""
    wave = clip.mono().resample(RATE).wave[0].numpy()
    if not len(wave) or np.abs(wave).max() < _SILENT:
        return np.zeros(max(len(wave), 1), np.float32)
    return wave


def mean_chroma(wave: Array) -> Array:
    """``(12,)`` chroma of a wave at `RATE`, of sum 1; zeros for silence.

    The mean over frames of a quarter second, each relative to its strongest pitch class, so that
    soft passages count as loud ones do.
    """
    import librosa

    if not wave.any():
        return np.zeros(12)
    window = 8192
    # Shorter than a window would be warned about; zeros behind it say the same.
    wave = np.pad(wave, (0, max(window - len(wave), 0)))
    spectrum = np.abs(librosa.stft(wave, n_fft=window, hop_length=window // 2))
    with warnings.catch_warnings():
        # Where nothing has a pitch, standard tuning is as good as any.
        warnings.filterwarnings("ignore", message="Trying to estimate tuning")
        chroma = librosa.feature.chroma_stft(S=spectrum**2, sr=RATE).mean(1).astype(np.float64)
    return np.asarray(chroma / max(chroma.sum(), 1e-12))


def onset_times(wave: Array) -> Array:
    """Seconds at which notes begin in a wave at `RATE`, by librosa's spectral flux."""
    import librosa

    if not wave.any() or len(wave) < _WINDOW:
        return np.empty(0)
    return np.asarray(librosa.onset.onset_detect(y=wave, sr=RATE, units="time"), np.float64)


def beat_times(wave: Array, tempo: float) -> Array:
    """Seconds of the beats of a wave at `RATE`, by dynamic programming (Ellis 2007).

    At ``tempo`` beats per minute; none where it is NaN.
    """
    import librosa

    if math.isnan(tempo) or not wave.any():
        return np.empty(0)
    _, beats = librosa.beat.beat_track(y=wave, sr=RATE, bpm=tempo, units="time")
    return np.asarray(beats, np.float64)


def tempo_of_wave(wave: Array) -> float:
    if len(wave) < SHORTEST * RATE or not wave.any():
        return math.nan
    onsets = _onsets(wave)
    if not onsets.any():
        return math.nan
    spread = onsets.var(1)
    weights = np.sqrt(spread / spread.sum())
    repeats = (_autocorrelation(onsets) * weights[:, None]).sum(0)
    tempi = np.exp(np.arange(math.log(SLOWEST), math.log(FASTEST), 0.004))
    beat, places = 60 * _FRAMES / tempi, np.arange(len(repeats))
    score = np.zeros(len(tempi))
    for multiple, weight in _MULTIPLES:
        lags = multiple * beat
        known = lags < len(repeats) - 0.1 * _FRAMES
        score += weight * np.where(known, np.interp(lags, places, repeats), 0.0)
    return float(tempi[score.argmax()])


def _onsets(wave: Array) -> Array:
    """Rises of the compressed spectrum: ``(bands, frames)``, their slow changes taken out."""
    import librosa
    from scipy.ndimage import gaussian_filter1d

    power = np.abs(librosa.stft(wave, n_fft=_WINDOW, hop_length=_HOP)) ** 2
    mel = librosa.feature.melspectrogram(S=power, sr=RATE, n_mels=48, fmin=30, fmax=14_000)
    level = np.log1p(1000 * mel / max(float(mel.max()), 1e-12))
    rises = np.maximum(level[:, 2:] - level[:, :-2], 0)
    bands = np.stack([band.mean(0) for band in np.array_split(rises, _BANDS)])
    bands = gaussian_filter1d(bands, 1.5, axis=1)
    return np.asarray(bands - gaussian_filter1d(bands, _FRAMES / 2, axis=1))


def _autocorrelation(signals: Array) -> Array:
    """``(signals, lags)``, 1 at lag 0, corrected for the fewer products at long lags."""
    signals = signals - signals.mean(1, keepdims=True)
    frames = signals.shape[1]
    products = np.fft.irfft(np.abs(np.fft.rfft(signals, 2 * frames)) ** 2)[:, :frames]
    products /= np.maximum(products[:, :1], 1e-12)
    overlap = np.maximum(frames - np.arange(frames), frames / 4)
    return np.asarray(products * frames / overlap)


@functools.cache
def _profiles() -> Array:
    """``(24, 12)`` in the order of `KEYS`."""
    return np.array([np.roll(mode, tonic) for mode in (_MAJOR, _MINOR) for tonic in range(12)])
