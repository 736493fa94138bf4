"""Strengths from votes: closed forms, laws, and intervals that hold what they promise."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from musictune.errors import InputError
from musictune.metrics.ranking import ELO, Outcome, rank

Vote = tuple[str, str, Outcome]


def elos(votes: list[Vote]) -> dict[str, float]:
    return {each.system: each.elo.value for each in rank(votes)}


def test_two_systems_are_apart_by_the_log_of_their_odds() -> None:
    votes: list[Vote] = [("x", "y", "a")] * 3000 + [("y", "x", "a")] * 1000
    first, second = rank(votes)
    assert (first.system, first.wins, first.losses, first.ties) == ("x", 3000, 1000, 0)
    # With so many votes the prior weighs nothing.
    assert first.elo.value - second.elo.value == pytest.approx(ELO * math.log(3), abs=0.1)
    assert first.elo.value == pytest.approx(-second.elo.value)
    assert ELO * math.log(10) == pytest.approx(400)
    error = ELO / 2 * math.sqrt(1 / 3000 + 1 / 1000)
    ends = (first.elo.value - 1.96 * error, first.elo.value + 1.96 * error)
    assert (first.elo.low, first.elo.high) == pytest.approx(ends, abs=0.1)
    assert first.elo.n == 4000


def test_it_is_the_highest_posterior_of_davidsons_model() -> None:
    rng = np.random.default_rng(0)
    names = ["p", "q", "r", "s"]
    votes: list[Vote] = []
    for _ in range(60):
        a, b = rng.choice(names, 2, replace=False)
        votes.append((a, b, rng.choice(["a", "b", "tie"], p=[0.5, 0.3, 0.2])))

    def unlikely(point: np.ndarray) -> float:
        worth, nu = dict(zip(names, np.exp(point[:4]), strict=True)), math.exp(point[4])
        total = point @ point / (2 * 3.0**2)
        for a, b, outcome in votes:
            parts = {"a": worth[a], "b": worth[b], "tie": nu * math.sqrt(worth[a] * worth[b])}
            total -= math.log(parts[outcome] / sum(parts.values()))
        return float(total)

    best = minimize(unlikely, np.zeros(5), method="BFGS", options={"gtol": 1e-8}).x
    expected = dict(zip(names, ELO * best[:4], strict=True))
    assert elos(votes) == pytest.approx(expected, abs=0.01)


def test_ties_draw_systems_together() -> None:
    votes: list[Vote] = [("x", "y", "a")] * 6 + [("x", "y", "b")] * 2
    tied = votes + [("x", "y", "tie")] * 40
    assert 0 < elos(tied)["x"] < elos(votes)["x"]
    only: list[Vote] = [("x", "y", "tie")] * 5
    assert elos(only) == pytest.approx({"x": 0, "y": 0}, abs=1e-6)


def test_one_who_won_everything_has_a_finite_value_and_a_note() -> None:
    votes: list[Vote] = [("x", "y", "a")] * 10 + [("y", "z", "a"), ("z", "y", "a")]
    first, *others = rank(votes)
    assert first.system == "x"
    assert first.elo.note.startswith("won every vote")
    assert 50 < first.elo.low < first.elo.value < first.elo.high < 5000
    assert all(not each.elo.note for each in others)
    assert rank([("x", "y", "b")])[1].elo.note.startswith("lost every vote")


OUTCOMES = st.sampled_from(["a", "b", "tie"])


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(combinations("wxyz", 2))), OUTCOMES), max_size=12))
def test_sides_order_and_names_change_nothing(given_votes: list[tuple[Vote, Outcome]]) -> None:
    votes: list[Vote] = [(a, b, o) for (a, b), o in given_votes]  # type: ignore[misc]
    votes += [("w", name, "tie") for name in "xyz"]
    found = elos(votes)
    other = {"a": "b", "b": "a", "tie": "tie"}
    turned: list[Vote] = [(b, a, other[outcome]) for a, b, outcome in votes[::-1]]  # type: ignore[misc]
    assert elos(turned) == pytest.approx(found, abs=1e-4)
    renamed: list[Vote] = [(f"{9 - ord(a)} {a}", f"{9 - ord(b)} {b}", o) for a, b, o in votes]
    assert {k.split()[1]: v for k, v in elos(renamed).items()} == pytest.approx(found, abs=1e-4)
    reversed_: list[Vote] = [(a, b, other[outcome]) for a, b, outcome in votes]  # type: ignore[misc]
    assert elos(reversed_) == pytest.approx({k: -v for k, v in found.items()}, abs=1e-4)
    assert sum(found.values()) == pytest.approx(0, abs=1e-4)
    more = elos([*votes, ("w", "x", "a")])
    assert more["w"] - more["x"] > found["w"] - found["x"]


def test_the_interval_holds_the_value_and_narrows_with_votes() -> None:
    votes: list[Vote] = [("x", "y", "a"), ("y", "z", "a"), ("z", "x", "tie"), ("x", "z", "b")]
    wide = {each.system: each.elo.high - each.elo.low for each in rank(votes * 2)}
    for each in rank(votes * 8):
        assert each.elo.low < each.elo.value < each.elo.high
        assert (each.elo.high - each.elo.low) == pytest.approx(wide[each.system] / 2, rel=0.1)


def test_systems_that_never_met_are_named() -> None:
    votes: list[Vote] = [("x", "y", "a"), ("p", "q", "tie"), ("y", "z", "b")]
    with pytest.raises(InputError, match="groups of systems: 'p', 'q'; 'x', 'y', 'z'"):
        rank(votes)


def test_what_cannot_be_votes() -> None:
    with pytest.raises(InputError, match="no votes"):
        rank([])
    with pytest.raises(InputError, match="'x' against itself"):
        rank([("x", "x", "a")])
    with pytest.raises(InputError, match="'skip' is unknown"):
        rank([("x", "y", "skip")])  # type: ignore[list-item]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("systems", "votes", "nu", "deviation"), [(4, 60, 0.5, 0.7), (4, 120, 0.0, 0.7)]
)
def test_the_interval_holds_the_truth_in_95_of_100_tournaments(
    systems: int, votes: int, nu: float, deviation: float
) -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(500):
        truth = rng.normal(0, deviation, systems)
        truth -= truth.mean()
        drawn: list[Vote] = []
        for _ in range(votes):
            a, b = rng.choice(systems, 2, replace=False)
            parts = np.exp([truth[a], truth[b], (truth[a] + truth[b]) / 2]) * (1, 1, nu)
            outcome = ("a", "b", "tie")[rng.choice(3, p=parts / parts.sum())]
            drawn.append((str(a), str(b), outcome))  # type: ignore[arg-type]
        held += [e.elo.low <= ELO * truth[int(e.system)] <= e.elo.high for e in rank(drawn)]
    # Within three standard errors of 500 independent tournaments.
    assert 0.92 <= np.mean(held) <= 0.98
