"""Where dots, lines and numbers of the report's plots go."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musictune.metrics.base import Score
from musictune.metrics.plots import SIZE_HEIGHT, by_size, forest, round_numbers, strip

NAN = math.nan
values = st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-6)


def score(value: float, low: float = NAN, high: float = NAN) -> Score:
    return Score(value, low, high, 8, "higher")


@given(values, st.floats(1e-5, 1e5), st.integers(3, 8))
def test_numbers_of_an_axis_are_few_even_and_within(low: float, width: float, most: int):
    high = low + width
    found = round_numbers(low, high, most)
    assert 1 <= len(found) <= most
    slack = 1e-9 * max(abs(low), abs(high))
    assert all(low - slack <= v <= high + slack for v, _ in found)
    steps = np.diff([v for v, _ in found])
    assert len(steps) == 0 or steps == pytest.approx([steps[0]] * len(steps), rel=1e-4)


def test_numbers_of_an_axis_read_well():
    assert [label for _, label in round_numbers(-0.31, 0.52, 5)] == ["−0.2", "0", "0.2", "0.4"]
    assert [label for _, label in round_numbers(7800, 9100, 5)] == ["8000", "8500", "9000"]
    with pytest.raises(ValueError, match="nothing"):
        round_numbers(1, 1, 4)


@given(st.lists(st.tuples(values, st.floats(0, 10), st.floats(0, 10)), min_size=2, max_size=4))
def test_strip_keeps_order_and_stays_within(found: list[tuple[float, float, float]]):
    plot = strip([("made", score(v, v - a, v + b)) for v, a, b in found])
    assert plot
    for mark in plot.marks:
        assert mark.start is not None
        assert mark.end is not None
        assert 0 <= mark.start <= mark.at <= mark.end <= 100
        assert not mark.cut
    places = [mark.at for mark in plot.marks]
    assert np.argsort([v for v, _, _ in found], kind="stable")[0] in np.flatnonzero(
        np.array(places) == min(places)
    )


def test_strip_without_anything_to_compare_is_none():
    assert strip([]) is None
    assert strip([("made", score(0.4))]) is None
    assert strip([("made", score(NAN))]) is None
    two = strip([("against", score(0.4)), ("made", score(0.4))])
    assert two
    assert [(m.kind, m.start, m.end) for m in two.marks] == [
        ("against", None, None),
        ("made", None, None),
    ]
    alone = strip([("made", score(0.4, 0.3, 0.5))])
    assert alone
    assert alone.marks[0].at == 50


def test_strip_shows_zero_only_where_it_is_in_sight():
    near, far = (strip([("made", score(v, v - 1, v + 1))]) for v in (0.5, 9.0))
    assert near
    assert near.zero == pytest.approx(100 * (0.62 / 2.24), abs=0.01)
    assert far
    assert far.zero is None


def test_forest_has_zero_in_the_middle_and_marks_what_is_beyond():
    plots = forest([("better", 1.0, 0.5, 1.5), None, ("worse", -9.0, -10.0, -1.0)])
    assert plots[1] is None
    first, last = plots[0], plots[2]
    assert first
    assert last
    assert first.zero == 50
    assert 50 < first.marks[0].start < first.marks[0].at < first.marks[0].end < 100  # type: ignore[operator]
    assert not first.marks[0].cut
    assert last.marks[0].at == 0
    assert last.marks[0].cut
    assert first.ticks == last.ticks


def test_line_through_distances_reaches_what_endlessly_many_clips_give():
    sizes = np.array([40, 20, 10, 5])
    plot = by_size(sizes, 1.5 + 8 / sizes)
    assert plot
    assert plot.limit == pytest.approx(1.5)
    start, end = plot.line
    assert start[0] < min(x for x, *_ in plot.points)
    assert [clips for *_, clips, _ in plot.points] == [40, 20, 10, 5]
    assert (plot.points[-1][0], plot.points[-1][1]) == pytest.approx(end, abs=0.11)
    assert all(0 <= y <= SIZE_HEIGHT for _, y, *_ in plot.points)
    # Higher on the page is more.
    assert start[1] > end[1]
    assert plot.across[0].label == "∞"


def test_no_plot_by_size_of_one_size_or_of_nothing_finite():
    assert by_size(np.array([5, 5]), np.array([1.0, 2.0])) is None
    assert by_size(np.array([5, 4]), np.array([NAN, 2.0])) is None
