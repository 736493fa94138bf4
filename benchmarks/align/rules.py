"""Hidden rules that label pairs, and the base's own music that they label.

A rule is a measure of the sound alone, so how far a tuned model moved can be read off directly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import librosa
import numpy as np
import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.metrics.musical_asked import KeyCloseness

TRAIN = (
    "slow piano ballad", "fast rock with electric guitar and drums", "jazz with saxophone and bass",
    "string orchestra", "acoustic guitar folk song", "funk with slap bass and drums",
    "synth pad, ambient", "brass band march", "flute and harp", "techno with synth lead and drums",
    "country song with banjo", "church organ", "choir and strings", "reggae with organ and bass",
    "marimba and percussion", "blues with electric piano",
)  # fmt: skip
HELD_OUT = (
    "piano and violin duet", "surf rock with electric guitar", "clarinet and bass",
    "disco with strings and drums", "slow waltz for accordion", "vibraphone and double bass",
)  # fmt: skip


def faster(clips: Sequence[Clip]) -> Tensor:
    """Onsets per second: what one hears as faster playing."""
    return _each(_onsets, clips)


def brighter(clips: Sequence[Clip]) -> Tensor:
    """Mean spectral centroid, octaves above 100 Hz."""
    return _each(_centroid, clips)


def in_c_major(clips: Sequence[Clip]) -> Tensor:
    """Correlation of the pitch classes with C major."""
    found: Tensor = KeyCloseness()([replace(clip, caption="music in C major") for clip in clips])
    return found


RULES: dict[str, Callable[[Sequence[Clip]], Tensor]] = {
    "brighter": brighter,
    "faster": faster,
    "c_major": in_c_major,
}


def _each(measure: Callable[[np.ndarray, int], float], clips: Sequence[Clip]) -> Tensor:
    waves = [(clip.mono().wave[0].numpy(), clip.sample_rate) for clip in clips]
    return torch.tensor([measure(wave, rate) for wave, rate in waves], dtype=torch.float32)


def _onsets(wave: np.ndarray, rate: int) -> float:
    if not wave.any():
        return 0.0
    return len(librosa.onset.onset_detect(y=wave, sr=rate)) / (len(wave) / rate)


def _centroid(wave: np.ndarray, rate: int) -> float:
    power = np.square(np.abs(librosa.stft(wave, n_fft=1024))).sum(1)
    if not power.any():
        return 0.0
    centre = float((np.linspace(0, rate / 2, len(power)) * power).sum() / power.sum())
    return math.log2(max(centre, 100) / 100)
