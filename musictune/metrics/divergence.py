"""The MAUVE divergence of two sets (arXiv 2102.01454), which MAD (arXiv 2503.16669) is made of."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from musictune.errors import InputError
from musictune.metrics.base import About, NotComputed, Score, SetMetric
from musictune.metrics.distances import refuse_few_clips, sampled_note, unit_means
from musictune.metrics.features import Features, comparable
from musictune.metrics.intervals import NONE

Array = np.ndarray

SCALING = 5.0
POINTS = 25  # mixtures on the curve
_PER_BUCKET = 10  # clips of the smaller set for each bucket
_RESTARTS = 5
_VARIANCE = 0.9
_MOST = 5_000  # clips of a set, as many as in the paper


def mauve(p: Array, q: Array, scaling: float = SCALING, points: int = POINTS) -> float:
    """Area under the divergence curve of two distributions over the same buckets; 1 if equal.

    The curve joins ``(exp(-c KL(q, r)), exp(-c KL(p, r)))`` of the mixtures ``r = a p + (1 - a) q``
    for evenly spaced ``a`` from 0 to 1, and goes on level and upright to the axes.

    Args:
        p, q: ``(buckets,)``, each summing to 1; nil is allowed.
        scaling: c.
        points: how many mixtures.
    """
    shares = np.linspace(0, 1, points)
    mixtures = shares[:, None] * p + (1 - shares[:, None]) * q
    x = np.exp([-scaling * _kl(q, mixture) for mixture in mixtures])
    y = np.exp([-scaling * _kl(p, mixture) for mixture in mixtures])
    # From q's own end, where x is 1, to p's.
    x, y = np.concatenate([[1.0], x, [0.0]]), np.concatenate([[0.0], y, [1.0]])
    return float((-np.diff(x) * (y[1:] + y[:-1]) / 2).sum())


def mauve_divergence(made: Array, reference: Array, seed: int = 0) -> float:
    """``-ln MAUVE`` of two sets of points: 0 if each bucket holds as much of both, at most 5.5.

    Buckets come from k-means (best of 5 starts) over both sets, scaled to length 1 and turned onto
    the principal components of 90 % of their variance, with one bucket for ten points of the
    smaller set.

    Args:
        made, reference: ``(n, width)`` and ``(m, width)`` rows of length 1.
        seed: of the starts.

    Raises:
        InputError: under 20 points in a set, that is, fewer than two buckets.
    """
    for points, what in ((made, "made"), (reference, "reference")):
        if len(points) < 2 * _PER_BUCKET:
            raise InputError(
                f"a MAUVE divergence needs {2 * _PER_BUCKET} {what} points or more, not "
                f"{len(points)}"
            )
    buckets = min(len(made), len(reference)) // _PER_BUCKET
    labels = _cluster(_principal(np.concatenate([made, reference])), buckets, seed)
    p = np.bincount(labels[: len(made)], minlength=buckets) / len(made)
    q = np.bincount(labels[len(made) :], minlength=buckets) / len(reference)
    return max(-math.log(mauve(p, q)), 0.0)


class MauveDivergence(SetMetric):
    """`mauve_divergence` of the clips' mean rows.

    A clip is one point, as its rows are alike. MAD takes the maximum over time instead of the
    mean, which grows with a clip's length and would tell sets of long and short clips apart.
    No interval is given: the plug-in value is biased upwards by how few clips a bucket holds, and
    an interval about it would not hold the truth.
    """

    scores: ClassVar[Mapping[str, About]] = {
        "mauve_divergence": About(
            "MAUVE divergence",
            "How differently the two sets fill the same buckets of sound; 0 if equally, about "
            "5.5 if no bucket holds both; compare it only at equal numbers of clips.",
            "lower",
        )
    }

    def __call__(self, made: Features, reference: Features) -> dict[str, Score | NotComputed]:
        """The score.

        Raises:
            InputError: the sets cannot be compared, or hold under 20 clips.
        """
        comparable(made, reference)
        for features, what in ((made, "made"), (reference, "reference")):
            refuse_few_clips(features, what, 2 * _PER_BUCKET, "a MAUVE divergence")
        mine, theirs = _draw(unit_means(made)), _draw(unit_means(reference))
        buckets = min(len(mine), len(theirs)) // _PER_BUCKET
        notes = [
            f"no interval; {buckets} buckets",
            sampled_note(len(mine), len(made), "made clips"),
            sampled_note(len(theirs), len(reference), "reference clips"),
        ]
        value = mauve_divergence(mine, theirs)
        note = "; ".join(filter(None, notes))
        return {"mauve_divergence": Score(value, *NONE, len(mine), "lower", note)}


def _draw(points: Array) -> Array:
    if len(points) <= _MOST:
        return points
    drawn = np.random.default_rng(0).choice(len(points), _MOST, replace=False)
    return points[np.sort(drawn)]


def _kl(p: Array, r: Array) -> float:
    """Kullback-Leibler divergence in nats; infinite where ``r`` lacks what ``p`` has."""
    held = p > 0
    if (r[held] == 0).any():
        return math.inf
    return float((p[held] * np.log(p[held] / r[held])).sum())


def _principal(points: Array) -> Array:
    """The points on as few principal components as hold 90 % of their variance."""
    points = points - points.mean(0)
    values, vectors = np.linalg.eigh(points.T @ points)
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    held = np.cumsum(values) >= _VARIANCE * values.sum()
    return points @ vectors[:, : int(held.argmax()) + 1]


def _cluster(points: Array, buckets: int, seed: int) -> Array:
    """``(points,)`` bucket of each, the same on every run."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    means = KMeans(buckets, n_init=_RESTARTS, random_state=seed)
    # Equal points leave buckets empty, which is no harm; sums of one thread never change order.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(means.fit_predict(points))
