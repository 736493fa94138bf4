"""Distances between rows and samples of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.errors import InputError
from musictune.metrics.distances import (
    column_means,
    refuse_few_clips,
    sample_rows,
    squared_distances,
    unit_means,
)
from musictune.metrics.features import Features


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(
        lambda found: sum(found) > 0
    ),
    most=st.integers(1, 40),
)
def test_a_sample_keeps_whose_each_row_is(seed: int, lengths: list[int], most: int):
    rows = np.stack([np.repeat(np.arange(len(lengths)), lengths), np.arange(sum(lengths))], axis=1)
    features = Features(rows.astype(np.float64), np.array(lengths), "key")
    drawn = sample_rows(features, most, seed)
    assert len(drawn.points) == min(most, sum(lengths))
    assert len(np.unique(drawn.points[:, 1])) == len(drawn.points)
    assert (drawn.lengths > 0).all()
    assert drawn.key == "key"
    for clip in drawn:
        assert len(set(clip[:, 0])) == 1
    assert np.array_equal(sample_rows(features, most, seed).points, drawn.points)


def test_squared_distances_and_nil_between_equals():
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((7, 5)) + 100, rng.standard_normal((4, 5)) + 100
    wanted = [[math.dist(a, b) ** 2 for b in other] for a in one]
    assert np.allclose(squared_distances(one, other), wanted, rtol=1e-9)
    assert (np.diag(squared_distances(one, one)) == 0).all()


def test_means():
    features = Features(np.array([[3.0, 0], [5, 0], [0, 2]]), np.array([2, 0, 1]))
    assert np.allclose(column_means(features), [8 / 3, 2 / 3])
    assert np.allclose(unit_means(features), [[1, 0], [0, 1]])
    refuse_few_clips(features, "made", 2, "a test")
    with pytest.raises(InputError, match="a test needs 3 made clips or more, not 2"):
        refuse_few_clips(features, "made", 3, "a test")
