"""Tempo, key and onsets of synthetic music whose truth is known."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from musictune.audio import Clip
from musictune.metrics.musical import (
    KEYS,
    NO_KEY,
    MusicalListener,
    beat_times,
    key_of,
    key_of_chroma,
    listened,
    octave_distance,
    onset_times,
    tempo_fits,
    tempo_of,
)
from musictune.models import judge

RATE = 32_000


def clicks(bpm: float, seconds: float = 10.0, start: float = 0.1) -> Clip:
    """A decaying burst of noise on every beat."""
    wave = np.zeros(round(seconds * RATE), np.float32)
    burst = 0.5 * np.random.default_rng(0).uniform(-1, 1, 1600) * np.exp(-np.arange(1600) / 300)
    for beat in np.arange(start, seconds - 0.1, 60 / bpm):
        wave[round(beat * RATE) :][:1600] += burst
    return Clip(torch.from_numpy(wave)[None], RATE)


def cadence(tonic: int, minor: bool) -> Clip:
    """Tonic, subdominant, dominant, tonic: a second of each, four partials to a note."""
    third, time = 3 if minor else 4, np.arange(RATE) / RATE
    wave = []
    for root, own in ((0, third), (5, third), (7, 4), (0, third)):
        pitches = [tonic + root - 12, tonic + root, tonic + root + own, tonic + root + 7]
        hertz = [440 * 2 ** ((48 + pitch - 69) / 12) for pitch in pitches]
        wave.append(sum(np.sin(2 * np.pi * h * k * time) / k for h in hertz for k in (1, 2, 3, 4)))
    sound = np.concatenate(wave) * np.tile(np.exp(-2 * time), 4) * 0.05
    return Clip(torch.from_numpy(sound.astype(np.float32))[None], RATE)


def silence(seconds: float) -> Clip:
    return Clip(torch.zeros(1, round(seconds * RATE)), RATE)


@pytest.mark.parametrize("bpm", [61, 72, 90, 104.5, 128, 150, 176])
def test_tempo_and_beats_of_clicks(bpm: float):
    heard = clicks(bpm)
    tempo = tempo_of(heard)
    assert tempo_fits(tempo, bpm)
    beats = beat_times(listened(heard), tempo)
    octave = bpm * 2 ** round(math.log2(tempo / bpm))
    assert np.median(np.diff(beats)) == pytest.approx(60 / octave, rel=0.03)


def test_onsets_of_clicks():
    heard = onset_times(listened(clicks(120, start=0.25)))
    wanted = np.arange(0.25, 9.9, 0.5)
    assert len(heard) == len(wanted)
    assert np.abs(heard - wanted).max() < 0.03


@pytest.mark.parametrize("tonic", [0, 3, 6, 9, 11])
@pytest.mark.parametrize("minor", [False, True])
def test_key_of_cadences(tonic: int, minor: bool):
    assert key_of(cadence(tonic, minor)) == KEYS[tonic + 12 * minor]


def test_the_keys_are_those_of_the_judge():
    assert KEYS == judge.KEYS


@given(shift=st.integers(0, 11), chroma=st.lists(st.floats(0, 1), min_size=12, max_size=12))
def test_transposing_chroma_transposes_the_key(shift: int, chroma: list[float]):
    heard = np.array(chroma)
    if np.ptp(heard) < 1e-3:
        return
    fits = sorted(_fits(heard))
    if fits[-1] - fits[-2] < 1e-9:
        return  # a tie may fall either way
    key, clarity = key_of_chroma(heard)
    moved, same = key_of_chroma(np.roll(heard, shift))
    place, wanted = KEYS.index(moved), KEYS.index(key)
    assert (place // 12, place % 12) == (wanted // 12, (wanted + shift) % 12)
    assert same == pytest.approx(clarity) and -1 <= same <= 1 + 1e-12


def _fits(chroma: np.ndarray) -> list[float]:
    from musictune.metrics.musical import _profiles

    return list(np.corrcoef(chroma, _profiles())[0, 1:])


@given(st.floats(20, 400), st.floats(20, 400), st.integers(-3, 3))
def test_octave_distance_is_a_distance_without_octaves(a: float, b: float, octaves: int):
    distance = octave_distance(a, b)
    assert 0 <= distance <= 0.5
    assert distance == pytest.approx(octave_distance(b, a))
    assert octave_distance(a * 2.0**octaves, b) == pytest.approx(distance)
    assert octave_distance(a, a) == 0


def test_a_row_says_what_the_functions_say():
    listener = MusicalListener()
    for clip in (clicks(97, 6.0), cadence(2, True)):
        row = listener.hear(clip)
        assert row.shape == (1, 14) and row.dtype == np.float32
        heard = listener.read(row)
        assert heard.key == key_of(clip)
        assert heard.tempo == pytest.approx(tempo_of(clip), rel=1e-6)
        assert heard.chroma.sum() == pytest.approx(1, abs=1e-5)
        assert heard.onset_rate == pytest.approx(len(onset_times(listened(clip))) / clip.seconds)
        assert 0 < heard.clarity <= 1
    assert np.array_equal(row, pickle.loads(pickle.dumps(listener)).hear(clip))  # noqa: S301


def test_the_listener_is_the_same_at_another_rate_layout_and_level():
    listener, clip = MusicalListener(), cadence(7, False)
    first = listener.read(listener.hear(clip))
    stereo = Clip(clip.wave.repeat(2, 1) * 0.1, RATE).resample(44_100)
    second = listener.read(listener.hear(stereo))
    assert second.key == first.key
    assert second.chroma == pytest.approx(first.chroma, abs=0.01)


@pytest.mark.parametrize("seconds", [1e-4, 0.01, 0.3, 1.9, 5.0])
def test_silence_has_no_tempo_and_no_key_at_any_length(seconds: float):
    row = MusicalListener().hear(silence(seconds))
    assert row.shape == (1, 14) and np.isfinite(row).all() and not row.any()
    heard = MusicalListener.read(row)
    assert math.isnan(heard.tempo) and math.isnan(heard.clarity)
    assert (heard.key, heard.onset_rate) == (NO_KEY, 0)
    assert math.isnan(tempo_of(silence(seconds))) and key_of(silence(seconds)) == NO_KEY


@pytest.mark.parametrize("samples", [1, 3, 700, 3_000, 40_000])
def test_a_short_sound_has_a_finite_row_and_no_tempo(samples: int):
    wave = 0.3 * torch.sin(torch.arange(samples) * 0.1)[None] + 0.1
    row = MusicalListener().hear(Clip(wave, RATE))
    assert np.isfinite(row).all() and row[0, 0] == 0


def test_dither_is_silence():
    wave = torch.from_numpy(np.random.default_rng(0).integers(-1, 2, (1, 4 * RATE)) / 32768)
    assert key_of(Clip(wave.float(), RATE)) == NO_KEY
