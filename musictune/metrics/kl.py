"""Kullback-Leibler divergence of what a classifier hears in made clips and in the reference.

The divergence has a direction, and tools differ in it: audiocraft's ``kld`` is that of the
reference from the made clips, stable-audio-metrics' the opposite. So each score names its own:
``made_to_reference`` is D(made ‖ reference), which is large where made clips hold classes that the
reference has not; ``reference_to_made`` is D(reference ‖ made), large where they lack some.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from musictune.errors import InputError
from musictune.metrics.base import About, NotComputed, Score
from musictune.metrics.features import Features, comparable
from musictune.metrics.intervals import NONE, jackknife, mean_interval

Array = np.ndarray

_TOLERANCE = 1e-3  # float16 probabilities of 500 classes still sum to 1 within this

ABOUT = {
    "kl_made_to_reference": About(
        "KL, made to reference",
        "High if the made clips as a whole hold classes of sound that the reference has little "
        "of; nats.",
        "lower",
    ),
    "kl_reference_to_made": About(
        "KL, reference to made",
        "High if the made clips as a whole lack classes of sound that the reference has; nats.",
        "lower",
    ),
    "paired_kl_made_to_reference": About(
        "paired KL, made to reference",
        "As above, between each made clip and the reference clip of the same name; nats.",
        "lower",
    ),
    "paired_kl_reference_to_made": About(
        "paired KL, reference to made",
        "As above, between each made clip and the reference clip of the same name; nats.",
        "lower",
    ),
}
"""What `kl_scores` gives, by name."""


def kl_divergence(p: Array, q: Array, epsilon: float = 0.0) -> Array:
    """D(p ‖ q) in nats (Kullback and Leibler 1951), infinite where ``q`` lacks what ``p`` has.

    Args:
        p, q: ``(..., classes)`` probabilities that sum to 1; shapes must broadcast.
        epsilon: added to every probability of ``q`` before its logarithm, as audiocraft does
            (1e-6); the result may then be a little below 0.

    Returns:
        ``(...)`` float64.

    Raises:
        InputError: negative, not finite, sums other than 1, or other numbers of classes.
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    if p.shape[-1] != q.shape[-1]:
        raise InputError(
            f"distributions over {p.shape[-1]} and {q.shape[-1]} classes cannot be compared; use "
            f"one classifier for both"
        )
    for one in (p, q):
        _check(one)
    with np.errstate(divide="ignore"):
        terms = np.where(p > 0, p * (np.log(np.where(p > 0, p, 1.0)) - np.log(q + epsilon)), 0.0)
    return np.asarray(terms.sum(-1))


def kl_scores(
    made: Features, reference: Features, pairs: Sequence[tuple[int, int]] = ()
) -> dict[str, Score | NotComputed]:
    """Divergences between the sets and between paired clips, both ways, in nats.

    A clip's distribution is the mean of its windows', a set's the mean of its clips'. Intervals of
    the sets' divergences are from leaving out clips of both sets; those of the paired ones from
    resampling pairs. Divergences of sets are a little too large when there are few clips.

    Args:
        made, reference: class probabilities of one classifier, such as `AstClassifier`'s.
        pairs: indices into ``made`` and ``reference`` of clips that belong together.

    Raises:
        InputError: other classifiers, rows that are no probabilities, or a set without rows.
    """
    comparable(made, reference)
    ours, theirs = _clips(made, "made"), _clips(reference, "reference")
    scores: dict[str, Score | NotComputed] = {
        "kl_made_to_reference": _between_sets(ours, theirs, len(made)),
        "kl_reference_to_made": _between_sets(theirs, ours, len(made)),
    }
    if not pairs:
        why = NotComputed("no made clip has the name of a reference clip")
        return scores | {f"paired_{name}": why for name in scores}
    mine, other = (list(side) for side in zip(*pairs, strict=True))
    scores["paired_kl_made_to_reference"] = _between_pairs(ours[mine], theirs[other])
    scores["paired_kl_reference_to_made"] = _between_pairs(theirs[other], ours[mine])
    return scores


def _clips(features: Features, which: str) -> Array:
    if len(features) == 0 or not features.lengths.all():
        raise InputError(f"a {which} clip has no class probabilities, or there are no clips")
    means = features.means()
    _check(means)
    return means


def _between_sets(p: Array, q: Array, count: int) -> Score | NotComputed:
    value = float(kl_divergence(p.mean(0), q.mean(0)))
    if math.isinf(value):
        return NotComputed("one set holds a class whose probability is exactly 0 in the other")
    value = max(value, 0.0)
    halves = [
        _half(kl_divergence(_means_without(p), q.mean(0)), value),
        _half(kl_divergence(p.mean(0), _means_without(q)), value),
    ]
    half = math.hypot(*halves)
    low, high = NONE if math.isnan(half) else (max(value - half, 0.0), value + half)
    return Score(value, low, high, count, "lower")


def _between_pairs(p: Array, q: Array) -> Score | NotComputed:
    values = kl_divergence(p, q)
    if np.isinf(values).any():
        return NotComputed("a clip holds a class whose probability is exactly 0 in its pair")
    return Score(*mean_interval(values), n=len(values), better="lower")


def _means_without(clips: Array) -> Array:
    """``(clips, classes)`` the mean of all clips but one; of a single clip itself."""
    if len(clips) == 1:
        return clips
    return np.asarray((clips.sum(0) - clips) / (len(clips) - 1)).clip(0)


def _half(values_without: Array, value: float) -> float:
    low, high = jackknife(values_without, value)
    return (high - low) / 2


def _check(probabilities: Array) -> None:
    sums = probabilities.sum(-1)
    if not np.isfinite(probabilities).all() or (probabilities < 0).any():
        raise InputError("class probabilities are negative or not finite; use another classifier")
    if np.abs(sums - 1).max(initial=0.0) > _TOLERANCE:
        raise InputError(
            f"class probabilities sum to {float(np.ravel(sums)[np.argmax(np.abs(sums - 1))]):.4f}, "
            f"not 1; use a classifier's answers, such as AST's"
        )
