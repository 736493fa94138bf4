"""Opus: the bit rate is the one that was measured, and the delay is taken out."""

from __future__ import annotations

import numpy as np
import pytest

from musictune.bench.opus import fitted, lag, opus_round_trip, shifted
from musictune.errors import InputError

RATE = 32_000


def tune(seconds: float = 4.0) -> np.ndarray:
    """Plucked notes of ever another pitch, twice a second, with a little noise."""
    rng = np.random.default_rng(0)
    wave = rng.normal(0, 1e-3, round(seconds * RATE))
    time = np.arange(RATE // 2) / RATE
    for number, start in enumerate(range(0, len(wave) - RATE // 2 + 1, RATE // 2)):
        pitch = 220 * 2 ** ((number * 5 % 12) / 12)
        tones = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 5))
        wave[start : start + RATE // 2] += 0.2 * np.exp(-5 * time) * tones
    return wave.astype(np.float32)


@pytest.mark.parametrize("kbit", [6.0, 12.0])
def test_it_takes_the_bits_it_is_given_and_comes_back_in_time(kbit: float) -> None:
    wave = tune()
    trip = opus_round_trip(wave, RATE, kbit)
    assert trip.wave.shape == wave.shape
    assert trip.wave.dtype == np.float32
    assert abs(trip.kbit_per_s / kbit - 1) < 0.1
    assert abs(lag(wave, trip.wave, 1000)) <= 1
    assert np.corrcoef(wave, trip.wave)[0, 1] > 0.3


def test_more_bits_bring_more_back() -> None:
    wave = tune()
    errors = [
        float(np.square(opus_round_trip(wave, RATE, kbit).wave - wave).mean())
        for kbit in (12.0, 96.0)
    ]
    assert errors[1] < errors[0] / 10


def test_an_end_that_fills_no_packet_is_kept() -> None:
    wave = tune(1.0)[: RATE - 123]
    back = opus_round_trip(wave, RATE, 64.0).wave
    assert len(back) == len(wave)
    assert np.corrcoef(wave[-400:], back[-400:])[0, 1] > 0.5


@pytest.mark.parametrize("delay", [-37, 0, 250])
def test_lag_finds_a_delay_and_shifted_undoes_it(delay: int) -> None:
    wave = tune(1.0)
    late = shifted(wave, delay, wave.size)
    assert lag(wave, late, 400) == delay
    assert lag(wave, shifted(late, -delay, wave.size), 400) == 0


def test_fitted_cuts_and_fills() -> None:
    wave = np.ones(3, np.float32)
    assert fitted(wave, 2).tolist() == [1, 1]
    assert fitted(wave, 5).tolist() == [1, 1, 1, 0, 0]


def test_nothing_to_code_is_refused() -> None:
    with pytest.raises(InputError, match="0 samples"):
        opus_round_trip(np.zeros(0, np.float32), RATE, 12.0)
