"""Both clips of a pair are equally loud, and neither clips."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.audio import Clip, loudness
from musictune.web.levels import TARGET, matched

RATE = 16_000


def noise(seconds: float, size: float, seed: int = 0, rate: int = RATE) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    wave = torch.randn((1, round(seconds * rate)), generator=generator)
    return Clip(size * wave / wave.abs().max(), rate)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.003, 1), st.floats(0.003, 1), st.integers(0, 9), st.sampled_from([0.2, 0.7, 2]))
def test_a_pair_is_equally_loud_and_does_not_clip(a: float, b: float, seed: int, seconds: float):
    made = matched([noise(seconds, a, seed), noise(seconds, b, seed + 10)])
    assert loudness(made[0]) == pytest.approx(loudness(made[1]), abs=0.05)
    assert loudness(made[0]) <= TARGET + 0.05
    assert max(float(clip.wave.abs().max()) for clip in made) <= 1


def test_the_usual_level_is_23_below_full_scale() -> None:
    made = matched([noise(2, 0.9), noise(2, 0.1, 1)])
    assert [loudness(clip) for clip in made] == pytest.approx([TARGET, TARGET], abs=0.05)


def test_a_clip_with_high_peaks_brings_both_down() -> None:
    spiky = torch.zeros(1, 2 * RATE)
    spiky[0, ::4000] = 1.0
    made = matched([Clip(spiky, RATE), noise(2, 0.5)])
    levels = [loudness(clip) for clip in made]
    assert levels[0] == pytest.approx(levels[1], abs=0.05)
    assert levels[0] < TARGET - 1
    assert float(made[0].wave.abs().max()) == pytest.approx(0.98, abs=1e-3)


def test_silence_stays_and_the_other_has_the_usual_level() -> None:
    silent = Clip(torch.zeros(1, RATE), RATE)
    made = matched([silent, noise(1, 0.5)])
    assert not made[0].wave.any()
    assert loudness(made[1]) == pytest.approx(TARGET, abs=0.05)
    assert not any(clip.wave.any() for clip in matched([silent, silent]))


def test_the_sample_rate_tells_nothing() -> None:
    made = matched([noise(1, 0.5, rate=8_000), noise(1, 0.5, rate=32_000)])
    assert [clip.sample_rate for clip in made] == [32_000, 32_000]
    assert math.isclose(made[0].seconds, 1, abs_tol=0.01)
