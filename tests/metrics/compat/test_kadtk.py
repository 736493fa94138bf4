"""kadtk's number: its quirks, each against the plain formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from musictune.errors import InputError
from musictune.metrics.compat import kadtk
from musictune.metrics.compat.kadtk import kad_like_kadtk
from musictune.metrics.features import Features
from musictune.metrics.kernel_distance import kernel_distance


def draw(seed: int, rows: int, width: int = 8, shift: float = 0.0) -> np.ndarray:
    points = np.random.default_rng(seed).standard_normal((rows, width)) + shift
    return points.astype(np.float32)


def plain(made: np.ndarray, reference: np.ndarray) -> float:
    """Pair by pair in float64; the lower median of the made set's distances."""
    made, reference = made.astype(float), reference.astype(float)
    count = len(made)
    distances = sorted(
        math.dist(made[i], made[j]) for i in range(count) for j in range(i + 1, count)
    )
    gamma = 1 / (2 * distances[(len(distances) - 1) // 2] ** 2 + 1e-8)

    def mean(one: np.ndarray, other: np.ndarray, skip: bool) -> float:
        found = [
            math.exp(-gamma * math.dist(a, b) ** 2)
            for i, a in enumerate(one)
            for j, b in enumerate(other)
            if not (skip and i == j)
        ]
        return float(np.mean(found))

    within = mean(made, made, True) + mean(reference, reference, True)
    return 100 * (within - 2 * mean(made, reference, False))


@pytest.mark.parametrize(("mine", "theirs"), [(2, 2), (9, 14), (30, 21)])
def test_equals_the_formula(mine: int, theirs: int, monkeypatch: pytest.MonkeyPatch):
    made, reference = draw(0, mine, shift=0.5), draw(1, theirs)
    wanted = plain(made, reference)
    assert kad_like_kadtk(made, reference) == pytest.approx(wanted, abs=3e-4)
    monkeypatch.setattr(kadtk, "_BLOCK", 4)
    assert kad_like_kadtk(torch.from_numpy(made), torch.from_numpy(reference)) == pytest.approx(
        wanted, abs=3e-4
    )


def test_the_bandwidth_is_that_of_the_made_set():
    """With one row per clip ours agrees once it is told that bandwidth, and not before."""
    made, reference = draw(0, 81, shift=0.5) * 1.5, draw(1, 60)
    bandwidth = float(torch.pdist(torch.from_numpy(made)).median())
    mine, theirs = (Features(p, np.ones(len(p), dtype=int)) for p in (made, reference))
    found = kad_like_kadtk(made, reference)
    assert found == pytest.approx(kernel_distance(mine, theirs, bandwidth).value, abs=3e-4)
    assert abs(found - kernel_distance(mine, theirs).value) > 0.01


def test_a_set_against_itself_is_not_nil():
    """Its own pairs leave out each row with itself, the pairs across do not."""
    points = draw(0, 12)
    assert kad_like_kadtk(points, points) == pytest.approx(plain(points, points), abs=3e-4)
    assert kad_like_kadtk(points, points) < -1


def test_points_are_left_as_they_are():
    points = draw(0, 5)
    before = points.copy()
    kad_like_kadtk(points, draw(1, 5))
    assert np.array_equal(points, before)


def test_bad_input_is_refused():
    good = draw(0, 5)
    with pytest.raises(InputError, match="two rows or more"):
        kad_like_kadtk(good[:1], good)
    with pytest.raises(InputError, match="two rows or more"):
        kad_like_kadtk(good, good[0])
    with pytest.raises(InputError, match="dimensions"):
        kad_like_kadtk(good, draw(0, 5, width=3))
    with pytest.raises(InputError, match="not finite"):
        kad_like_kadtk(good, good * np.nan)
