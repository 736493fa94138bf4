"""Steerability: does changing one fact of the prompt change it in the sound?

Two clips of one seed, whose prompts differ in the tempo, the key or the instrument and in nothing
else, are set against both prompts. They steer if the right way round fits better than the swapped
one. Luck has one half, whatever the model likes to play: a model that ignores the fact gains
nothing by always playing the same tempo.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from musictune.errors import InputError
from musictune.metrics.base import About, NotComputed, Score
from musictune.metrics.features import Features
from musictune.metrics.intervals import clustered_interval, share_interval, sign_flip_p
from musictune.metrics.musical import NO_KEY, TOLERANCE, Heard, octave_distance
from musictune.metrics.musical_agreement import key_score
from musictune.metrics.musical_asked import Asked, asked

Array = np.ndarray
Kind = Literal["tempo", "key", "instrument"]

STEERED: Mapping[str, About] = {
    "tempo_steered": About(
        "Tempo steered",
        "Share of pairs in which another bpm in the prompt moved the tempo its way; luck has 0.5.",
        "higher",
    ),
    "key_steered": About(
        "Key steered",
        "Share of pairs in which another key in the prompt moved the key its way; luck has 0.5.",
        "higher",
    ),
    "instrument_steered": About(
        "Instrument steered",
        "Share of pairs in which another instrument in the prompt was heard; luck has 0.5.",
        "higher",
    ),
}
"""What `steerability` gives, by name as in ``metrics.json``."""

_FARTHEST = 0.5  # octaves, with doubles and halves the same
_EQUAL = 1e-9
_WORDS = 2  # of an instrument's name that may change
# The noun of an instrument's name: what stands before it, as in a muted trumpet, may be anything.
_INSTRUMENT = re.compile(
    r"(aah|accordion|bagpipe|banjo|bass|bassoon|bell|cello|celesta|celeste|cembalo|chime|choir|"
    r"clarinet|clavinet|cornet|drum|drum kit|dulcimer|ensemble|fiddle|flute|glockenspiel|guitar|"
    r"harmonica|harp|harpsichord|horn|humming|kalimba|keyboard|koto|lead|lute|mandolin|marimba|"
    r"music box|oboe|ocarina|ooh|orchestra|organ|pad|pan|pan ?pipe|percussion|piano|piccolo|"
    r"polysynth|recorder|sax|saxophone|section|shakuhachi|sitar|squeezebox|string|synth|"
    r"synth chord|synthesizer|timpani|trombone|trumpet|tuba|ukulele|vibe|vibraphone|viola|violin|"
    r"violoncello|vocal|voice|whistle|xylophone)e?s?"
)


@dataclass(frozen=True)
class ContrastPair:
    """Two clips of one seed whose prompts differ in one fact.

    Attributes:
        kind: the fact.
        i, j: the clips.
        seed: of both.
        prompts: of both.
        context: all that both prompts say; pairs of one kind and context are alike.
    """

    kind: Kind
    i: int
    j: int
    seed: int
    prompts: tuple[str, str]
    context: str


@dataclass(frozen=True, eq=False)
class Steering:
    """What `steerability` found.

    Attributes:
        scores: by the names of `STEERED`.
        pairs: what was compared.
        outcomes: ``(pairs,)`` 1 where the sound followed the prompt, 0 where it went the other
            way, 0.5 where neither can be said; NaN where nothing was there to listen with.
    """

    scores: dict[str, Score | NotComputed]
    pairs: list[ContrastPair]
    outcomes: Array


def contrast_pairs(prompts: Sequence[str], seeds: Sequence[int | None]) -> list[ContrastPair]:
    """All pairs of clips that share a seed and whose prompts differ in exactly one fact.

    Tempi that are the same up to octaves and the tolerance of hearing make no pair, for they
    cannot be told apart. Instruments are names of one or two words at one place of the prompt,
    with another noun.

    Args:
        prompts: of each clip; empty where it is not known.
        seeds: of each clip; one without a seed is in no pair.

    Raises:
        InputError: not as many seeds as prompts.
    """
    if len(prompts) != len(seeds):
        raise InputError(f"{len(seeds)} seeds do not fit {len(prompts)} prompts; give one for each")
    known: dict[str, Asked] = {prompt: asked(prompt) for prompt in prompts if prompt}
    groups: dict[tuple[Kind, int, str], list[tuple[int, str]]] = defaultdict(list)
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        if prompt and seed is not None:
            for kind, context, fact in _contexts(known[prompt]):
                groups[kind, seed, context].append((index, fact))
    pairs = []
    seen: set[tuple[Kind, int, int]] = set()
    for (kind, seed, context), clips in groups.items():
        for (i, one), (j, other) in itertools.combinations(clips, 2):
            if (kind, i, j) not in seen and _differ(kind, one, other):
                seen.add((kind, i, j))
                pairs.append(ContrastPair(kind, i, j, seed, (prompts[i], prompts[j]), context))
    return sorted(pairs, key=lambda pair: (get_args(Kind).index(pair.kind), pair.i, pair.j))


def steerability(
    prompts: Sequence[str],
    seeds: Sequence[int | None],
    heard: Sequence[Heard],
    clip_points: Features | Sequence[Array] | None = None,
    text_points: Array | None = None,
) -> Steering:
    """How surely another tempo, key or instrument in the prompt is heard in the sound.

    For a tempo the likeness of clip and prompt is their distance in octaves, doubles and halves
    being the same; for a key mir_eval's weighted score; for an instrument the mean cosine of the
    clip's points with its text. Intervals are over contexts, which is what prompts of another
    context would give; the p in each note is that of a model that ignores the fact.

    Args:
        prompts: of each clip.
        seeds: of each clip; None where it is not known.
        heard: of each clip, by `MusicalListener.read`.
        clip_points: per clip ``(windows, dim)`` of an embedder that also reads text.
        text_points: ``(clips, dim)``, the prompts read by it.

    Raises:
        InputError: arguments for different numbers of clips.
    """
    for what, given in (("hearings", heard), ("clips", clip_points), ("texts", text_points)):
        if given is not None and len(given) != len(prompts):
            raise InputError(
                f"{len(given)} {what} do not fit {len(prompts)} prompts; give one for each"
            )
    pairs = contrast_pairs(prompts, seeds)
    wanted = {prompt: asked(prompt) for pair in pairs for prompt in pair.prompts}
    likeness: dict[Kind, Callable[[int, int], float]] = {
        "tempo": lambda clip, text: _tempo_likeness(heard[clip], wanted[prompts[text]]),
        "key": lambda clip, text: _key_likeness(heard[clip], wanted[prompts[text]]),
    }
    if clip_points is not None and text_points is not None:
        likeness["instrument"] = _cosines(clip_points, text_points)
    outcomes = np.array([_outcome(pair, likeness.get(pair.kind)) for pair in pairs])
    scores: dict[str, Score | NotComputed] = {
        f"{kind}_steered": _score(kind, pairs, outcomes) for kind in get_args(Kind)
    }
    return Steering(scores, pairs, outcomes)


def steering_difference(made: Steering, against: Steering) -> dict[str, Score | NotComputed]:
    """Outcomes of one model minus those of another, on the pairs of prompts that both have.

    By the names of `STEERED`, each note with the p of no difference.
    """
    theirs = {
        (pair.kind, frozenset(pair.prompts), pair.seed): float(outcome)
        for pair, outcome in zip(against.pairs, against.outcomes, strict=True)
    }
    found: dict[str, Score | NotComputed] = {}
    for kind in get_args(Kind):
        mine = [(p, float(o)) for p, o in zip(made.pairs, made.outcomes, strict=True)]
        both = [
            (outcome - theirs[key], pair.context)
            for pair, outcome in mine
            if pair.kind == kind and (key := (kind, frozenset(pair.prompts), pair.seed)) in theirs
        ]
        shared = [(value, context) for value, context in both if not math.isnan(value)]
        if not shared:
            reason = f"the two sets share no pair of prompts that differ in the {kind} alone"
            found[f"{kind}_steered"] = NotComputed(reason)
            continue
        values, contexts = np.array([value for value, _ in shared]), [text for _, text in shared]
        found[f"{kind}_steered"] = Score(
            *clustered_interval(values, contexts),
            n=len(shared),
            better="higher",
            note=f"p {_p(values, contexts):.3g} of no difference",
        )
    return found


def _contexts(prompt: Asked) -> list[tuple[Kind, str, str]]:
    """Each fact of a prompt: its kind, what is left without it, and the fact."""
    found: list[tuple[Kind, str, str]] = []
    if prompt.tempo is not None:
        found.append(("tempo", f"{prompt.rest} | {prompt.key}", str(prompt.tempo)))
    if prompt.key is not None:
        found.append(("key", f"{prompt.rest} | {prompt.tempo}", prompt.key))
    facts = f"{prompt.tempo} | {prompt.key}"
    named = _instruments(prompt.rest)
    return found + [("instrument", f"{text} | {facts}", noun) for text, noun in named]


def _instruments(text: str) -> list[tuple[str, str]]:
    """The text with a gap where one or two words name an instrument, and its noun: for each."""
    words = re.findall(r"[\w'-]+|[^\w\s]", text)
    found = []
    for count in range(1, _WORDS + 1):
        for start in range(len(words) - count + 1):
            span = words[start : start + count]
            rest = [*words[:start], "_", *words[start + count :]]
            # Prompts of two words each, all of them different, say more than another instrument.
            whole = count > 1 and not any(word.isalnum() for word in rest)
            named = _INSTRUMENT.fullmatch(span[-1]) or _INSTRUMENT.fullmatch(" ".join(span))
            if named and all(word[0].isalnum() for word in span) and not whole:
                found.append((" ".join(rest), span[-1]))
    return found


def _differ(kind: Kind, one: str, other: str) -> bool:
    if kind == "tempo":
        # Further apart than one tempo can be from being heard as either.
        return octave_distance(float(one), float(other)) > 2 * math.log2(1 + TOLERANCE)
    return one != other


def _tempo_likeness(heard: Heard, wanted: Asked) -> float:
    assert wanted.tempo is not None
    return -_FARTHEST if math.isnan(heard.tempo) else -octave_distance(heard.tempo, wanted.tempo)


def _key_likeness(heard: Heard, wanted: Asked) -> float:
    assert wanted.key is not None
    return 0.0 if heard.key == NO_KEY else key_score(wanted.key, heard.key)


def _cosines(
    clip_points: Features | Sequence[Array], text_points: Array
) -> Callable[[int, int], float]:
    def unit(rows: Array) -> Array:
        rows = np.asarray(rows, np.float64)
        return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12))

    texts = unit(np.asarray(text_points))
    clips = np.stack([unit(np.asarray(rows)).mean(0) for rows in clip_points])
    if clips.shape[1] != texts.shape[1]:
        raise InputError(
            f"clips of {clips.shape[1]} and texts of {texts.shape[1]} dimensions cannot be "
            "compared; embed both with one model"
        )
    return lambda clip, text: float(clips[clip] @ texts[text])


def _outcome(pair: ContrastPair, likeness: Callable[[int, int], float] | None) -> float:
    if likeness is None:
        return math.nan
    i, j = pair.i, pair.j
    gain = likeness(i, i) + likeness(j, j) - likeness(i, j) - likeness(j, i)
    if not math.isfinite(gain):
        raise InputError(f"what was heard of {pair.prompts[0]!r} is not finite; embed it anew")
    return 0.5 if abs(gain) <= _EQUAL else float(gain > 0)


def _score(kind: Kind, pairs: Sequence[ContrastPair], outcomes: Array) -> Score | NotComputed:
    mine = [i for i, pair in enumerate(pairs) if pair.kind == kind]
    if not mine:
        return NotComputed(
            f"no two clips share a seed and have prompts that differ in the {kind} alone; make "
            "some: musictune generate --prompts configs/steering.txt"
        )
    values, contexts = outcomes[mine], [pairs[i].context for i in mine]
    if np.isnan(values).any():
        return NotComputed(
            "instruments are told apart by an embedder that reads text, such as clap"
        )
    ties = int((values == 0.5).sum())
    note = f"p {_p(values - 0.5, contexts):.3g} against luck (0.5)"
    note += f"; {ties} of {len(values)} pairs undecided" if ties else ""
    return Score(*share_interval(values, contexts), n=len(values), better="higher", note=note)


def _p(values: Array, contexts: Sequence[str]) -> float:
    """Two-sided p that the mean over contexts is 0, contexts being what is independent."""
    means: dict[str, list[float]] = defaultdict(list)
    for value, context in zip(values, contexts, strict=True):
        means[context].append(float(value))
    return sign_flip_p(np.array([np.mean(found) for found in means.values()]))
