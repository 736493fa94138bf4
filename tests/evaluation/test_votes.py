"""What votes and ratings say together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from musictune.data.preferences import Choice, Pair, Rating, Vote
from musictune.errors import InputError
from musictune.evaluation.votes import vote_report
from musictune.metrics.base import NotComputed, Score


def vote(number: int, choice: Choice, rater: str, a: str = "old", b: str = "new") -> Vote:
    pair = Pair(str(number), f"p{number}", Path("/x/a.wav"), Path("/x/b.wav"), a, b)
    return Vote(pair, choice, rater, "a" if number % 2 else "b")


def test_raters_who_agree_and_a_system_that_wins() -> None:
    choices: list[Choice] = ["b", "b", "a", "b", "tie", "b", "skip"]
    votes = [vote(i, choice, rater) for rater in ("Ana", "Ben") for i, choice in enumerate(choices)]
    report = vote_report(votes, [])
    assert report.counts["votes"] == 14
    assert (report.counts["raters"], report.counts["pairs"]) == (2, 7)
    assert (report.counts["a"], report.counts["b"], report.counts["tie"]) == (2, 8, 2)
    agreed = report.agreement["votes"]
    assert isinstance(agreed, Score)
    assert (agreed.value, agreed.n) == (1, 6)
    assert not isinstance(report.ranking, NotComputed)
    assert [(r.system, r.wins, r.losses, r.ties) for r in report.ranking] == [
        ("new", 8, 2, 2),
        ("old", 2, 8, 2),
    ]
    assert report.position.n == 10
    plain = json.loads(json.dumps(report.plain(), allow_nan=False))
    assert plain["ranking"][0]["system"] == "new"
    assert plain["ranking"][0]["elo"]["value"] > 0


def test_the_last_answer_of_a_rater_counts_for_agreement() -> None:
    votes = [vote(0, "a", "Ana"), vote(0, "b", "Ana"), vote(0, "b", "Ben")]
    votes += [vote(1, "a", "Ana"), vote(1, "a", "Ben")]
    report = vote_report(votes, [])
    agreed = report.agreement["votes"]
    assert isinstance(agreed, Score)
    assert agreed.value == 1
    assert any("both ways" in remark for remark in report.remarks)


@pytest.mark.parametrize(("a", "b"), [("", ""), ("old", ""), ("old", "old")])
def test_without_names_of_two_systems_there_is_no_ranking(a: str, b: str) -> None:
    report = vote_report([vote(0, "a", "Ana", a, b)], [])
    assert isinstance(report.ranking, NotComputed)
    plain = json.loads(json.dumps(report.plain(), allow_nan=False))
    assert "no votes between two systems" in plain["ranking"]["reason"]
    assert "two raters" in plain["agreement"]["votes"]["reason"]


def test_groups_that_never_met_are_a_reason_not_a_failure() -> None:
    report = vote_report([vote(0, "a", "Ana"), vote(1, "a", "Ana", "p", "q")], [])
    assert isinstance(report.ranking, NotComputed)
    assert "'new', 'old'; 'p', 'q'" in report.ranking.reason


def test_ratings_are_meaned_over_prompts() -> None:
    def rating(system: str, prompt: str, value: float, rater: str) -> Rating:
        return Rating(Path(f"/x/{system}{prompt}.wav"), prompt, system, rater, value)

    ratings = [rating("old", p, v, r) for r in ("Ana", "Ben") for p, v in (("p", 20), ("q", 40))]
    ratings += [rating("new", "p", 90, "Ana"), rating("new", "p", 96, "Ben")]
    report = vote_report([], ratings)
    assert {name: score.value for name, score in report.ratings.items()} == {"new": 93, "old": 30}
    assert list(report.ratings) == ["new", "old"]
    assert report.ratings["old"].low == 0
    assert report.counts["clips"] == 3
    agreed = report.agreement["ratings"]
    assert isinstance(agreed, Score)
    assert 0.9 < agreed.value < 1
    json.dumps(report.plain(), allow_nan=False)


def test_nothing_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="no votes and no ratings"):
        vote_report([], [])
