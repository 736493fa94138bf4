"""Whether music has the tempo and the key that its prompt asks for."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.base import About, NotComputed, Score
from musictune.metrics.features import Features
from musictune.metrics.intervals import share_interval
from musictune.metrics.musical import (
    KEYS,
    TOLERANCE,
    Heard,
    MusicalListener,
    key_fit,
    key_of,
    listened,
    mean_chroma,
    octave_distance,
    tempo_fits,
    tempo_of,
)
from musictune.metrics.musical_agreement import key_score

Array = np.ndarray
T = TypeVar("T")

FOLLOWED: Mapping[str, About] = {
    "tempo_followed": About(
        "Asked tempo followed",
        "Share of clips within 4 % of the bpm their prompt names, its double or its half.",
        "higher",
    ),
    "key_followed": About(
        "Asked key followed",
        "mir_eval's weighted score of the key heard against the one the prompt names.",
        "higher",
    ),
}
"""What `asked_scores` gives, by name as in ``metrics.json``."""

_NUMBER = r"(?P<{}>(?<![\d.])\d{{2,3}}(?:\.\d+)?)"
_TEMPO = re.compile(
    r"(?P<range>(?<![\d.])\d{2,3}\s*(?:-|–|to)\s*)?"
    + _NUMBER.format("before")
    + r"[\s-]*(?:bpm\b|beats\s+(?:per|a)\s+minute\b)|\b(?:bpm|tempo)\s*(?:of|at|[:=])?\s*"
    + _NUMBER.format("after")
    + r"(?!\d)",
    re.IGNORECASE,
)
_SLOWEST, _FASTEST = 20.0, 400.0

_NOTE = r"(?P<{0}>[A-Ga-g])(?P<sign{0}>[\s-]?(?:sharp|flat)\b|[#♯♭b])?"
_KEY = re.compile(
    r"(?P<lead>\bkey(?:\s+of|\s*[:=])?\s+|\bin\s+)?(?<![\w#♯♭])(?:"
    + _NOTE.format("long")
    + r"[\s-]*(?P<mode>major|minor|maj|min)\b|"
    + _NOTE.format("short")
    + r"m(?![\w#♯♭]))",
    re.IGNORECASE,
)
_PITCH = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}


@dataclass(frozen=True)
class Asked:
    """What a prompt names.

    Attributes:
        tempo: beats per minute; None if it names none, or several.
        key: one of `musictune.metrics.musical.KEYS`; None if it names none, or several.
        rest: the prompt without both, for telling what else it says.
    """

    tempo: float | None
    key: str | None
    rest: str


def asked(prompt: str) -> Asked:
    """The tempo and the key that a prompt names.

    A tempo is a number with its unit (``120 bpm``, ``tempo: 120``), not a word such as fast. A key
    is a tonic with its mode (``in A minor``, ``Eb major``, ``in F#m``); a small ``a`` is read as
    the article unless ``key of`` stands before it or nothing but a comma or the end behind it.
    """
    tempi = [(match, _tempo_named(match)) for match in _TEMPO.finditer(prompt)]
    keys = [(match, _key_named(match)) for match in _KEY.finditer(prompt)]
    return Asked(
        _only({tempo for _, tempo in tempi if tempo is not None}),
        _only({key for _, key in keys if key is not None}),
        _without(prompt, [match for match, value in [*tempi, *keys] if value is not None]),
    )


def asked_scores(heard: Features, prompts: Sequence[str]) -> dict[str, Score | NotComputed]:
    """How well the clips follow the tempo and key of their prompts, by the names of `FOLLOWED`.

    Clips of one prompt count as one, so that the interval is what new prompts would give. The
    note says what chance would reach: each clip scored against all other prompts.

    Args:
        heard: by a `MusicalListener`.
        prompts: of each clip; empty where it is not known.

    Raises:
        InputError: not as many prompts as clips.
    """
    if len(heard) != len(prompts):
        raise InputError(f"{len(prompts)} prompts do not fit {len(heard)} clips; give one for each")
    clips = [MusicalListener.read(rows) for rows in heard]
    wanted = [asked(prompt) for prompt in prompts]
    return {
        "tempo_followed": _followed(
            clips, [one.tempo for one in wanted], prompts, "tempo_followed", _tempi_followed
        ),
        "key_followed": _followed(
            clips, [one.key for one in wanted], prompts, "key_followed", _keys_followed
        ),
    }


class FollowsTempo:
    """Reward: 1 if a clip has the tempo its caption names, up to octaves and 4 %, else 0."""

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)``.

        Raises:
            InputError: a caption names no tempo, or several.
        """
        wanted = [_needed(clip, asked(clip.caption).tempo, "tempo", "120 bpm") for clip in clips]
        pairs = zip(clips, wanted, strict=True)
        return torch.tensor([float(tempo_fits(tempo_of(clip), tempo)) for clip, tempo in pairs])


class FollowsKey:
    """Reward: mir_eval's weighted score of a clip's key against the one its caption names."""

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)`` from 0 to 1.

        Raises:
            InputError: a caption names no key, or several.
        """
        wanted = [_needed(clip, asked(clip.caption).key, "key", "in A minor") for clip in clips]
        pairs = zip(clips, wanted, strict=True)
        return torch.tensor([key_score(key, key_of(clip)) for clip, key in pairs])


class TempoCloseness:
    """Reward: 1 if a clip has the tempo its caption names, falling evenly to 0 half an octave off.

    A double or half counts as the same. Unlike `FollowsTempo` it tells nearly right from wrong, so
    that there is something to learn before the first clip is right. A clip in which nothing
    repeats gets 0.
    """

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)`` from 0 to 1.

        Raises:
            InputError: a caption names no tempo, or several.
        """
        wanted = [_needed(clip, asked(clip.caption).tempo, "tempo", "120 bpm") for clip in clips]
        pairs = zip(clips, wanted, strict=True)
        return torch.tensor([_closeness(tempo_of(clip), tempo) for clip, tempo in pairs])


