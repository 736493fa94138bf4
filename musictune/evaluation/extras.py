"""Scores that need more than what the embedder and the metrics of clips have heard."""

from __future__ import annotations

from typing import Any

from musictune.errors import InputError
from musictune.evaluation.plan import Plan
from musictune.evaluation.sets import hear_set
from musictune.metrics.base import NotComputed
from musictune.metrics.classifier import AstClassifier
from musictune.metrics.embedders import Embedder, TextReader
from musictune.metrics.folder import ClipFile, ClipSet
from musictune.metrics.frechet_bias import distance_by_size
from musictune.metrics.frechet_influence import clip_influence
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
from musictune.metrics.suite import Evaluation, HeardSet

_MUSICAL = "musical"
_NOTHING_STEERED = NotComputed(
    "no two clips share a seed and have prompts that differ in one fact; make some with "
    "musictune generate --prompts configs/steering.txt --count 4"
)


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
    evaluation: Evaluation, plan: Plan, made: ClipSet, reference: HeardSet | Statistics
) -> dict[str, Any]:
    """How unlike what a tagger hears is in both sets, both ways round."""
    evaluation.about |= KL
    if isinstance(reference, Statistics):
        reason = NotComputed("the reference is statistics, which hold no clips")
        evaluation.add(dict.fromkeys(KL, reason))
        return {}
    classifier = AstClassifier.load(plan.classifier)
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


def _stem(file: ClipFile) -> str:
    return file.path.stem
