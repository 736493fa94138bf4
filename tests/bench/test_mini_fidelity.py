"""Measures of a round trip, each against a case whose answer is known."""

from __future__ import annotations

import math

import librosa
import numpy as np
import pytest

from musictune.bench.fidelity import (
    chroma_agreement,
    mel_distance,
    onset_f,
    perplexity_shares,
    pitch_share,
    pitch_track,
)

RATE = 32_000
PITCHES = (57, 60, 64, 69, 67, 62)


def melody(transpose: float = 0.0, late_s: float = 0.0) -> np.ndarray:
    """Half a second of each of `PITCHES`, MIDI, struck and ringing off."""
    wave = np.zeros(round(3.4 * RATE))
    time = np.arange(RATE // 2) / RATE
    for number, pitch in enumerate(PITCHES):
        hertz = 440 * 2 ** ((pitch + transpose - 69) / 12)
        tones = sum(np.sin(2 * np.pi * hertz * k * time) / k**2 for k in range(1, 6))
        start = round((0.1 + late_s + number / 2) * RATE)
        wave[start : start + RATE // 2] += 0.2 * np.exp(-3 * time) * tones
    return wave.astype(np.float32)


def test_equal_waves_are_equal_in_every_measure() -> None:
    wave = melody()
    assert mel_distance(wave, wave, RATE) == 0
    assert chroma_agreement(wave, wave, RATE) == 1
    assert onset_f(wave, wave, RATE) == 1
    track = pitch_track(wave, RATE, 100, 1000)
    assert pitch_share(track, track) == 1


def test_mel_distance_of_a_gain_is_its_decades_at_each_of_seven_scales() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    found = mel_distance(noise, noise / 10, RATE)
    # Bands without a bin are equal in both, and there are some at the longest windows.
    assert 6.5 < found <= 7.0001


def test_mel_distance_at_one_scale_is_that_of_librosa() -> None:
    a = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    b = melody()[:RATE]
    ours, theirs = mel_distance(a, b, RATE), 0.0
    for window, bands in ((32 * 2**i, 5 * 2**i) for i in range(7)):
        logs = [
            np.log10(
                np.maximum(
                    librosa.feature.melspectrogram(
                        y=x,
                        sr=RATE,
                        n_fft=window,
                        hop_length=window // 4,
                        n_mels=bands,
                        power=1.0,
                        pad_mode="reflect",
                    ),
                    1e-5,
                )
            )
            for x in (a, b)
        ]
        theirs += float(np.abs(logs[0] - logs[1]).mean())
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_another_key_is_another_chroma_and_pitch() -> None:
    wave, higher = melody(), melody(1.0)
    assert chroma_agreement(wave, higher, RATE) < 0.1
    tracks = [pitch_track(x, RATE, 100, 1000) for x in (wave, higher)]
    assert pitch_share(*tracks) < 0.05


@pytest.mark.parametrize(("cents", "kept"), [(30, True), (70, False)])
def test_fifty_cents_are_the_limit(cents: int, kept: bool) -> None:
    track = np.array([220.0, 440.0, math.nan])
    assert pitch_share(track, track * 2 ** (cents / 1200)) == float(kept)


def test_a_voice_that_is_lost_counts_as_wrong() -> None:
    assert pitch_share(np.array([220.0, 220.0]), np.array([220.0, math.nan])) == 0.5
    assert math.isnan(pitch_share(np.array([math.nan]), np.array([220.0])))


def test_pitch_is_found_in_hertz() -> None:
    track = pitch_track(melody(), RATE, 100, 1000)
    first = track[round(0.3 * 16_000 / 256)]
    assert abs(1200 * math.log2(first / (440 * 2 ** ((PITCHES[0] - 69) / 12)))) < 25


@pytest.mark.parametrize(("late", "found"), [(0.02, 1.0), (0.2, 0.0)])
def test_onsets_count_within_fifty_milliseconds(late: float, found: float) -> None:
    assert onset_f(melody(), melody(late_s=late), RATE) == pytest.approx(found, abs=0.2)


def test_silence_has_nothing_to_measure() -> None:
    silence = np.zeros(RATE, np.float32)
    assert math.isnan(onset_f(silence, silence, RATE))
    assert math.isnan(chroma_agreement(silence, silence, RATE))
    assert mel_distance(silence, silence, RATE) == 0
    assert onset_f(melody(), np.zeros_like(melody()), RATE) == 0


def test_perplexity_of_a_constant_is_one_entry_and_of_all_alike_the_whole_book() -> None:
    constant, even, half = np.zeros(64, int), np.arange(64) % 16, np.arange(64) % 8
    shares = perplexity_shares(np.stack([constant, even, half]), 16)
    assert shares == pytest.approx([1 / 16, 1.0, 0.5])
