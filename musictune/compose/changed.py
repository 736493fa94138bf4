"""Captions with one fact changed, and pairs of clips that differ in that fact alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from musictune.compose.captions import TEMPO_WORDS, write_captions
from musictune.compose.instruments import INSTRUMENTS, Instrument
from musictune.compose.notes import Score, Truth
from musictune.compose.score import write_score

Fact = Literal["instrument", "tempo word", "key mode"]
FACTS: tuple[Fact, ...] = ("instrument", "tempo word", "key mode")

_SPEEDS = tuple(words for _, words in TEMPO_WORDS)
# Beats per minute well inside each row of words, so that a pair is not a matter of taste.
_BPM = ((62.0, 80.0), (90.0, 115.0), (126.0, 145.0), (155.0, 178.0))
_KEYS = tuple(
    f"{tonic} {mode}" for tonic in ("C", "D", "E", "F", "G", "A") for mode in ("major", "minor")
)
_MODE = re.compile(r"\b(?:major|minor)\b")
_OTHER_MODE = {"major": "minor", "minor": "major"}
_BPM_SAID = re.compile(r"\d+ bpm")
_DRAWS = 200


@dataclass(frozen=True)
class Pair:
    """Two scores from one seed that differ in one fact, each with a caption that states it.

    The captions differ in the words of that fact only; moods are left out of both.
    """

    scores: tuple[Score, Score]
    captions: tuple[str, str]
    seed: int


def changed_caption(caption: str, truth: Truth, fact: Fact, rng: np.random.Generator) -> str | None:
    """``caption`` with one fact made false, or None if it does not state that fact.

    An instrument of the clip becomes one that is not in it, a tempo word one of another speed,
    major becomes minor or the reverse.
    """
    if fact == "key mode":
        found = _MODE.search(caption)
        if not found or not truth.key:
            return None
        return _spliced(caption, *found.span(), _OTHER_MODE[found[0]])
    if fact == "tempo word":
        return _other_speed(caption, rng)
    return _other_instrument(caption, truth, rng)


def write_pairs(fact: Fact, count: int, seed: int, seconds: float) -> Iterator[Pair]:
    """``count`` pairs from the seeds ``seed``, ``seed + 1`` and so on, solos, duos and bands."""
    for i in range(seed, seed + count):
        yield _pair(fact, i, seconds)


def _pair(fact: Fact, seed: int, seconds: float) -> Pair:
    for attempt in range(_DRAWS):
        rng = np.random.default_rng([seed, 6, attempt])
        choices, other = _choices(fact, seed, seconds, rng)
        scores = (
            write_score(seed, seconds=seconds, **choices),
            write_score(seed, seconds=seconds, **{**choices, **other}),
        )
        first, second = (replace(score.truth, moods=()) for score in scores)
        if not _only_differ_in(fact, first, second):
            continue
        for caption in write_captions(first, rng):
            if fact == "tempo word" and _BPM_SAID.search(caption):
                continue
            changed = _translated(caption, first, second, fact)
            if changed is not None:
                return Pair(scores, (caption, changed), seed)
    raise AssertionError(f"seed {seed} gives no pair for {fact}")


def _choices(
    fact: Fact, seed: int, seconds: float, rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What both scores are asked for, and what the second is asked for instead."""
    drawn = write_score(seed, seconds=seconds).truth
    leads = list(INSTRUMENTS.values())
    lead = leads[int(rng.integers(len(leads)))]
    key = drawn.key or str(rng.choice(_KEYS))
    choices: dict[str, Any] = {
        "style": drawn.style,
        "texture": drawn.texture,
        "tempo": drawn.tempo,
        "key": key,
        "program": lead.program,
    }
    if fact == "instrument":
        others = [item for item in leads if not _akin(item, lead)]
        return choices, {"program": others[int(rng.integers(len(others)))].program}
    if fact == "key mode":
        tonic, mode = key.rsplit(" ", 1)
        return choices, {"key": f"{tonic} {_OTHER_MODE[mode]}"}
    first, second = rng.choice(len(_BPM), size=2, replace=False)
    bpm = [float(round(rng.uniform(*_BPM[i]))) for i in (first, second)]
    return {**choices, "tempo": bpm[0]}, {"tempo": bpm[1]}


