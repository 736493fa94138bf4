"""Krippendorff's alpha against his own worked examples, and its laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from musictune.errors import InputError
from musictune.metrics.agreement import krippendorff_alpha
from musictune.metrics.base import NotComputed, Score

N = math.nan
# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers,
# twelve units.
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
        [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
    ]
)
# The same, section A: two observers, ten units, two values.
BINARY = np.array([[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]])
LEVELS = ["nominal", "ordinal", "interval"]

TABLES = arrays(
    np.float64,
    st.tuples(st.integers(2, 4), st.integers(2, 6)),
    elements=st.sampled_from([N, -1.0, 0.0, 0.5, 3.0]),
)


def alpha(table: np.ndarray, level: str) -> float:
    """NaN where it is not computed."""
    found = krippendorff_alpha(table, level)  # type: ignore[arg-type]
    return found.value if isinstance(found, Score) else math.nan


@pytest.mark.parametrize(
    ("level", "value"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_the_published_example(level: str, value: float) -> None:
    found = krippendorff_alpha(PUBLISHED, level)  # type: ignore[arg-type]
    assert isinstance(found, Score)
    assert found.value == pytest.approx(value, abs=5e-4)
    assert found.n == 11
    assert found.low < found.value < found.high <= 1
    assert found == krippendorff_alpha(PUBLISHED, level)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", LEVELS)
def test_the_published_binary_example(level: str) -> None:
    assert alpha(BINARY, level) == pytest.approx(0.095, abs=5e-4)


def slow_alpha(table: np.ndarray, level: str) -> float:
    """From the definition: all pairs of values within units against all pairs of values."""
    units = [column[~np.isnan(column)] for column in table.T]
    units = [unit for unit in units if len(unit) > 1]
    pooled = np.concatenate(units)

    def distance(one: float, other: float) -> float:
        if level == "nominal":
            return float(one != other)
        if level == "interval":
            return (one - other) ** 2
        low, high = min(one, other), max(one, other)
        between = ((pooled >= low) & (pooled <= high)).sum()
        return (between - ((pooled == low).sum() + (pooled == high).sum()) / 2) ** 2

    seen = sum(sum(distance(a, b) for a in u for b in u) / (len(u) - 1) for u in units)
    chance = sum(distance(a, b) for a in pooled for b in pooled) / (len(pooled) - 1)
    return 1 - seen / chance


@settings(max_examples=40, deadline=None)
@given(TABLES, st.sampled_from(LEVELS))
def test_it_is_what_the_definition_says(table: np.ndarray, level: str) -> None:
    found = alpha(table, level)
    assume(not math.isnan(found))
    assert found == pytest.approx(slow_alpha(table, level), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(TABLES, st.sampled_from(LEVELS), st.randoms(use_true_random=False))
def test_order_scale_and_silent_raters_change_nothing(
    table: np.ndarray, level: str, random: object
) -> None:
    found = alpha(table, level)
    rows = np.random.default_rng(random.randrange(2**32)).permutation(len(table))  # type: ignore[attr-defined]
    silent = np.vstack([table[rows, ::-1], np.full(table.shape[1], N)])
    unpaired = np.hstack([silent, np.full((len(silent), 1), N)])
    unpaired[0, -1] = 7.0
    assert alpha(unpaired, level) == pytest.approx(found, abs=1e-9, nan_ok=True)
    assert alpha(3 * table - 8, level) == pytest.approx(found, abs=1e-9, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(arrays(np.float64, 5, elements=st.floats(-1e6, 1e6)), st.sampled_from(LEVELS))
def test_raters_who_agree_have_one(row: np.ndarray, level: str) -> None:
    assume(row.std() > 1e-3)
    found = krippendorff_alpha(np.stack([row] * 3), level)  # type: ignore[arg-type]
    assert isinstance(found, Score)
    assert (found.value, found.high) == pytest.approx((1, 1))


def test_raters_at_random_are_near_zero_and_the_interval_says_so() -> None:
    table = np.random.default_rng(0).integers(0, 4, (3, 400)).astype(float)
    found = krippendorff_alpha(table, "interval")
    assert isinstance(found, Score)
    assert found.low < 0 < found.high
    assert found.high - found.low < 0.2


def test_opposed_raters_are_below_zero() -> None:
    assert alpha(np.array([[0, 1, 0, 1], [1, 0, 1, 0]]), "nominal") < -0.5


@pytest.mark.parametrize(
    "table", [np.empty((0, 0)), np.array([[1.0, 2.0]]), np.array([[1.0, N], [N, 2.0]])]
)
def test_without_two_values_of_a_unit_it_is_not_computed(table: np.ndarray) -> None:
    found = krippendorff_alpha(table, "nominal")
    assert isinstance(found, NotComputed)
    assert "two raters" in found.reason


def test_of_constant_values_it_is_not_computed() -> None:
    found = krippendorff_alpha(np.ones((2, 5)), "interval")
    assert isinstance(found, NotComputed)
    assert "the same" in found.reason


def test_few_units_are_noted() -> None:
    found = krippendorff_alpha(np.array([[0, 1, 2], [0, 1, 1]]), "ordinal")
    assert isinstance(found, Score)
    assert "only 3 units" in found.note


def test_what_cannot_be_ratings() -> None:
    with pytest.raises(InputError, match="shape"):
        krippendorff_alpha(np.ones(3), "nominal")
    with pytest.raises(InputError, match="'ratio' is unknown"):
        krippendorff_alpha(np.ones((2, 3)), "ratio")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="infinite"):
        krippendorff_alpha(np.full((2, 3), math.inf), "nominal")
