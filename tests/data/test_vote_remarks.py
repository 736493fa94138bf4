"""What should be looked at in a set of votes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.stats import binomtest

from musictune.data.preferences import Pair, Vote, position_bias, remarks

PAIR = Pair("1", "p", Path("/nowhere/a.wav"), Path("/nowhere/b.wav"), "old", "new")


def ballot(choices: str, first: str, rater: str = "Ana") -> list[Vote]:
    return [
        Vote(replace(PAIR, id=str(i)), choice, rater, place)  # type: ignore[arg-type]
        for i, (choice, place) in enumerate(zip(choices, first, strict=True))
    ]


@pytest.mark.parametrize(("first", "count"), [(0, 9), (3, 7), (9, 9), (52, 90)])
def test_position_bias_has_the_exact_interval(first: int, count: int) -> None:
    bias = position_bias(ballot("a" * count, "a" * first + "b" * (count - first)))
    exact = binomtest(first, count).proportion_ci(0.95, "exact")
    assert bias.value == first / count
    assert (bias.low, bias.high) == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert bias.n == count
    assert bool(bias.note) == (not exact.low <= 0.5 <= exact.high)


def test_position_bias_without_decided_votes() -> None:
    undecided = [Vote(PAIR, "tie", "Ana", "a"), Vote(PAIR, "skip", "Ana", "a")]
    assert math.isnan(position_bias(undecided).value)
    assert position_bias(undecided).n == 0


def test_all_votes_for_one_position_are_remarked_on_from_eight() -> None:
    assert remarks(ballot("abababa", "abababa")) == []
    (remark,) = remarks(ballot("abababab", "abababab"))
    assert "100% of 8 decided votes are for the clip shown first" in remark
    (remark,) = remarks(ballot("abababab", "babababa"))
    assert "shown second" in remark
    both = ballot("abababab", "abababab") + ballot("abababab", "aabbaabb", "Ben")
    assert len([r for r in remarks(both) if "of 'Ana' are for" in r]) == 1


def test_all_votes_for_one_system_are_remarked_on() -> None:
    (remark,) = remarks(ballot("aaaaaaaa", "abababab"))
    assert "all 8 decided votes between 'old' and 'new' are for 'old'" in remark
    assert remarks(ballot("aaaaaaab", "abababab")) == []


def test_a_rater_who_contradicts_themselves_is_named() -> None:
    votes = [Vote(PAIR, "a", "Ana", "a"), Vote(PAIR, "b", "Ana", "b"), Vote(PAIR, "b", "Ben", "a")]
    assert remarks(votes) == ["'Ana' has voted both ways on 1 pair; both answers count"]


def test_a_rater_who_cannot_have_heard_the_clips_is_named(tmp_path: Path) -> None:
    for name, seconds in (("a.wav", 2.0), ("b.wav", 3.0)):
        soundfile.write(tmp_path / name, np.zeros(int(8_000 * seconds)), 8_000)
    pair = replace(PAIR, a=tmp_path / "a.wav", b=tmp_path / "b.wav")
    votes = [
        Vote(replace(pair, id=str(i)), "tie", "Ana", "a", (), s)
        for i, s in enumerate((1.9, 2.1, 0.0))
    ]
    assert remarks(votes) == ["'Ana' answered 1 of 2 times before the shorter clip could end"]
    assert remarks(votes[1:]) == []
    gone = [replace(vote, pair=PAIR) for vote in votes]
    assert remarks(gone) == []
