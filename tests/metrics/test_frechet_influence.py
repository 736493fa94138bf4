"""Influence against leaving clips out, clips alone against the plain formula, sizes, coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.errors import InputError
from musictune.metrics.base import Score
from musictune.metrics.features import Features
from musictune.metrics.frechet import frechet_between, frechet_distance, frechet_to_statistics
from musictune.metrics.frechet_bias import distance_by_size
from musictune.metrics.frechet_influence import Influence, clip_distances, clip_influence
from musictune.metrics.gaussian import Gaussian, Groups
from musictune.metrics.statistics_files import Statistics


def clips(rng: np.random.Generator, count: int, rows: int, dim: int, shift: float = 0) -> Features:
    return Features.of(list(rng.standard_normal((count, rows, dim)) + shift))


def without(features: Features, clip: int) -> np.ndarray:
    return features.select([i for i in range(len(features)) if i != clip]).points


@pytest.mark.parametrize(("count", "dim"), [(400, 6), (400, 1)])
def test_influence_is_what_leaving_a_clip_out_changes(count: int, dim: int):
    rng = np.random.default_rng(0)
    made, reference = clips(rng, count, 3, dim, 0.7), clips(rng, count, 2, dim)
    whole = frechet_between(made.points, reference.points)
    pushes = clip_influence(made, reference)
    for clip in range(0, count, 40):
        left_out = whole - frechet_between(without(made, clip), reference.points)
        assert pushes[clip] == pytest.approx(left_out, abs=0.05 * np.abs(pushes).max())
    influence = Influence.between(Groups(made).whole, Groups(reference).whole)
    pulls = influence.of_reference(reference)
    for clip in range(0, count, 40):
        left_out = whole - frechet_between(made.points, without(reference, clip))
        assert pulls[clip] == pytest.approx(left_out, abs=0.05 * np.abs(pulls).max())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), dim=st.integers(1, 30), lengths=st.integers(1, 8))
def test_influences_add_up_to_nothing(seed: int, dim: int, lengths: int):
    """More weight on every frame alike changes nothing."""
    rng = np.random.default_rng(seed)
    made = Features.of([rng.standard_normal((n, dim)) for n in rng.integers(1, lengths + 1, 12)])
    reference = clips(rng, 6, 3, dim)
    influence = Influence.between(Groups(made).whole, Groups(reference).whole)
    for found in (influence.of_made(made), influence.of_reference(reference)):
        assert np.isfinite(found).all()
        assert abs(found.sum()) <= 1e-9 * max(np.abs(found).sum(), 1)


def test_the_odd_clip_out_is_found():
    rng = np.random.default_rng(0)
    made, reference = clips(rng, 30, 4, 8), clips(rng, 30, 4, 8)
    points = made.points.copy()
    points[17 * 4 : 18 * 4] += 3
    assert clip_influence(Features(points, made.lengths), reference).argmax() == 17


@pytest.mark.parametrize("dim", [3, 20])
def test_a_clip_alone_has_the_distance_of_its_points(dim: int):
    rng = np.random.default_rng(0)
    lengths = [5, 1, 2, 40, 5, 3, 40]
    made = Features.of([rng.standard_normal((n, dim)) + 5 for n in lengths])
    reference = clips(rng, 50, 3, dim)
    found = clip_distances(made, reference)
    for clip, length, value in zip(made, lengths, found, strict=True):
        if length < 2:
            assert np.isnan(value)
            continue
        assert value == pytest.approx(frechet_between(clip, reference.points), rel=1e-6)
    stored = clip_distances(made, Groups(reference).whole)
    assert np.array_equal(stored, found, equal_nan=True)


def test_distance_falls_along_a_line_as_clips_get_more():
    rng = np.random.default_rng(0)
    made, reference = clips(rng, 320, 2, 8, 0.2), clips(rng, 3000, 1, 8)
    sizes, distances, fit = distance_by_size(made, reference)
    assert list(sizes) == sorted(sizes) and sizes[-1] == 320 and sizes[0] == 80
    assert distances[-1] == pytest.approx(frechet_between(made.points, reference.points))
    assert distances[0] > distances[-1] > fit.at_infinity
    assert fit.slope > 0 and 0 < fit.error < 0.2 * fit.at_infinity
    again = distance_by_size(made, reference)
    assert np.array_equal(again[1], distances) and again[2] == fit


def test_bad_input_is_refused():
    rng = np.random.default_rng(0)
    reference = clips(rng, 10, 3, 4)
    with pytest.raises(InputError, match="two made clips"):
        clip_influence(clips(rng, 1, 9, 4), reference)
    with pytest.raises(InputError, match="four made clips"):
        distance_by_size(clips(rng, 3, 9, 4), reference)
    with pytest.raises(InputError, match="two embeddings"):
        clip_distances(clips(rng, 3, 9, 4), clips(rng, 1, 1, 4))
    broken = clips(rng, 3, 3, 4)
    broken.points[4, 1] = np.nan
    for measure in (clip_influence, clip_distances, distance_by_size):
        with pytest.raises(InputError, match="clip 1 are not finite"):
            measure(broken, reference)
        with pytest.raises(InputError, match="dimensions"):
            measure(clips(rng, 5, 3, 5), reference)


def coverage(
    trials: int, count: int, rows: int, alike: float, dim: int
) -> tuple[float, float, float]:
    """Share of debiased intervals that hold the truth, mean bias over the truth, and of plain.

    Clips of ``rows`` frames whose correlation is ``alike``, against a Gaussian that is known.
    """
    rng = np.random.default_rng(7)
    basis, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    turn, _ = np.linalg.qr(np.eye(dim) + 0.15 * rng.standard_normal((dim, dim)))
    cov1 = basis * np.linspace(0.3, 2, dim) @ basis.T
    cov2 = turn @ (basis * np.linspace(0.6, 1.4, dim) @ basis.T) @ turn.T
    mu = 0.12 * rng.standard_normal(dim)
    target = Gaussian(np.zeros(dim), cov1)
    truth = frechet_distance(0 * mu, cov1, mu, cov2)
    root, statistics = np.linalg.cholesky(cov2), Statistics(target, "known")
    hits, found, plain = 0, [], []
    for _ in range(trials):
        shared = rng.standard_normal((count, 1, dim)) * alike**0.5
        frames = shared + rng.standard_normal((count, rows, dim)) * (1 - alike) ** 0.5
        scores = frechet_to_statistics(Features.of(list(frames @ root.T + mu)), statistics)
        debiased = scores["frechet_distance_debiased"]
        assert isinstance(debiased, Score)
        hits += debiased.low <= truth <= debiased.high
        found.append(debiased.value)
        plain.append(scores["frechet_distance"].value)
    return hits / trials, np.mean(found) / truth - 1, np.mean(plain) / truth - 1


@pytest.mark.parametrize(("count", "rows", "alike"), [(150, 1, 0.0), (60, 6, 0.8)])
def test_interval_holds_the_truth(count: int, rows: int, alike: float):
    share, bias, plain_bias = coverage(40, count, rows, alike, dim=12)
    assert share >= 0.85
    assert abs(bias) < 0.15 < plain_bias


@pytest.mark.slow
@pytest.mark.parametrize(("count", "rows", "alike"), [(500, 1, 0.0), (100, 10, 0.8)])
def test_interval_holds_the_truth_as_often_as_it_says(count: int, rows: int, alike: float):
    share, bias, plain_bias = coverage(200, count, rows, alike, dim=48)
    assert 0.90 <= share <= 0.98, f"{share:.1%} of intervals hold the truth, bias {bias:+.1%}"
    assert abs(bias) < 0.1 < plain_bias