class KeyCloseness:
    """Reward: correlation of a clip's pitch classes with the profile of the key its caption names.

    The profiles are Temperley's (2007). Unlike `FollowsKey` it rises with every note of the key
    that takes the place of another. Silence gets -1, the least there is.
    """

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)`` from -1 to 1.

        Raises:
            InputError: a caption names no key, or several.
        """
        wanted = [_needed(clip, asked(clip.caption).key, "key", "in A minor") for clip in clips]
        pairs = zip(clips, wanted, strict=True)
        return torch.tensor([key_fit(mean_chroma(listened(clip)), key) for clip, key in pairs])


def _closeness(heard: float, tempo: float) -> float:
    if math.isnan(heard):
        return 0.0
    # What is within the tolerance is right, and no rounding of the listener is worth a gradient.
    allowed = math.log2(1 + TOLERANCE)
    off = max(octave_distance(heard, tempo) - allowed, 0.0)
    return 1 - off / (0.5 - allowed)


def _needed(clip: Clip, value: T | None, what: str, example: str) -> T:
    if value is None:
        raise InputError(
            f"caption {clip.caption!r} of clip {clip.source or '(unnamed)'} does not name one "
            f"{what}; write one into it, such as {example!r}"
        )
    return value


def _tempo_named(match: re.Match[str]) -> float | None:
    tempo = float(match["before"] or match["after"])
    if match["range"]:
        return None
    return tempo if _SLOWEST <= tempo <= _FASTEST else None


def _key_named(match: re.Match[str]) -> str | None:
    note, sign = match["long"] or match["short"], match["signlong"] or match["signshort"] or ""
    lead = (match["lead"] or "").lower()
    if match["short"] and (not lead or not note.isupper() or "M" in match[0][-1]):
        return None  # Am alone may be a chord, and am a verb
    if note in "Aa" and not sign and not lead.startswith("key"):
        ends = re.match(r"\s*($|[,.;:)])", match.string[match.end() :])
        article = note == "a" or match.start("long") == 0
        if article and not ends:
            return None  # a minor setback; A major label
    shift = {"#": 1, "♯": 1, "b": -1, "♭": -1, "": 0}.get(sign)
    if shift is None:
        shift = 1 if sign.lower().endswith("sharp") else -1
    tonic = (_PITCH[note.lower()] + shift) % 12
    minor = bool(match["short"]) or match["mode"].lower().startswith("min")
    return KEYS[tonic + 12 * minor]


def _only(values: set[T]) -> T | None:
    return next(iter(values)) if len(values) == 1 else None


def _without(prompt: str, matches: Sequence[re.Match[str]]) -> str:
    """The prompt in lower case with a mark where each match was, and plain spaces."""
    letters = list(prompt)
    for match in matches:
        letters[match.start() : match.end()] = ["…", *[""] * (match.end() - match.start() - 1)]
    return " ".join("".join(letters).lower().split())


def _tempi_followed(clips: Sequence[Heard], tempo: float) -> Array:
    return np.array([float(tempo_fits(clip.tempo, tempo)) for clip in clips])


def _keys_followed(clips: Sequence[Heard], key: str) -> Array:
    table = {heard: key_score(key, heard) for heard in {clip.key for clip in clips}}
    return np.array([table[clip.key] for clip in clips])


def _followed(
    clips: Sequence[Heard],
    wanted: Sequence[T | None],
    prompts: Sequence[str],
    name: str,
    score: Callable[[Sequence[Heard], T], Array],
) -> Score | NotComputed:
    what = name.removesuffix("_followed")
    asking = [i for i, value in enumerate(wanted) if value is not None]
    if not asking:
        return NotComputed(f"none of {len(prompts)} prompts names one {what}")
    ours = np.full(len(clips), math.nan)
    chance = count = 0.0
    texts = np.asarray(prompts)
    for prompt, times in Counter(prompts[i] for i in asking).items():
        value = wanted[prompts.index(prompt)]
        assert value is not None
        scores = score(clips, value)
        own = texts == prompt
        ours[own] = scores[own]
        chance += times * float(scores[~own].sum())
        count += times * int((~own).sum())
    note = (
        f"chance {chance / count:.3f} (clips against the other prompts)"
        if count
        else "chance is not known: all clips have one prompt"
    )
    interval = share_interval(ours[asking], [prompts[i] for i in asking])
    return Score(*interval, n=len(asking), better=FOLLOWED[name].better, note=note)
