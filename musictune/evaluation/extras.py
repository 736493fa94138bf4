"""Scores that need more than what the embedder and the metrics of clips have heard."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from musictune.errors import InputError
from musictune.evaluation.plan import Plan
from musictune.evaluation.sets import MadeSets, hear_set
from musictune.metrics.alignment import text_alignment
from musictune.metrics.base import About, NotComputed
from musictune.metrics.classifier import AstClassifier
from musictune.metrics.comparison import ABOUT_FORGETTING, forgetting
from musictune.metrics.embedders import ClapEmbedder, Embedder, TextReader
from musictune.metrics.folder import ClipFile, ClipSet
from musictune.metrics.frechet_bias import distance_by_size
from musictune.metrics.frechet_influence import clip_distances, clip_influence
from musictune.metrics.kl import ABOUT as KL
from musictune.metrics.kl import kl_scores
from musictune.metrics.musical import MusicalListener
from musictune.metrics.musical_agreement import AGREEMENT, musical_scores
from musictune.metrics.musical_asked import FOLLOWED, asked, asked_scores
from musictune.metrics.statistics_files import Statistics
from musictune.metrics.steerability import (
    STEERED,
    Steering,
    contrast_pairs,
    steerability,
    steering_difference,
)
from musictune.metrics.suite import EMBEDDER, Evaluation, HeardSet

ALONE = {
    "frechet_to_reference": About(
        "Fréchet distance of the clip alone",
        "From the reference, by the clip's own embeddings; large for a clip unlike it.",
        "lower",
    )
}
"""What `distance_of_clips` gives, by name."""

_MUSICAL = "musical"
_NOTHING_PLAIN = NotComputed(
    "no pair of clips has a prompt without the concept beside those with it; generate some plain "
    "prompts with both models as well"
)
_NOTHING_STEERED = NotComputed(
    "no two clips share a seed and have prompts that differ in one fact; make some with "
    "musictune generate --prompts configs/steering.txt --count 4"
)


def text_warnings(embedder: Embedder, made: ClipSet) -> list[str]:
    """Which prompts a CLAP cannot read as they were meant."""
    if not isinstance(embedder, ClapEmbedder):
        return []
    texts = {file.text for file in made.files}
    warnings = []
    long = [text for text in texts if embedder.tokens(text) > embedder.most_tokens]
    if long:
        warnings.append(
            f"{len(long)} of {len(texts)} prompts are longer than the {embedder.most_tokens} "
            f"tokens that embedder {embedder.name} reads: text alignment leaves out their ends"
        )
    foreign = [text for text in texts if _foreign(text)]
    if foreign:
        warnings.append(
            f"{len(foreign)} of {len(texts)} prompts are not in Latin letters: CLAP learnt from "
            f"English captions, so their text alignment says little"
        )
    return warnings


def distance_of_clips(
    evaluation: Evaluation,
    made: HeardSet,
    reference: HeardSet | Statistics,
    against: HeardSet | None = None,
) -> None:
    """The Fréchet distance of each clip alone, as a value per clip.

    Nothing is added where the reference, or every clip, has fewer than the two embeddings that a
    covariance needs.
    """
    target = reference.gaussian if isinstance(reference, Statistics) else reference.points
    sets = [(made, evaluation.made)] + ([(against, evaluation.against)] if against else [])
    for one, values in sets:
        try:
            distances = clip_distances(one.points, target)
        except InputError:
            return  # the reference is too short: the reason stands beside the distance of the set
        if not np.isnan(distances).all():
            evaluation.about |= ALONE
            values |= dict.fromkeys(ALONE, distances)


def doubt(evaluation: Evaluation, name: str, why: str) -> None:
    """Mark a score of every set as unreliable."""
    for key in (name, f"against/{name}"):
        if score := evaluation.scores.get(key):
            note = "; ".join(filter(None, [f"unreliable: {why}", score.note]))
            evaluation.scores[key] = replace(score, note=note)


def what_if_more(evaluation: Evaluation, made: HeardSet, reference: HeardSet | Statistics) -> None:
    """Which clips push the Fréchet distance up, and how it falls as clips get more."""
    target = reference.gaussian if isinstance(reference, Statistics) else reference.points
    try:
        if isinstance(reference, HeardSet):
            evaluation.influence = clip_influence(made.points, reference.points)
        sizes, distances, _ = distance_by_size(made.points, target)
        evaluation.by_size = sizes, distances
    except InputError:
        return  # too few clips: the reason stands beside the extrapolated distance


def agreement(evaluation: Evaluation, made: ClipSet, reference: HeardSet | Statistics) -> None:
    """Musical agreement of made clips with reference clips of the same name."""
    evaluation.about |= AGREEMENT
    pairs = [] if isinstance(reference, Statistics) else same_names(made, reference.clips)
    if not pairs:
        reason = NotComputed("no made clip has the name of a reference clip")
        evaluation.add(dict.fromkeys(AGREEMENT, reason))
        return
    assert isinstance(reference, HeardSet)
    files = reference.clips.files
    evaluation.add(musical_scores((made.files[i].read(), files[j].read()) for i, j in pairs))


def forgotten(evaluation: Evaluation, plan: Plan, embedder: Embedder, music: MadeSets) -> None:
    """What was lost where the concept was not called, on pairs of plain prompts."""
    evaluation.about |= ABOUT_FORGETTING
    if not music.plain:
        evaluation.add(dict.fromkeys(ABOUT_FORGETTING, _NOTHING_PLAIN))
        return
    points, followed = [], []
    for name, files in zip(("tuned", "base"), zip(*music.plain, strict=True), strict=True):
        clips = ClipSet(f"{name}, plain prompts", files)
        heard = hear_set(plan, clips, {EMBEDDER: embedder}).points
        points.append(heard)
        if isinstance(embedder, TextReader):
            words = embedder.text([file.text for file in files])
            followed.append(text_alignment(words, heard))
        else:
            followed.append(np.full(len(files), np.nan))
    pairs = [(i, i) for i in range(len(music.plain))]
    texts = [file.text for file, _ in music.plain]
    found, p = forgetting(followed[0], followed[1], points[0], points[1], pairs, texts)
    evaluation.add(found)
    evaluation.p |= p


def asked_for(
    evaluation: Evaluation, plan: Plan, embedder: Embedder, made: HeardSet, against: HeardSet | None
) -> None:
    """Whether tempo and key are as the prompts name them, and follow when these change."""
    evaluation.about |= {**FOLLOWED, **STEERED}
    sets = {"": made} | ({"against/": against} if against else {})
    steering: dict[str, Steering] = {}
    for prefix, one in sets.items():
        texts = [file.text for file in one.clips.files]
        if not any(found.tempo or found.key for found in map(asked, texts)):
            reason = NotComputed("no prompt names a tempo in bpm or a key")
            evaluation.add(dict.fromkeys([*FOLLOWED, *STEERED], reason), prefix)
            continue
        heard = hear_set(plan, one.clips, {_MUSICAL: MusicalListener()}).heard.features[_MUSICAL]
        evaluation.add(asked_scores(heard, texts), prefix)
        seeds = [file.seed for file in one.clips.files]
        if not contrast_pairs(texts, seeds):
            evaluation.add(dict.fromkeys(STEERED, _NOTHING_STEERED), prefix)
            continue
        read = [MusicalListener.read(rows) for rows in heard]
        words = embedder.text(texts).numpy() if isinstance(embedder, TextReader) else None
        points = one.points if words is not None else None
        steering[prefix] = steerability(texts, seeds, read, points, words)
        evaluation.add(steering[prefix].scores, prefix)
    if len(steering) > 1:
        difference = steering_difference(steering[""], steering["against/"])
        evaluation.add(difference, "difference/")


def kl_divergence(
    evaluation: Evaluation,
    plan: Plan,
    classifier: AstClassifier,
    made: ClipSet,
    reference: HeardSet | Statistics,
) -> dict[str, Any]:
    """How unlike what a tagger hears is in both sets, both ways round."""
    evaluation.about |= KL
    if isinstance(reference, Statistics):
        reason = NotComputed("the reference is statistics, which hold no clips")
        evaluation.add(dict.fromkeys(KL, reason))
        return {}
    ours, theirs = (
        hear_set(plan, clips, {"classifier": classifier}).heard.features["classifier"]
        for clips in (made, reference.clips)
    )
    evaluation.add(kl_scores(ours, theirs, same_names(made, reference.clips)))
    return {"classifier": {"name": classifier.name, "hash": classifier.hash}}


def same_names(made: ClipSet, reference: ClipSet) -> list[tuple[int, int]]:
    """Indices of made and reference clips that have one name, whatever its suffix."""
    known = {_stem(file): index for index, file in enumerate(reference.files)}
    names = [known.get(_stem(file)) for file in made.files]
    return [(i, j) for i, j in enumerate(names) if j is not None]


def _foreign(text: str) -> bool:
    """Whether most letters are of another alphabet than English has."""
    letters = [letter for letter in text if letter.isalpha()]
    return sum(letter.isascii() for letter in letters) < len(letters) / 2


def _stem(file: ClipFile) -> str:
    return file.path.stem
