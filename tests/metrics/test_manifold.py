"""Precision, recall, density and coverage against plain loops, and their laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.errors import InputError
from musictune.metrics import manifold as module
from musictune.metrics.base import Score
from musictune.metrics.features import Features
from musictune.metrics.manifold import ManifoldScores, manifold


def draw(seed: int, lengths: list[int], width: int = 3, shift: float = 0.0) -> Features:
    rng = np.random.default_rng(seed)
    return Features(rng.standard_normal((sum(lengths), width)) + shift, np.array(lengths))


def values(made: Features, reference: Features) -> dict[str, float]:
    found = ManifoldScores()(made, reference)
    assert all(isinstance(score, Score) for score in found.values())
    return {name: score.value for name, score in found.items() if isinstance(score, Score)}


def plain(made: Features, reference: Features, k: int) -> dict[str, float]:
    """The definitions, ball by ball, with no matrix."""

    def reach(features: Features) -> list[float]:
        owners = features.owners
        found = []
        for i, row in enumerate(features.points):
            others = [
                math.dist(row, other)
                for j, other in enumerate(features.points)
                if owners[j] != owners[i]
            ]
            found.append(sorted(others)[k - 1])
        return found

    x, y = made.points, reference.points
    x_reach, y_reach = reach(made), reach(reference)
    holds = [[math.dist(a, b) <= r for b, r in zip(y, y_reach, strict=True)] for a in x]
    return {
        "precision": float(np.mean([any(row) for row in holds])),
        "recall": float(
            np.mean([any(math.dist(a, b) <= r for a, r in zip(x, x_reach, strict=True)) for b in y])
        ),
        "density": float(np.sum(holds) / (k * len(x))),
        "coverage": float(np.mean(np.any(holds, axis=0))),
    }


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 2),
    rows=st.sampled_from([1, 1, 3]),
    shift=st.floats(0, 2),
    width=st.integers(1, 5),
)
def test_equals_the_definitions(seed: int, rows: int, shift: float, width: int):
    made = draw(seed, [rows] * 13, width, shift)
    reference = draw(seed + 1, [rows] * 11 + [rows + 1], width)
    assert values(made, reference) == pytest.approx(plain(made, reference, 5))


def test_blocks_agree_with_one_block(monkeypatch: pytest.MonkeyPatch):
    made, reference = draw(0, [2] * 40, shift=0.5), draw(1, [3] * 30)
    whole = ManifoldScores()(made, reference)
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert ManifoldScores()(made, reference) == whole


def test_a_set_against_itself_is_all_held():
    """Also where the offset is large: a row on the rim of a ball lies in it."""
    features = draw(0, [1] * 60, width=8, shift=1e4)
    found = values(features, features)
    assert found["precision"] == found["recall"] == found["coverage"] == 1
    assert found["density"] == pytest.approx(6 / 5)  # each ball's centre and its neighbours


def test_far_sets_share_nothing():
    assert values(draw(0, [1] * 20, shift=100), draw(1, [1] * 20)) == dict.fromkeys(
        ManifoldScores.scores, 0.0
    )


def test_a_collapsed_set_is_precise_and_recalls_nothing():
    reference = draw(1, [1] * 200)
    collapsed = Features(np.full((30, 3), 0.01), np.ones(30, dtype=int))
    found = values(collapsed, reference)
    assert found["precision"] == 1
    assert found["recall"] == 0
    assert found["coverage"] < 0.2


def test_rows_of_one_clip_do_not_shrink_its_balls():
    """Near-copies of each clip's row: balls that stopped at them would hold almost nothing."""
    rng = np.random.default_rng(0)

    def copies(seed: int) -> Features:
        rows = np.repeat(draw(seed, [1] * 100).points, 8, axis=0)
        return Features(rows + 1e-3 * rng.standard_normal(rows.shape), np.full(100, 8))

    found = values(copies(1), copies(2))
    assert found["precision"] > 0.6
    assert found["recall"] > 0.6


def test_intervals_hold_the_value_and_do_not_shrink_to_nothing():
    features = draw(0, [2] * 30)
    for made in (features, draw(1, [2] * 30, shift=0.5), draw(2, [2] * 30, shift=50)):
        for name, score in ManifoldScores()(made, features).items():
            assert isinstance(score, Score)
            assert 0 <= score.low <= score.value <= score.high
            if name != "density":
                assert 0.02 < score.high - score.low < 1
                assert score.high <= 1
            assert "held" in score.note


