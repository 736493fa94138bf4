"""False alarms come as often as they are said to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musictune.metrics.calibration import exceedance_p, tail_p

numbers = st.lists(st.floats(-5, 5), min_size=2, max_size=40)


@pytest.mark.parametrize("count", [4, 16, 60])
def test_of_exponential_values_one_in_a_hundred_has_a_p_of_one_in_a_hundred(count: int) -> None:
    draw = np.random.default_rng(0)
    trials = 4000
    low = sum(
        tail_p(draw.exponential(size=1), draw.exponential(size=count), 1.0)[0] <= 0.01
        for _ in range(trials)
    )
    assert low / trials == pytest.approx(0.007, abs=0.005)


@pytest.mark.parametrize("count", [4, 16, 60])
def test_a_scale_that_is_not_the_usual_one_is_learned(count: int) -> None:
    draw = np.random.default_rng(0)
    low = sum(
        tail_p(draw.exponential(2, size=1), draw.exponential(2, size=count), 1.0)[0] <= 0.01
        for _ in range(2000)
    )
    assert low / 2000 < 0.03


@given(numbers, numbers)
def test_a_higher_value_is_never_less_surprising(values: list[float], held: list[float]) -> None:
    ordered = np.sort(np.array(values))
    p = tail_p(ordered, np.array(held), 1.0)
    assert (p > 0).all() and (p <= 1).all()
    assert (np.diff(p) <= 1e-12).all()


def test_little_is_known_from_little() -> None:
    assert tail_p(np.array([100.0]), np.array([]), 1.0).tolist() == [1.0]
    one, two, many = (
        tail_p(np.array([3.0]), held, 0.2)[0]
        for held in (np.array([2.0]), np.array([1.0, 2.0]), np.linspace(1, 2, 100))
    )
    assert many < 1e-3 < two and one > many


def test_whole_numbers_that_tie_do_not_make_the_next_one_impossible() -> None:
    assert tail_p(np.array([3.0]), np.full(30, 2.0), 1.5)[0] > 0.05


def test_exceedance_of_one_value_each_is_the_exact_count_of_choices() -> None:
    held = [np.array([float(i)]) for i in range(3)]
    made = [np.array([10.0]), np.array([11.0])]
    # Two above all of three: one of the ten ways to choose three of five.
    assert exceedance_p(made, held) == pytest.approx(0.1)
    assert exceedance_p(held, made) == 1.0
    assert exceedance_p([np.array([])], held) == 1.0


def test_alike_values_of_a_clip_are_one_piece_of_evidence() -> None:
    held = [np.zeros(20)]
    assert exceedance_p([np.ones(20)], held) == pytest.approx(0.5)


def test_equal_sets_raise_exceedance_rarely() -> None:
    draw = np.random.default_rng(1)

    def clips(count: int) -> list[np.ndarray]:
        return [draw.normal() + 0.3 * draw.normal(size=5) for _ in range(count)]

    low = sum(exceedance_p(clips(6), clips(4)) <= 0.05 for _ in range(150))
    assert low / 150 <= 0.09