def _only_differ_in(fact: Fact, a: Truth, b: Truth) -> bool:
    """Whether the casts agree but for the lead, and the fact is different."""
    if a.texture != b.texture or a.style != b.style or a.has_drums != b.has_drums:
        return False
    others = [[name for name in truth.instruments if name != truth.lead] for truth in (a, b)]
    if others[0] != others[1]:
        return False
    if fact == "instrument":
        return a.lead != b.lead and (a.key, a.tempo) == (b.key, b.tempo)
    return a.lead == b.lead and (a.key != b.key) != (a.tempo != b.tempo)


def _translated(caption: str, first: Truth, second: Truth, fact: Fact) -> str | None:
    """``caption`` of the first as it would be of the second; None if it does not state the fact."""
    if fact == "key mode":
        found = _MODE.search(caption)
        if not found:
            return None
        return _spliced(caption, *found.span(), _OTHER_MODE[found[0]])
    if fact == "tempo word":
        speed = _speed_said(caption)
        if speed is None:
            return None
        start, end, _ = speed
        return _spliced(caption, start, end, _SPEEDS[_speed_of(second.tempo)][0])
    place = _name_said(caption, first.lead)
    if place is None:
        return None
    return _spliced(caption, *place, second.lead)


def _other_speed(caption: str, rng: np.random.Generator) -> str | None:
    place = _speed_said(caption)
    if place is None:
        return None
    start, end, said = place
    others = [i for i in range(len(_SPEEDS)) if i != said]
    return _spliced(caption, start, end, _SPEEDS[int(rng.choice(others))][0])


def _other_instrument(caption: str, truth: Truth, rng: np.random.Generator) -> str | None:
    table = {item.name: item for item in INSTRUMENTS.values()}
    heard = [table[name] for name in truth.instruments if name in table]
    place = _name_said(caption, truth.lead)
    if truth.lead not in table or place is None:
        return None
    others = [item for item in table.values() if not any(_akin(item, other) for other in heard)]
    return _spliced(caption, *place, others[int(rng.integers(len(others)))].name)


def _akin(a: Instrument, b: Instrument) -> bool:
    """Whether a name of one could be said of the other, as 'piano' of a bright piano."""
    return any(x in y or y in x for x in a.names for y in b.names)


def _name_said(caption: str, lead: str) -> tuple[int, int] | None:
    """Where the lead is named, by the longest of its names."""
    names = next((item.names for item in INSTRUMENTS.values() if item.name == lead), ())
    for name in sorted(names, key=len, reverse=True):
        if found := re.search(rf"\b{re.escape(name)}\b", caption):
            return found.start(), found.end()
    return None


def _speed_said(caption: str) -> tuple[int, int, int] | None:
    """Where a tempo word stands, and which row of `TEMPO_WORDS` it is of."""
    said = [(word, row) for row, words in enumerate(_SPEEDS) for word in words]
    for word, row in sorted(said, key=lambda item: len(item[0]), reverse=True):
        if found := re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", caption):
            return found.start(), found.end(), row
    return None


def _speed_of(bpm: float) -> int:
    return next(row for row, (low, high) in enumerate(_BPM) if low <= bpm <= high)


def _spliced(caption: str, start: int, end: int, word: str) -> str:
    """The caption with another word from ``start`` to ``end``, and the article that it asks for."""
    text = caption[:start] + word + caption[end:]
    article = "an" if re.match(r"an? [aeiou]", text) else "a"
    return re.sub(r"^an? ", f"{article} ", text)
