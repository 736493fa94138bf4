"""Describing a clip by what can be heard in it: tempo, key, brightness, percussiveness."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musictune.audio import Clip

_RATE = 22_050  # Hz, at which librosa's defaults are tuned
_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
# How well each scale degree fits a key in listening tests: Krumhansl & Kessler, Psychological
# Review 89 (1982).
_MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
_MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
_CLEAR_KEY = 0.55  # correlation with a key's profile below which no key is named
_CLEAR_BEAT = 0.2  # periodicity of the onsets below which no tempo is named
_BRIGHT, _DARK = 2_600.0, 800.0  # Hz of spectral centroid
_PERCUSSIVE = 0.5  # share of the energy


@dataclass(frozen=True)
class Heard:
    """What is heard in a clip.

    Attributes:
        tempo: beats per minute, 0 if there is no clear beat.
        key: such as "A minor" or "D# major", empty if there is no clear key.
        brightness: spectral centroid in Hz.
        percussive: share of the energy that is percussive rather than harmonic, 0 to 1.
    """

    tempo: float
    key: str
    brightness: float
    percussive: float


def hear(clip: Clip) -> Heard:
    """Listen to a clip. Tempo by autocorrelated onsets, key by Krumhansl's profiles on the
    constant-Q chroma, percussiveness by median filtering (Fitzgerald, DAFx 2010)."""
    wave = clip.mono().resample(_RATE).wave[0].numpy()
    # librosa's constant-Q and onset windows need about a second.
    if len(wave) < _RATE:
        wave = np.pad(wave, (0, _RATE - len(wave)))
    with warnings.catch_warnings():
        # librosa remarks on music without pitch, which is no fault of the user's.
        warnings.simplefilter("ignore", UserWarning)
        return _hear(wave)


def _hear(wave: NDArray[np.float32]) -> Heard:
    import librosa

    spectrum = librosa.stft(wave)
    harmonic, percussive = librosa.decompose.hpss(spectrum)
    total = float((np.abs(harmonic) ** 2).sum() + (np.abs(percussive) ** 2).sum())
    if total <= 1e-9:
        return Heard(0.0, "", 0.0, 0.0)
    share = float((np.abs(percussive) ** 2).sum()) / total
    tuned = librosa.istft(harmonic, length=len(wave))
    chroma = librosa.feature.chroma_cqt(y=tuned, sr=_RATE).mean(1)
    return Heard(_tempo(wave), _key(chroma), _brightness(np.abs(spectrum)), share)


def caption(heard: Heard, subject: str) -> str:
    """A sentence in the vocabulary of the bundled model: "a slow dark piano in A minor, 80 bpm".

    Args:
        heard: what is heard; what is unclear is left out.
        subject: what is playing, such as "piano" or "<name> piano".
    """
    words = [tempo_word(heard.tempo)] if heard.tempo else []
    if heard.brightness > _BRIGHT:
        words.append("bright")
    elif 0 < heard.brightness < _DARK:
        words.append("dark")
    if heard.percussive > _PERCUSSIVE:
        words.append("percussive")
    words.append(subject)
    article = "an" if words[0][:1] in "aeiou" else "a"
    text = f"{article} {' '.join(words)}"
    if heard.key:
        text += f" in {heard.key}"
    if heard.tempo:
        text += f", {heard.tempo:.0f} bpm"
    return text


def tempo_word(tempo: float) -> str:
    """slow below 85 beats per minute, moderate to 120, fast to 150, then very fast."""
    if tempo < 85:
        return "slow"
    if tempo <= 120:
        return "moderate"
    return "fast" if tempo <= 150 else "very fast"


def _tempo(wave: NDArray[np.float32]) -> float:
    import librosa

    onsets = librosa.onset.onset_strength(y=wave, sr=_RATE)
    if onsets.max() <= 0:
        return 0.0
    centred = onsets - onsets.mean()
    periods = librosa.autocorrelate(centred)
    periods = periods / max(float(periods[0]), 1e-12)
    frames_per_second = _RATE / 512
    fastest, slowest = int(frames_per_second * 60 / 200), int(frames_per_second * 60 / 40)
    if periods[fastest : slowest + 1].max(initial=0.0) < _CLEAR_BEAT:
        return 0.0
    return float(librosa.feature.tempo(onset_envelope=onsets, sr=_RATE)[0])


def _key(chroma: NDArray[np.float32]) -> str:
    if not math.isfinite(float(chroma.sum())) or chroma.std() < 1e-6:
        return ""
    best, name = _CLEAR_KEY, ""
    for mode, profile in (("major", _MAJOR), ("minor", _MINOR)):
        for tonic in range(12):
            fit = float(np.corrcoef(np.roll(profile, tonic), chroma)[0, 1])
            if fit > best:
                best, name = fit, f"{_NAMES[tonic]} {mode}"
    return name


def _brightness(magnitudes: NDArray[np.float32]) -> float:
    """Centroid of the mean spectrum, so that loud moments count and pauses do not."""
    mean = magnitudes.mean(1)
    frequencies = np.linspace(0, _RATE / 2, len(mean))
    return float((frequencies * mean).sum() / mean.sum())
