"""The Fréchet distance against closed forms, scipy's matrix root, and its own laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.errors import InputError
from musictune.metrics.base import NotComputed, Score
from musictune.metrics.features import Features
from musictune.metrics.frechet import Frechet, frechet_between, frechet_distance, frechet_score
from musictune.metrics.gaussian import Gaussian, Groups, distance

DEBIASED, INFINITY = "frechet_distance_debiased", "frechet_distance_infinity"


def covariance(rng: np.random.Generator, dim: int, rank: int | None = None) -> np.ndarray:
    factor = rng.standard_normal((dim, rank or 2 * dim))
    return factor @ factor.T / factor.shape[1]


def moments(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return points.mean(0), np.cov(points, rowvar=False)


def clips(rng: np.random.Generator, count: int, rows: int, dim: int, shift: float = 0) -> Features:
    return Features.of(list(rng.standard_normal((count, rows, dim)) + shift))


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


@pytest.mark.parametrize("dim", [1, 2, 24, 96])
def test_equals_scipys_matrix_root(dim: int):
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(dim)
    one, other = covariance(rng, dim), covariance(rng, dim)
    mu1, mu2 = rng.standard_normal((2, dim))
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


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(0, 9), min_size=2, max_size=30).filter(lambda x: sum(x) > 1),
    dim=st.integers(1, 12),
    offset=st.sampled_from([0.0, 1e3]),
)
def test_groups_have_the_moments_of_their_clips(
    seed: int, lengths: list[int], dim: int, offset: float
):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((sum(lengths), dim)) + offset
    groups = Groups(Features(points, np.array(lengths)))
    whole = groups.whole
    assert whole.n_clips == sum(n > 0 for n in lengths) == groups.clips.sum()
    assert np.ptp(groups.clips) <= 1
    assert np.allclose(whole.mu, points.mean(0), rtol=1e-12)
    assert np.allclose(whole.cov, np.atleast_2d(np.cov(points, rowvar=False)), atol=1e-9)
    assert np.allclose(whole.root @ whole.root.T, whole.cov, atol=1e-9)
    assert np.allclose(whole.whitening @ whole.root, np.eye(whole.root.shape[1]), atol=1e-4)


def test_a_part_has_the_moments_of_its_clips():
    """Every clip holds its number in each of its rows, so that a part tells which clips it has."""
    for dim in (2, 200):
        points = np.repeat(np.arange(40.0), 3)[:, None] * np.ones(dim)
        groups = Groups(Features(points, np.full(40, 3)))
        parts = [groups.gaussian(np.array([i])) for i in range(len(groups))]
        means = np.array([part.mu[0] for part in parts])
        assert (means * groups.clips).sum() == pytest.approx(np.arange(40).sum())
        both = groups.gaussian(np.array([0, 3]))
        assert both.n_clips == groups.clips[[0, 3]].sum()
        assert both.n_frames == 3 * both.n_clips
        assert both.mu[0] == pytest.approx(np.average(means[[0, 3]], weights=groups.clips[[0, 3]]))


def test_sets_on_disk_and_of_many_chunks_give_the_same(tmp_path, monkeypatch):
    from musictune.metrics import features

    monkeypatch.setattr(features, "_CHUNK_BYTES", 1000)
    rng = np.random.default_rng(0)
    made, reference = clips(rng, 40, 3, 5, 0.3), clips(rng, 50, 4, 5)
    stored = np.lib.format.open_memmap(
        tmp_path / "points.npy", "w+", dtype=np.float64, shape=made.points.shape
    )
    stored[:] = made.points
    there = Frechet()(Features(stored, made.lengths), reference)
    monkeypatch.undo()
    for name, score in Frechet()(made, reference).items():
        assert isinstance(score, Score)
        again = there[name]
        assert isinstance(again, Score)
        for field in ("value", "low", "high"):
            assert getattr(again, field) == pytest.approx(getattr(score, field), rel=1e-9)


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
    with pytest.raises(InputError, match="not finite"):
        frechet_between(np.full((4, 3), np.nan), np.zeros((5, 3)))
    with pytest.raises(InputError, match="no clips"):
        frechet_score([], [torch.zeros(2, 3)])
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="two embeddings"):
        Frechet()(clips(rng, 1, 1, 3), clips(rng, 9, 2, 3))
    with pytest.raises(InputError, match="use one embedder"):
        one = Features.of(list(rng.standard_normal((4, 2, 3))), "clap")
        Frechet()(one, Features.of(list(rng.standard_normal((4, 2, 3))), "mert"))


@pytest.mark.parametrize("dim", [4, 40])
def test_clips_that_all_sound_the_same_have_a_distance(dim: int):
    """Of silence, say: a covariance of nothing, on either side and on both."""
    rng = np.random.default_rng(0)
    silent = Features.of(list(np.ones((9, 3, dim))))
    other = clips(rng, 9, 3, dim)
    plain = np.square(other.points.mean(0) - 1).sum() + np.cov(other.points.T).trace()
    for pair in ((silent, other), (other, silent)):
        scores = Frechet()(*pair)
        assert scores["frechet_distance"].value == pytest.approx(plain)
        assert all(isinstance(score, Score) for score in scores.values())
    assert Frechet()(silent, silent)["frechet_distance"].value == 0


def test_one_clip_has_a_distance_but_no_interval():
    rng = np.random.default_rng(0)
    scores = Frechet()(clips(rng, 1, 30, 4), clips(rng, 50, 3, 4))
    plain = scores["frechet_distance"]
    assert isinstance(plain, Score) and np.isnan(plain.low) and "one clip" in plain.note
    for name in (DEBIASED, INFINITY):
        missing = scores[name]
        assert isinstance(missing, NotComputed) and "not 1" in missing.reason


def test_few_clips_for_the_dimensions_are_said():
    rng = np.random.default_rng(0)
    few = Frechet()(clips(rng, 12, 3, 8), clips(rng, 12, 3, 8))
    plain, debiased = few["frechet_distance"], few[DEBIASED]
    assert isinstance(plain, Score) and isinstance(debiased, Score)
    assert "12 made clips and 12 reference clips for 8 dimensions" in plain.note
    assert "unreliable" in plain.note and "kernel distance" in plain.note
    assert plain.low <= plain.value <= plain.high
    assert np.isnan(debiased.low) and "no interval" in debiased.note
    some = Frechet()(clips(rng, 24, 3, 8), clips(rng, 24, 3, 8))
    assert some["frechet_distance"].note == ""
    assert "unreliable" in some[DEBIASED].note and some[DEBIASED].high > 0
    many = Frechet()(clips(rng, 60, 3, 8, 1), clips(rng, 60, 3, 8))
    assert not any(score.note for score in many.values())
    assert all(0 < score.low < score.value < score.high for score in many.values())


def test_scores_are_the_same_each_time_and_plain_is_the_score_alone():
    rng = np.random.default_rng(0)
    made, reference = clips(rng, 30, 3, 4, 0.5), clips(rng, 40, 2, 4)
    first = Frechet()(made, reference)
    assert Frechet()(made, reference) == first
    assert first["frechet_distance"] == frechet_score(
        [torch.from_numpy(clip) for clip in made], [torch.from_numpy(clip) for clip in reference]
    )
    assert set(first) == set(Frechet.scores)


def test_debiased_is_nearer_the_truth_than_plain():
    """Sets of one and the same Gaussian: the truth is 0, whatever the clips are."""
    rng = np.random.default_rng(0)
    for rows in (1, 5):
        scores = Frechet()(clips(rng, 200, rows, 16), clips(rng, 200, rows, 16))
        plain, debiased = scores["frechet_distance"].value, scores[DEBIASED].value
        assert debiased < 0.25 * plain
        assert scores[DEBIASED].low == 0


def test_distance_of_thin_and_full_gaussians_is_symmetric():
    rng = np.random.default_rng(0)
    thin, full = rng.standard_normal((9, 24)), rng.standard_normal((90, 24)) + 0.2
    one, other = Gaussian.of_points(thin), Gaussian.of_points(full)
    assert one.rows is not None and other.rows is None
    assert distance(one, other) == pytest.approx(distance(other, one), rel=1e-9)


def test_interval_covers_the_truth_where_windows_of_a_clip_are_alike():
    """60 clips of 4 near-equal windows: a resampling of windows would cover far less often."""
    rng = np.random.default_rng(0)
    shift, hits, rounds = 1.0, 0, 40
    target = Features.of([rng.standard_normal((20_000, 2))] * 2)
    for _ in range(rounds):
        centres = rng.standard_normal((60, 1, 2)) * 0.9**0.5
        windows = centres + rng.standard_normal((60, 4, 2)) * 0.1**0.5 + [shift, 0]
        score = frechet_score(list(windows), target)
        hits += score.low <= shift**2 <= score.high
    assert hits >= 0.8 * rounds
