"""What is heard in music of known tempo, key and colour."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musictune.audio import Clip
from musictune.data.captions import Heard, caption, hear, tempo_word

RATE = 22_050


def clip(wave: np.ndarray) -> Clip:
    return Clip(torch.from_numpy(wave / max(np.abs(wave).max(), 1e-9) * 0.5)[None].float(), RATE)


def scale(tonic: int, steps: tuple[int, ...], seconds: float = 8.0) -> np.ndarray:
    """A scale up and down that rests on its tonic chord."""
    notes = [tonic, *[tonic + s for s in steps], tonic + 12, tonic + 7, tonic + steps[1], tonic]
    length = round(seconds * RATE / len(notes))
    time = np.arange(length) / RATE
    waves = []
    for note in notes:
        base = 440 * 2 ** ((note - 69) / 12)
        waves.append(sum(np.sin(2 * np.pi * base * k * time) / k for k in (1, 2, 3)))
    drone = np.sin(
        2 * np.pi * 440 * 2 ** ((tonic - 12 - 69) / 12) * np.arange(length * len(notes)) / RATE
    )
    return np.concatenate(waves) * 0.5 + 0.5 * drone


def clicks(tempo: float, seconds: float = 8.0) -> np.ndarray:
    """Short bursts of noise."""
    random = np.random.default_rng(0)
    wave = np.zeros(round(seconds * RATE))
    for beat in np.arange(0.1, seconds - 0.1, 60 / tempo):
        first = round(beat * RATE)
        wave[first : first + 1000] += random.normal(0, 1, 1000) * np.exp(-np.arange(1000) / 150)
    return wave


@pytest.mark.parametrize("tempo", [80, 100, 140])
def test_tempo(tempo: int) -> None:
    heard = hear(clip(clicks(tempo))).tempo
    assert min(abs(heard / tempo - octave) for octave in (0.5, 1, 2)) < 0.05


@pytest.mark.parametrize(
    ("tonic", "steps", "key"),
    [
        (60, (2, 4, 5, 7, 9, 11), "C major"),
        (57, (2, 3, 5, 7, 8, 10), "A minor"),
        (66, (2, 4, 5, 7, 9, 11), "F# major"),
    ],
)
def test_key(tonic: int, steps: tuple[int, ...], key: str) -> None:
    assert hear(clip(scale(tonic, steps))).key == key


def test_brightness_and_percussiveness_order_sounds() -> None:
    drums, tones = hear(clip(clicks(120))), hear(clip(scale(48, (2, 4, 5, 7, 9, 11))))
    assert drums.percussive > 0.5 > tones.percussive
    assert drums.brightness > 2 * tones.brightness


def test_nothing_is_named_where_nothing_is_clear() -> None:
    noise = hear(clip(np.random.default_rng(0).normal(0, 1, 4 * RATE)))
    assert noise.key == ""
    silence = hear(clip(np.zeros(RATE)))
    assert silence == Heard(0.0, "", 0.0, 0.0)
    assert hear(clip(np.sin(np.arange(2000)))).percussive >= 0  # shorter than a second


@pytest.mark.parametrize(
    ("heard", "subject", "text"),
    [
        (Heard(80, "A minor", 1500, 0.1), "piano", "a slow piano in A minor, 80 bpm"),
        (Heard(140.4, "", 4000, 0.8), "<x> drums", "a fast bright percussive <x> drums, 140 bpm"),
        (Heard(0, "C major", 500, 0.1), "organ", "a dark organ in C major"),
        (Heard(0, "", 0, 0), "organ", "an organ"),
    ],
)
def test_sentences(heard: Heard, subject: str, text: str) -> None:
    assert caption(heard, subject) == text


def test_tempo_words() -> None:
    words = [tempo_word(tempo) for tempo in (84.9, 85, 120, 120.1, 150, 151)]
    assert words == ["slow", "moderate", "moderate", "fast", "fast", "very fast"]
