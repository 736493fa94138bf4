"""What votes and ratings say together: counts, agreement, ranking, and what to be careful of."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from musictune.data.preferences import Rating, Vote, position_bias, remarks
from musictune.errors import InputError
from musictune.metrics.agreement import Level, krippendorff_alpha
from musictune.metrics.base import NotComputed, Score
from musictune.metrics.intervals import clustered_interval
from musictune.metrics.ranking import Outcome, Ranked, rank

_VALUES = {"a": 0.0, "tie": 1.0, "b": 2.0}


@dataclass(frozen=True)
class VoteReport:
    """What is known from votes and ratings.

    Attributes:
        counts: votes, each choice, ratings, raters, pairs voted on and clips rated.
        agreement: Krippendorff's alpha of votes (ordinal: a, tie, b) and ratings (interval).
        ranking: the systems of the votes, the strongest first.
        ratings: mean rating of each system with its interval over prompts, the best first.
        position: share of decided votes for what was shown first.
        remarks: what should be looked at.
    """

    counts: Mapping[str, int]
    agreement: Mapping[str, Score | NotComputed]
    ranking: Sequence[Ranked] | NotComputed
    ratings: Mapping[str, Score]
    position: Score
    remarks: Sequence[str]

    def plain(self) -> dict[str, object]:
        """For JSON."""
        ranking: object
        if isinstance(self.ranking, NotComputed):
            ranking = {"reason": self.ranking.reason}
        else:
            ranking = [
                {
                    "system": each.system,
                    "elo": each.elo.as_json(),
                    "wins": each.wins,
                    "losses": each.losses,
                    "ties": each.ties,
                }
                for each in self.ranking
            ]
        return {
            "schema": 1,
            "counts": dict(self.counts),
            "agreement": {name: _plain(value) for name, value in self.agreement.items()},
            "ranking": ranking,
            "ratings": {name: value.as_json() for name, value in self.ratings.items()},
            "position": self.position.as_json(),
            "remarks": list(self.remarks),
        }


def vote_report(votes: Sequence[Vote], ratings: Sequence[Rating]) -> VoteReport:
    """Look at votes and ratings.

    Where one rater has answered the same thing twice, agreement takes the last answer.

    Raises:
        InputError: there are none.
    """
    if not votes and not ratings:
        raise InputError("no votes and no ratings have been given yet; there is nothing to report")
    choices = Counter(vote.choice for vote in votes)
    counts = {
        "votes": len(votes),
        **{choice: choices[choice] for choice in ("a", "b", "tie", "skip")},
        "ratings": len(ratings),
        "raters": len({v.rater for v in votes} | {r.rater for r in ratings}),
        "pairs": len({vote.pair.id for vote in votes}),
        "clips": len({(each.clip, each.prompt) for each in ratings}),
    }
    agreement: dict[str, Score | NotComputed] = {}
    if votes:
        answers = [(v.rater, v.pair.id, _VALUES[v.choice]) for v in votes if v.choice in _VALUES]
        agreement["votes"] = _agreement(answers, "ordinal")
    if ratings:
        given = [(r.rater, (r.clip, r.prompt), r.value) for r in ratings]
        agreement["ratings"] = _agreement(given, "interval")
    return VoteReport(
        counts,
        agreement,
        _ranking(votes),
        _mean_ratings(ratings),
        position_bias(votes),
        remarks(votes),
    )


def _agreement(answers: Sequence[tuple[str, Hashable, float]], level: Level) -> Score | NotComputed:
    raters = {rater: row for row, rater in enumerate(dict.fromkeys(a[0] for a in answers))}
    units = {unit: column for column, unit in enumerate(dict.fromkeys(a[1] for a in answers))}
    table = np.full((len(raters), len(units)), math.nan)
    for rater, unit, value in answers:
        table[raters[rater], units[unit]] = value
    return krippendorff_alpha(table, level)


def _ranking(votes: Sequence[Vote]) -> Sequence[Ranked] | NotComputed:
    triples: list[tuple[str, str, Outcome]] = []
    for vote in votes:
        a, b = vote.pair.system_a, vote.pair.system_b
        if vote.choice != "skip" and a and b and a != b:
            triples.append((a, b, vote.choice))
    try:
        return rank(triples)
    except InputError as error:
        return NotComputed(str(error))


def _mean_ratings(ratings: Sequence[Rating]) -> dict[str, Score]:
    by_system: dict[str, list[Rating]] = defaultdict(list)
    for rating in ratings:
        by_system[rating.system].append(rating)
    found = {}
    for system, given in by_system.items():
        values = np.array([each.value for each in given])
        value, low, high = clustered_interval(values, [each.prompt for each in given])
        ends = (float(np.maximum(low, 0)), float(np.minimum(high, 100)))
        found[system] = Score(value, *ends, len(given), "higher")
    return dict(sorted(found.items(), key=lambda each: -each[1].value))


def _plain(value: Score | NotComputed) -> dict[str, float | int | str | None]:
    return {"reason": value.reason} if isinstance(value, NotComputed) else value.as_json()
