"""Health of synthetic signals whose faults are known by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.health import Health

RATE = 44_100
NAMES = tuple(Health.values)


def clip(*channels: np.ndarray, rate: int = RATE) -> Clip:
    return Clip(torch.from_numpy(np.stack(channels).astype(np.float32)), rate)


def values(heard: Clip) -> dict[str, float]:
    (row,) = Health().hear(heard)
    return dict(zip(NAMES, row.tolist(), strict=True))


def tone(hertz: float, seconds: float = 2.0, level: float = 0.1, rate: int = RATE) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def noise(seconds: float = 4.0, level: float = 0.1, rate: int = RATE) -> np.ndarray:
    return level * np.random.default_rng(0).uniform(-1, 1, round(seconds * rate))


def limited(hertz: float, level: float = 0.1, rate: int = RATE) -> np.ndarray:
    """Noise with nothing above ``hertz``, in steps of 16 bits."""
    spectrum = np.fft.rfft(noise(level=level, rate=rate))
    spectrum[round(hertz / rate * 2 * (len(spectrum) - 1)) :] = 0
    return np.round(np.fft.irfft(spectrum) * 32768) / 32768


def test_a_full_scale_sine_has_the_loudness_of_the_standard():
    """BS.1770: 997 Hz at 0 dB in one channel reads -3.01 LUFS."""
    assert values(clip(tone(997.0, level=1.0)))["loudness"] == pytest.approx(-3.01, abs=0.05)
    # Ten times softer is 20 dB, a second channel doubles the power.
    assert values(clip(tone(997.0)))["loudness"] == pytest.approx(-23.01, abs=0.05)
    both = values(clip(tone(997.0), tone(997.0)))["loudness"]
    assert both == pytest.approx(-20.0, abs=0.05)


def test_clipping_counts_runs_and_not_peaks():
    wave = np.zeros(1000)
    wave[100:104] = 1.0
    wave[200:203] = -1.0
    wave[300:302] = 1.0  # two in a row are a peak
    wave[400:408:2] = 1.0
    assert values(clip(wave))["clipping"] == pytest.approx(7 / 1000)
    assert values(clip(wave, np.zeros(1000)))["clipping"] == pytest.approx(7 / 2000)
    assert values(clip(wave * 0.99))["clipping"] == 0
    assert values(clip(tone(440.0, level=1.0)))["clipping"] == 0


def test_a_clipped_sine_has_the_share_of_its_tops():
    loud = np.clip(tone(440.0, level=2.0), -1, 1)
    wanted = 1 - 2 * math.asin(0.5) / math.pi  # where |2 sin| > 1
    assert values(clip(loud))["clipping"] == pytest.approx(wanted, abs=0.01)
    whole_steps = np.round(loud * 32767) / 32768
    assert values(clip(whole_steps))["clipping"] == pytest.approx(wanted, abs=0.01)


def test_silence_is_a_share_of_time_and_needs_all_channels():
    half = np.concatenate([tone(440.0, 1.0), np.zeros(RATE)])
    assert values(clip(half))["silence"] == pytest.approx(0.5, abs=0.03)
    assert values(clip(half, half[::-1]))["silence"] == pytest.approx(0.0, abs=0.03)
    assert values(clip(tone(440.0, level=1e-3)))["silence"] == 1.0
    assert values(clip(tone(440.0, level=2e-3)))["silence"] == 0.0


def test_offset_is_that_of_the_worst_channel():
    found = values(clip(tone(440.0) + 0.02, tone(440.0) - 0.05))
    assert found["dc_offset"] == pytest.approx(0.05, abs=1e-4)
    assert values(clip(tone(441.0)))["dc_offset"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("hertz", [3_000, 8_000, 16_000])
@pytest.mark.parametrize("level", [0.5, 0.01])
def test_a_brick_wall_is_found(hertz: float, level: float):
    assert values(clip(limited(hertz, level)))["bandwidth"] == pytest.approx(hertz, rel=0.03)


def test_an_upsampled_clip_shows_the_rate_it_was_made_at():
    made = clip(noise(rate=16_000), rate=16_000)
    assert values(made)["bandwidth"] == pytest.approx(8_000, rel=0.02)
    assert values(made.resample(RATE))["bandwidth"] == pytest.approx(8_000, rel=0.05)


def test_a_click_is_no_bandwidth_but_a_cymbal_is():
    dull = limited(8_000)
    dull[50_000] = 1.0
    assert values(clip(dull))["bandwidth"] == pytest.approx(8_000, rel=0.03)
    cymbals = limited(8_000)
    for start in range(0, len(cymbals) - 9_000, 22_050):
        cymbals[start : start + 4_000] += noise(1.0)[:4_000]
    assert values(clip(cymbals))["bandwidth"] > 20_000


def test_a_low_tone_is_not_spread_by_the_window():
    assert values(clip(tone(440.0)))["bandwidth"] < 700
    assert values(clip(tone(440.0) + 0.3))["bandwidth"] < 700


@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_silence_has_no_loudness_and_no_bandwidth(rate: int):
    found = values(clip(np.zeros(2 * rate), rate=rate))
    assert math.isnan(found["loudness"]) and math.isnan(found["bandwidth"])
    assert (found["silence"], found["clipping"], found["dc_offset"]) == (1, 0, 0)


@pytest.mark.parametrize("samples", [1, 2, 15, 16, 100, 5_000])
def test_very_short_clips_say_what_they_can(samples: int):
    found = values(clip(tone(2_000.0)[7 : 7 + samples]))
    assert math.isnan(found["loudness"])
    assert math.isnan(found["bandwidth"]) == (samples < 16)
    assert found["silence"] == 0


def test_where_the_standard_says_nothing_loudness_is_not_known():
    assert math.isnan(values(clip(*[tone(440.0)] * 6))["loudness"])
    assert math.isnan(values(clip(tone(440.0, rate=4_000), rate=4_000))["loudness"])


@settings(max_examples=25, deadline=None)
@given(
    gain=st.floats(0.1, 0.9),
    channels=st.integers(1, 3),
    rate=st.sampled_from([8_000, 22_050, 44_100]),
)
def test_health_holds_its_laws(gain: float, channels: int, rate: int):
    """Shares are shares, order and sign of channels do not matter, gain only moves loudness."""
    waves = [noise(0.6, rate=rate) * (1 + i) / 3 for i in range(channels)]
    before = values(clip(*waves, rate=rate))
    after = values(clip(*[-gain * wave for wave in reversed(waves)], rate=rate))
    assert after["loudness"] - before["loudness"] == pytest.approx(20 * math.log10(gain), abs=0.1)
    assert after["bandwidth"] == before["bandwidth"] <= rate / 2
    for name in ("clipping", "silence", "dc_offset"):
        assert 0 <= after[name] <= 1


def test_a_long_clip_is_sampled_and_gives_the_same():
    short = limited(8_000, rate=32_000)
    assert values(clip(np.tile(short, 40), rate=32_000))["bandwidth"] == pytest.approx(
        values(clip(short, rate=32_000))["bandwidth"], rel=0.02
    )


def test_rewards_fall_with_faults_and_loudness_is_none():
    clean, bad = clip(tone(440.0)), clip(np.clip(tone(440.0, level=3.0), -1, 1))
    rewards = Health().reward("clipping")([clean, bad])
    assert rewards[0] == 0 and rewards[1] < -0.5
    with pytest.raises(InputError, match="loudness' is no reward; choose from clipping"):
        Health().reward("loudness")
    with pytest.raises(InputError, match="is no reward"):
        Health().reward("warmth")
