"""What in a set of votes should be looked at before something is learnt from it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from musictune.data.vote_types import Vote
from musictune.errors import InputError

if TYPE_CHECKING:
    from musictune.metrics.base import Score

_FEW = 8  # votes below which one-sidedness is chance: 2 * 0.5 ** 8 is below 1 %
_HURRIED = 0.2  # share of a rater's votes


def position_bias(votes: Sequence[Vote]) -> Score:
    """Share of decided votes for the clip shown first, with its exact interval; 0.5 is none.

    The interval is Clopper and Pearson's (Biometrika 26, 1934): it has at least 95 % for any share.
    Without a decided vote the value is NaN.
    """
    import math

    from scipy.special import betaincinv

    from musictune.metrics.base import Score

    decided = [vote for vote in votes if vote.choice in ("a", "b")]
    count = len(decided)
    first = sum(vote.choice == vote.first for vote in decided)
    if not count:
        return Score(math.nan, math.nan, math.nan, 0, "neither", "no decided votes")
    low = float(betaincinv(first, count - first + 1, 0.025)) if first else 0.0
    high = float(betaincinv(first + 1, count - first, 0.975)) if first < count else 1.0
    remark = "" if low <= 0.5 <= high else "raters favour one position whatever is there"
    return Score(first / count, low, high, count, "neither", remark)


def remarks(votes: Sequence[Vote]) -> list[str]:
    """Sentences about one-sided positions and systems, contradictions, and hurried raters."""
    return [
        *_one_sided_position(votes),
        *_one_sided_system(votes),
        *_contradictions(votes),
        *_hurried(votes),
    ]


def _one_sided_position(votes: Sequence[Vote]) -> list[str]:
    found = []
    by_rater: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_rater[vote.rater].append(vote)
    groups = {f"of {rater!r}": given for rater, given in by_rater.items()}
    groups = {"": list(votes)} | (groups if len(groups) > 1 else {})
    for whose, given in groups.items():
        bias = position_bias(given)
        if bias.n < _FEW or bias.low <= 0.5 <= bias.high:
            continue
        place = "first" if bias.value > 0.5 else "second"
        share = max(bias.value, 1 - bias.value)
        found.append(
            " ".join(
                f"{share:.0%} of {bias.n} decided votes {whose} are for the clip shown {place}: "
                "more than chance gives, whatever was played".split()
            )
        )
    return found


def _one_sided_system(votes: Sequence[Vote]) -> list[str]:
    wins: Counter[tuple[str, str]] = Counter()
    for vote in votes:
        pair = vote.pair
        if vote.choice not in ("a", "b") or pair.system_a == pair.system_b:
            continue
        ends = (pair.system_a, pair.system_b)
        wins[ends if vote.choice == "a" else ends[::-1]] += 1
    return [
        f"all {count} decided votes between {winner or 'unnamed'!r} and {loser or 'unnamed'!r} "
        f"are for {winner or 'unnamed'!r}: nothing can be learnt of how near they are"
        for (winner, loser), count in wins.items()
        if count >= _FEW and not wins[loser, winner]
    ]


def _contradictions(votes: Sequence[Vote]) -> list[str]:
    answers: dict[tuple[str, str], set[str]] = defaultdict(set)
    for vote in votes:
        if vote.choice in ("a", "b"):
            answers[vote.rater, vote.pair.id].add(vote.choice)
    count: Counter[str] = Counter(rater for (rater, _), given in answers.items() if len(given) > 1)
    return [
        f"{rater!r} has voted both ways on {number} pair{'s' * (number > 1)}; both answers count"
        for rater, number in count.items()
    ]


def _hurried(votes: Sequence[Vote]) -> list[str]:
    lengths: dict[Path, float] = {}
    hurried: Counter[str] = Counter()
    timed: Counter[str] = Counter()
    for vote in votes:
        if vote.seconds <= 0 or vote.choice == "skip":
            continue
        length = min(_seconds(path, lengths) for path in (vote.pair.a, vote.pair.b))
        timed[vote.rater] += 1
        hurried[vote.rater] += vote.seconds < length
    return [
        f"{rater!r} answered {number} of {timed[rater]} times before the shorter clip could end"
        for rater, number in hurried.items()
        if number and number >= _HURRIED * timed[rater]
    ]


def _seconds(path: Path, known: dict[Path, float]) -> float:
    """Length of a sound, 0 where it is gone: then nothing is said of it."""
    from musictune.audio import info

    if path not in known:
        try:
            known[path] = info(path).seconds
        except InputError:
            known[path] = 0.0
    return known[path]
