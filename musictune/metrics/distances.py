"""Distances between rows, and a seeded sample of rows where all pairs would be too many."""

from __future__ import annotations

import numpy as np

from musictune.errors import InputError
from musictune.metrics.features import Features

Array = np.ndarray

_ROUNDING = 1e-13  # of the squared norms: below it a squared distance is rounding


def sample_rows(features: Features, most: int, seed: int = 0) -> Features:
    """At most so many rows, drawn without replacement, each still known by its clip.

    What all pairs cost grows with the square of the rows, so large sets are thinned, not refused.
    Clips without a row are left out.

    Args:
        features: may lie on disk; only the rows drawn are read.
        most: rows to keep.
        seed: of the draw.
    """
    if len(features.points) <= most:
        kept = features.lengths[features.lengths > 0]
        return Features(features.points, kept, features.key)
    drawn = np.random.default_rng(seed).choice(len(features.points), most, replace=False)
    drawn.sort()
    lengths = np.bincount(features.owners[drawn], minlength=len(features))
    return Features(np.asarray(features.points[drawn]), lengths[lengths > 0], features.key)


def sampled_note(used: int, whole: int, what: str) -> str:
    """How many rows were drawn, for `Score.note`; empty if all were."""
    return "" if used == whole else f"{used} of {whole} {what} drawn by a seed"


def refuse_few_clips(features: Features, what: str, needed: int, measure: str) -> None:
    """Raise for a set with fewer clips than a measure needs.

    Raises:
        InputError: it has fewer.
    """
    clips = int((features.lengths > 0).sum())
    if clips < needed:
        raise InputError(f"{measure} needs {needed} {what} clips or more, not {clips}")


def squared_distances(one: Array, other: Array) -> Array:
    """``(n, m)`` float64 squared distances of ``(n, width)`` and ``(m, width)`` rows.

    Centre the rows first where their mean is large: what is lost to rounding grows with their
    norms. What is within rounding of nothing is exactly 0, so that equal rows are at distance 0.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    norms = np.square(one).sum(1)[:, None] + np.square(other).sum(1)[None, :]
    found = norms - 2 * (one @ other.T)
    found[found <= _ROUNDING * norms] = 0.0
    return np.asarray(found)


def column_means(features: Features) -> Array:
    """``(width,)`` float64 mean of all rows, read in pieces."""
    total = np.zeros(features.width)
    for chunk in features.chunks():
        total += chunk.sum(0)
    return total / len(features.points)


def unit_means(features: Features) -> Array:
    """``(clips, width)`` float64: the mean row of each clip that has one, at length 1.

    Raises:
        InputError: a mean has no direction or is not finite.
    """
    means = np.stack([np.asarray(clip, np.float64).mean(0) for clip in features if len(clip)])
    norms = np.sqrt(np.square(means).sum(1, keepdims=True))
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise InputError("the embeddings of a clip are nothing or not finite; make them anew")
    return np.asarray(means / norms)
