"""The Fréchet distance against closed forms, scipy's matrix root, and its own laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.errors import InputError
from musictune.metrics.frechet import frechet_between, frechet_distance, frechet_score


def covariance(rng: np.random.Generator, dim: int, rank: int | None = None) -> np.ndarray:
    factor = rng.standard_normal((dim, rank or 2 * dim))
    return factor @ factor.T / factor.shape[1]


def moments(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return points.mean(0), np.cov(points, rowvar=False)


def test_one_dimension_is_the_distance_of_means_and_deviations():
    got = frechet_distance([1.0], [[4.0]], [4.0], [[25.0]])
    assert got == pytest.approx((1 - 4) ** 2 + (2 - 5) ** 2, rel=1e-12)


def test_commuting_covariances():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    a, b = rng.uniform(0.1, 3, 6), rng.uniform(0.1, 3, 6)
    mu = rng.standard_normal(6)
    got = frechet_distance(mu, basis * a @ basis.T, 0 * mu, basis * b @ basis.T)
    assert got == pytest.approx((mu**2).sum() + ((a**0.5 - b**0.5) ** 2).sum(), rel=1e-10)


def test_equals_scipys_matrix_root():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    one, other = covariance(rng, 24), covariance(rng, 24)
    mu1, mu2 = rng.standard_normal((2, 24))
    product = np.real(sqrtm(one @ other))
    wanted = ((mu1 - mu2) ** 2).sum() + np.trace(one + other - 2 * product)
    assert frechet_distance(mu1, one, mu2, other) == pytest.approx(wanted, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), dim=st.integers(1, 9), rank=st.integers(1, 12))
def test_laws(seed: int, dim: int, rank: int):
    """Symmetric, nil to itself, not negative, and the same after turning both sets."""
    rng = np.random.default_rng(seed)
    one, other = covariance(rng, dim, rank), covariance(rng, dim)
    mu1, mu2 = rng.standard_normal((2, dim))
    distance = frechet_distance(mu1, one, mu2, other)
    assert distance >= 0
    assert frechet_distance(mu2, other, mu1, one) == pytest.approx(distance, rel=1e-5, abs=1e-6)
    assert frechet_distance(mu1, one, mu1, one) == pytest.approx(0, abs=1e-6)
    turn, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    turned = frechet_distance(turn @ mu1, turn @ one @ turn.T, turn @ mu2, turn @ other @ turn.T)
    assert turned == pytest.approx(distance, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("n", "m"), [(5, 200), (200, 5), (16, 16), (7, 9), (2, 2), (60, 50)])
def test_few_points_give_what_their_moments_give(n: int, m: int):
    rng = np.random.default_rng(n * 1000 + m)
    one = rng.standard_normal((n, 16)) @ rng.standard_normal((16, 16))
    other = rng.standard_normal((m, 16)) + 0.5
    full = frechet_distance(*moments(one), *moments(other))
    assert frechet_between(one, other) == pytest.approx(full, rel=1e-6)


def test_never_negative_for_nearly_equal_sets():
    points = np.random.default_rng(0).standard_normal((10, 32)) * 1e-3 + 30
    assert 0 <= frechet_between(points, points) < 1e-9


def test_bad_input_is_refused():
    eye = np.eye(3)
    with pytest.raises(InputError, match="do not fit"):
        frechet_distance(np.zeros(3), eye, np.zeros(4), np.eye(4))
    with pytest.raises(InputError, match="not finite"):
        frechet_distance(np.zeros(3), eye * np.nan, np.zeros(3), eye)
    with pytest.raises(InputError, match="two embeddings"):
        frechet_between(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(InputError, match="dimensions"):
        frechet_between(np.zeros((4, 3)), np.zeros((5, 2)))


def test_interval_needs_more_clips_than_dimensions():
    rng = torch.Generator().manual_seed(0)
    clips = list(torch.randn(9, 3, 4, generator=rng))
    few = frechet_score(clips[:4], clips)
    assert few.low != few.low
    assert few.n == 4
    many = frechet_score(clips, list(torch.randn(50, 3, 4, generator=rng) + 1))
    assert 0 <= many.low < many.high


def test_interval_covers_the_truth_where_windows_of_a_clip_are_alike():
    """60 clips of 4 near-equal windows: a resampling of windows would cover far less often."""
    rng = np.random.default_rng(0)
    shift, hits, rounds = 1.0, 0, 40
    target = [torch.from_numpy(rng.standard_normal((20_000, 2)))]
    for _ in range(rounds):
        centres = rng.standard_normal((60, 1, 2)) * 0.9**0.5
        windows = centres + rng.standard_normal((60, 4, 2)) * 0.1**0.5 + [shift, 0]
        score = frechet_score(list(torch.from_numpy(windows)), target)
        hits += score.low <= shift**2 <= score.high
    assert hits >= 0.8 * rounds
