"""The MAUVE divergence against closed forms and its laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.errors import InputError
from musictune.metrics import divergence as module
from musictune.metrics.base import Score
from musictune.metrics.divergence import MauveDivergence, mauve, mauve_divergence
from musictune.metrics.features import Features

# Nothing shared: the curve is ((1 - a)^5, a^5), and the area under it 5 B(6, 5).
FARTHEST = -math.log(5 * math.gamma(6) * math.gamma(5) / math.gamma(11))


def unit(seed: int, count: int, width: int = 6, shift: float = 0.0) -> np.ndarray:
    points = np.random.default_rng(seed).standard_normal((count, width)) + shift
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def features(points: np.ndarray, rows: int = 1) -> Features:
    return Features(points, np.full(len(points) // rows, rows))


def test_nothing_shared_is_the_beta_function():
    p, q = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert -math.log(mauve(p, q, points=4001)) == pytest.approx(FARTHEST, rel=1e-4)
    assert -math.log(mauve(p, q)) == pytest.approx(FARTHEST, rel=0.02)  # 25 chords


def test_the_curve_of_half_shared_mass():
    """Against a fine sum over the curve's own equation, p = (1, 0) and q = (1/2, 1/2)."""
    share = np.linspace(0, 1, 200_001)
    mixed = share + (1 - share) / 2
    with np.errstate(divide="ignore"):
        to_q = 0.5 * np.log(0.5 / mixed) + 0.5 * np.log(0.5 / (1 - mixed))
    x, y = np.exp(-5 * to_q), np.exp(5 * np.log(mixed))
    area = np.sum(-np.diff(x) * (y[1:] + y[:-1]) / 2)
    assert mauve(np.array([1.0, 0.0]), np.array([0.5, 0.5]), points=4001) == pytest.approx(
        area, rel=1e-4
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), buckets=st.integers(2, 30), empty=st.floats(0, 0.8))
def test_laws_of_the_area(seed: int, buckets: int, empty: float):
    """Within its bounds, symmetric, 1 for equals, the same in any order of buckets."""
    rng = np.random.default_rng(seed)

    def shares() -> np.ndarray:
        drawn = rng.exponential(size=buckets) * (rng.random(buckets) >= empty)
        drawn[rng.integers(buckets)] += 1e-3
        return drawn / drawn.sum()

    p, q = shares(), shares()
    area = mauve(p, q)
    assert math.exp(-FARTHEST) <= area <= 1 + 1e-12
    assert mauve(q, p) == pytest.approx(area, rel=1e-9)
    assert mauve(p, p) == pytest.approx(1, rel=1e-12)
    turn = rng.permutation(buckets)
    assert mauve(p[turn], q[turn]) == pytest.approx(area, rel=1e-12)


def test_equal_sets_are_at_nil_and_far_ones_at_the_farthest():
    points = unit(0, 100)
    assert mauve_divergence(points, points) == 0
    far = mauve_divergence(unit(0, 100, shift=9), unit(1, 100, shift=-9))
    assert far == pytest.approx(FARTHEST, rel=0.02)


def test_grows_as_a_set_moves_away_and_does_not_change_from_run_to_run():
    reference = unit(1, 200)
    moved = [mauve_divergence(unit(0, 200, shift=s), reference) for s in (0, 0.5, 1, 2)]
    assert moved == sorted(moved)
    assert moved[1] == mauve_divergence(unit(0, 200, shift=0.5), reference)
    assert moved[3] == pytest.approx(mauve_divergence(reference, unit(0, 200, shift=2)), rel=0.3)


def test_a_clip_is_one_point_whatever_its_rows():
    points, reference = unit(0, 40), features(unit(1, 40))
    once = MauveDivergence()(features(points), reference)
    thrice = MauveDivergence()(features(np.repeat(points, 3, axis=0), 3), reference)
    scores = [found["mauve_divergence"] for found in (once, thrice)]
    assert isinstance(scores[0], Score) and isinstance(scores[1], Score)
    assert scores[0].value == pytest.approx(scores[1].value)
    assert scores[0].n == scores[1].n == 40
    assert math.isnan(scores[0].low) and math.isnan(scores[0].high)
    assert scores[0].note == "no interval; 4 buckets"


def test_large_sets_are_thinned_and_say_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MOST", 30)
    score = MauveDivergence()(features(unit(0, 50)), features(unit(1, 25)))["mauve_divergence"]
    assert isinstance(score, Score)
    assert score.note == "no interval; 2 buckets; 30 of 50 made clips drawn by a seed"


def test_all_alike_is_measured():
    silent = features(np.full((30, 4), 0.5))
    score = MauveDivergence()(silent, silent)["mauve_divergence"]
    assert isinstance(score, Score)
    assert score.value == 0


def test_what_cannot_be_computed_says_why():
    good = features(unit(0, 40))
    nothing = features(np.zeros((40, 6)))
    for made, reference, why in (
        (features(unit(0, 40), rows=4), good, "20 made clips or more, not 10"),
        (good, features(unit(0, 1)), "20 reference clips or more, not 1"),
        (Features(np.empty((0, 6)), np.array([], dtype=int)), good, "not 0"),
        (nothing, good, "nothing or not finite"),
    ):
        with pytest.raises(InputError, match=why):
            MauveDivergence()(made, reference)
    with pytest.raises(InputError, match="dimensions"):
        MauveDivergence()(good, features(unit(0, 40, width=5)))
    with pytest.raises(InputError, match="not finite"):
        MauveDivergence()(features(np.full((40, 6), np.nan)), good)
    with pytest.raises(InputError, match="20 made points"):
        mauve_divergence(unit(0, 19), unit(1, 40))