def test_coverage_counts_what_is_gained_where_a_clip_is_left_out():
    """Its interval leaves out clips with the balls made anew, not held."""
    made, reference = draw(0, [2] * 12, shift=0.8), draw(1, [1, 2, 3] * 6)
    found = manifold(made, reference)
    owners = reference.owners
    for clip in range(len(reference)):
        rest = reference.select([i for i in range(len(reference)) if i != clip])
        anew = manifold(made, rest).covered.sum()
        assert anew == found.covered[owners != clip].sum() + found.gained[clip]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), clips=st.integers(6, 14), shift=st.floats(0, 4))
def test_a_set_that_covers_nothing_or_all_still_has_an_interval(
    seed: int, clips: int, shift: float
):
    """Leaving out a reference clip may cover others, while as they are none is covered."""
    made, reference = draw(seed, [1] * 8, shift=shift), draw(seed + 1, [1] * clips)
    for score in ManifoldScores()(made, reference).values():
        assert isinstance(score, Score)
        assert 0 <= score.low <= score.value <= score.high
        assert score.high > score.low or score.value > 1 or "balls" in score.note


def test_few_clips_are_said_to_make_wide_balls():
    few, many = draw(0, [1] * 12), draw(1, [1] * 60)
    by_few, by_many = ManifoldScores()(many, few), ManifoldScores()(few, many)
    for name, score in by_few.items():
        assert isinstance(score, Score)
        assert ("12 reference clips are so wide" in score.note) == (name != "recall")
    for name, score in by_many.items():
        assert isinstance(score, Score)
        assert ("12 made clips are so wide" in score.note) == (name == "recall")


def test_thinned_sets_say_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MOST", 60)
    made, reference = draw(0, [4] * 30), draw(1, [1] * 50)
    first = ManifoldScores()(made, reference)
    for score in first.values():
        assert isinstance(score, Score)
        assert "60 of 120 made rows" in score.note
    assert ManifoldScores()(made, reference) == first


def test_what_cannot_be_computed_says_why():
    good = draw(0, [2] * 10)
    for made, reference, why in (
        (draw(1, [30]), good, "2 made clips or more, not 1"),
        (good, draw(1, [30]), "2 reference clips or more, not 1"),
        (Features(np.empty((0, 3)), np.array([], dtype=int)), good, "not 0"),
        (good, draw(1, [20, 3]), "only 3 rows beside it"),
    ):
        with pytest.raises(InputError, match=why):
            ManifoldScores()(made, reference)
    with pytest.raises(InputError, match="dimensions"):
        ManifoldScores()(good, draw(0, [2] * 10, width=4))
    broken = Features(np.full((10, 3), np.nan), np.full(5, 2))
    with pytest.raises(InputError, match="not finite"):
        ManifoldScores()(broken, good)
    with pytest.raises(InputError, match="1 or more"):
        manifold(good, good, 0)


def test_silent_sets_are_at_one_place():
    silent = Features(np.full((20, 3), 0.3), np.full(10, 2))
    assert values(silent, silent)["precision"] == 1
    assert values(draw(0, [2] * 10), silent)["recall"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("clips", "rows"), [(60, 5), (200, 1)])
def test_intervals_hold_the_mean_over_draws(clips: int, rows: int):
    """The drawn side anew 200 times, the other held: coverage of the mean of all draws."""

    def features(seed: int, shift: float) -> Features:
        rng = np.random.default_rng(seed)
        centre = rng.standard_normal((clips, 1, 8)) * math.sqrt(0.8)
        points = centre + rng.standard_normal((clips, rows, 8)) * math.sqrt(0.2) + shift
        return Features(points.reshape(-1, 8), np.full(clips, rows))

    made, reference = features(9001, 0.4), features(9002, 0.0)
    found: dict[str, list[Score]] = {name: [] for name in ManifoldScores.scores}
    for seed in range(200):
        by_made = ManifoldScores()(features(seed, 0.4), reference)
        by_reference = ManifoldScores()(made, features(seed, 0.0))
        for name, drawn in (
            ("precision", by_made),
            ("density", by_made),
            ("recall", by_reference),
            ("coverage", by_reference),
        ):
            score = drawn[name]
            assert isinstance(score, Score)
            found[name].append(score)
    for name, scores in found.items():
        truth = np.mean([score.value for score in scores])
        held = np.mean([score.low <= truth <= score.high for score in scores])
        assert 0.88 <= held <= 0.99, f"{name}: coverage {held:.3f}"
