"""Intervals that cover what they should, and p values that are what counting gives."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.metrics.intervals import (
    jackknife,
    mean_interval,
    share_interval,
    sign_flip_p,
    wilson_interval,
)


def test_mean_is_weighted():
    value, low, high = mean_interval(np.array([1.0, 4.0]), np.array([3.0, 1.0]))
    assert value == pytest.approx(1.75)
    assert low <= value <= high


def test_interval_of_a_mean_covers_the_truth():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(40):
        _, low, high = mean_interval(rng.normal(2.0, 1.0, 40))
        hits += low <= 2.0 <= high
    assert 34 <= hits <= 40


@pytest.mark.parametrize("clips", [2, 3, 8])
def test_interval_of_a_mean_holds_the_truth_with_few_clips_too(clips: int):
    """Where a bootstrap holds it 6 or 8 times in 10."""
    rng = np.random.default_rng(clips)
    hits = 0
    for _ in range(1000):
        _, low, high = mean_interval(rng.normal(2.0, 1.0, clips))
        hits += low <= 2.0 <= high
    assert 930 <= hits <= 970


def test_interval_of_clips_of_many_lengths_holds_the_truth():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        weights = rng.integers(1, 24, 8)
        _, low, high = mean_interval(rng.normal(2.0, 1.0, 8), weights)
        hits += low <= 2.0 <= high
    assert 920 <= hits <= 980


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(-100, 100), min_size=2, max_size=9),
    scale=st.floats(0.1, 10),
    shift=st.floats(-100, 100),
)
def test_interval_of_a_mean_moves_with_its_values(values: list[float], scale: float, shift: float):
    """And weights count by what they are to each other."""
    clips = np.array(values)
    weights = np.arange(1, len(clips) + 1)
    wanted = scale * np.array(mean_interval(clips, weights)) + shift
    got = mean_interval(scale * clips + shift, 7 * weights)
    assert got == pytest.approx(tuple(wanted), rel=1e-9, abs=1e-6)


def test_a_clip_without_weight_counts_for_nothing_and_one_clip_has_no_interval():
    values = np.array([1.0, 2.0, 50.0])
    assert mean_interval(values, np.array([2, 1, 0])) == mean_interval(values[:2], np.array([2, 1]))
    for alone in (mean_interval(np.array([3.0])), mean_interval(values, np.array([0, 0, 2]))):
        assert not math.isnan(alone[0])
        assert math.isnan(alone[1]) and math.isnan(alone[2])


def test_jackknife_of_a_mean_is_the_t_interval():
    from scipy.stats import t

    values = np.random.default_rng(2).standard_normal(15)
    without = (values.sum() - values) / 14
    half = t.ppf(0.975, 14) * values.std(ddof=1) / math.sqrt(15)
    low, high = jackknife(without, values.mean())
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_sign_flip_counts_every_swap():
    assert sign_flip_p(np.array([1.0, 1.0, 1.0])) == pytest.approx(2 / 8)
    assert sign_flip_p(np.array([1.0, 2.0, -3.0])) == 1.0
    assert sign_flip_p(np.zeros(4)) == 1.0


@pytest.mark.parametrize("count", [14, 16])
def test_sign_flip_of_random_swaps_is_near_that_of_all(count: int):
    differences = np.random.default_rng(count).normal(0.4, 1.0, count)
    signs = np.array(list(itertools.product((1, -1), repeat=count)), dtype=np.int8)
    exact = (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12).mean()
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.02)


def test_sign_flip_of_many_pairs():
    rng = np.random.default_rng(3)
    assert sign_flip_p(rng.normal(1.0, 1.0, 40)) < 0.001
    nothing = [sign_flip_p(rng.normal(0.0, 1.0, 20)) for _ in range(40)]
    assert 0 < sum(p < 0.25 for p in nothing) < 22


def test_the_interval_of_a_share():
    """Wilson's, for 8 of 10: 0.4902 to 0.9433."""
    values = np.array([1.0] * 8 + [0.0] * 2)
    value, low, high = share_interval(values, [str(i) for i in range(10)])
    assert (value, low, high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    # Ten copies of each in ten clusters are no more evidence.
    assert share_interval(np.repeat(values, 10), [str(i // 10) for i in range(100)]) == (
        pytest.approx((value, low, high))
    )
    graded = share_interval(np.array([0.9, 1.0, 0.95]), ["a", "b", "c"])
    assert graded[1] < graded[0] < graded[2] <= 1
    assert all(math.isnan(end) for end in share_interval(np.ones(3), ["a"] * 3)[1:])


def test_the_interval_of_a_count():
    low, high = wilson_interval(0.8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson_interval(0.0, 5)[0] == 0 and wilson_interval(1.0, 5)[1] == 1
    assert all(math.isnan(end) for end in wilson_interval(0.0, 0))


def test_equal_values_have_themselves_as_mean_and_interval():
    for count in (2, 3, 7, 10, 49):
        assert mean_interval(np.ones(count)) == (1.0, 1.0, 1.0)
