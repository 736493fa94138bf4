"""The page about a classifier: its scores, what it takes for what, and its surest mistakes."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musictune.metrics.base import NotComputed, Score
from musictune.metrics.classification import ABOUT
from musictune.metrics.pictures import LONGEST, Excerpt, excerpt
from musictune.metrics.plots import Strip, strip
from musictune.metrics.report_page import templates
from musictune.metrics.report_scores import interval, number

_ROWS = 200  # classes in the table; metrics.json has all


@dataclass(frozen=True)
class Mistake:
    """A clip that was named wrongly.

    Attributes:
        path: the audio.
        name: as people see it.
        start, seconds: the excerpt that was heard.
        true, said: labels with the probability that each was given.
    """

    path: Path
    name: str
    start: float
    seconds: float | None
    true: Sequence[tuple[str, float]]
    said: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class _Card:
    title: str
    meaning: str
    text: str
    note: str
    plot: Strip | None


@dataclass(frozen=True)
class _Row:
    label: str
    clips: int
    f1: str
    average_precision: str


@dataclass(frozen=True)
class _Wrong:
    name: str
    said: str
    true: str
    sound: Excerpt


def classification_page(
    scores: Mapping[str, Score | NotComputed],
    main: Mapping[str, Score | NotComputed],
    clips: Mapping[str, int],
    picture: bytes | None,
    mistakes: Sequence[Mistake],
    warnings: Sequence[str],
    facts: Mapping[str, Any],
) -> str:
    """The whole page as HTML; it needs no other file.

    Args:
        scores: all, with those of single classes.
        main: those shown first.
        clips: of each class.
        picture: PNG of the confusions; None where several labels can be true.
        mistakes: with players, the surest first.
        warnings: what to know before a score is believed.
        facts: what the numbers were made with.

    Raises:
        InputError: a clip of a mistake can no longer be read.
    """
    rows = [
        _Row(label, count, _figure(scores[f"f1/{label}"]),
             _figure(scores[f"average_precision/{label}"]))
        for label, count in clips.items() if f"f1/{label}" in scores
    ]  # fmt: skip
    return (
        templates(Path(__file__).parent)
        .get_template("classification.html.j2")
        .render(
            facts=facts,
            total=facts["files"],
            warnings=warnings,
            cards=[_card(name, score) for name, score in main.items()],
            picture=base64.b64encode(picture).decode("ascii") if picture else "",
            mistakes=[_wrong(mistake) for mistake in mistakes],
            rows=rows[:_ROWS],
            more=max(len(rows) - _ROWS, 0),
        )
    )


def _card(name: str, score: Score | NotComputed) -> _Card:
    about = ABOUT[name]
    if isinstance(score, NotComputed):
        return _Card(about.title, about.meaning, f"not computed: {score.reason}", "", None)
    # From nothing to all, so that the cards can be compared at a glance.
    axis = [("range", Score(end, end, end, 0, "neither")) for end in (0.0, 1.0)]
    plot = strip([*axis, ("made", score)])
    if plot:
        plot = Strip(plot.marks[2:], plot.ticks, None)
    return _Card(about.title, about.meaning, _figure(score), score.note, plot)


def _figure(score: Score | NotComputed) -> str:
    if isinstance(score, NotComputed):
        return ""
    return f"{number(score.value)} {interval(score)}".strip()


def _wrong(mistake: Mistake) -> _Wrong:
    sound = excerpt(mistake.path, min(mistake.seconds or LONGEST, LONGEST), mistake.start)
    return _Wrong(mistake.name, _words(mistake.said), _words(mistake.true), sound)


def _words(labels: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{label} ({probability:.2f})" for label, probability in labels) or "nothing"
