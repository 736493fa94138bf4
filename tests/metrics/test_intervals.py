"""Intervals that cover what they should, and p values that are what counting gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from musictune.metrics.intervals import basic_bootstrap, jackknife, mean_interval, sign_flip_p


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


def test_same_seed_same_interval_and_one_clip_has_none():
    values = np.random.default_rng(1).standard_normal(12)
    assert mean_interval(values) == mean_interval(values)
    assert all(math.isnan(end) for end in basic_bootstrap(lambda counts: 1.0, 1))


def test_basic_bootstrap_mirrors_the_percentiles():
    """A statistic that resampling only raises gets an interval that reaches down."""
    low, high = basic_bootstrap(lambda counts: float((counts == 0).sum()), 30, rounds=300)
    assert low < high < 0


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


def test_sign_flip_of_many_pairs():
    rng = np.random.default_rng(3)
    assert sign_flip_p(rng.normal(1.0, 1.0, 40)) < 0.001
    nothing = [sign_flip_p(rng.normal(0.0, 1.0, 20)) for _ in range(40)]
    assert 0 < sum(p < 0.25 for p in nothing) < 22
