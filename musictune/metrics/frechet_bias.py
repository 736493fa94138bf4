"""What too few clips add to the Fréchet distance, told by ever fewer of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from musictune.errors import InputError
from musictune.metrics.features import Features, comparable
from musictune.metrics.gaussian import Gaussian, Groups, distance

Array = np.ndarray

_HALVINGS = 10
_DRAWS = 4  # sets of clips of each size
_PARTS = (4, 5, 6, 7, 8, 10, 12, 14)  # of 16, near even in one over the size


class Fit(NamedTuple):
    """A line through distances over one over the number of clips.

    Attributes:
        at_infinity: where it meets endlessly many clips.
        slope: by how much the distance grows per ``1 / clips``.
        error: standard error of ``at_infinity`` by the scatter about the line.
    """

    at_infinity: float
    slope: float
    error: float


def distance_by_size(made: Features, reference: Features | Gaussian) -> tuple[Array, Array, Fit]:
    """Plain distances of ever fewer made clips, whole and without replacement, to the reference.

    Returns:
        ``(points,)`` numbers of clips, means over the draws of that size; ``(points,)`` distances,
        that of all clips last; and the line through the distances over ``1 / clips``.

    Raises:
        InputError: fewer than four made clips, or too few embeddings in them; other embedders, or
            values not finite.
    """
    if isinstance(reference, Features):
        comparable(made, reference)
        reference = Groups(reference).whole
    return by_size(Groups(made), reference)


def by_size(made: Groups, reference: Gaussian) -> tuple[Array, Array, Fit]:
    """As `distance_by_size`, of what was read already."""
    if len(made) < 4:
        raise InputError(
            f"a distance by number of clips needs four made clips or more, not {len(made)}; make "
            f"more"
        )
    rng = np.random.default_rng(0)
    counts = sorted({max(round(len(made) * parts / 16), 2) for parts in _PARTS} - {len(made)})
    sizes, distances = [], []
    for count in counts:
        drawn = [made.gaussian(rng.permutation(len(made))[:count]) for _ in range(_DRAWS)]
        sizes.append(float(np.mean([part.n_clips for part in drawn])))
        distances.append(float(np.mean([distance(part, reference) for part in drawn])))
    sizes.append(float(made.whole.n_clips))
    distances.append(distance(made.whole, reference))
    return np.array(sizes), np.array(distances), _fit(np.array(sizes), np.array(distances))


def halving_bias(made: Groups, reference: Groups | Gaussian, whole: float) -> float:
    """By how much ``whole``, the plain distance, is too large: half the clips are so twice.

    A reference of two clips or more is halved along with the made clips; another counts as given.

    Raises:
        InputError: fewer than two made clips, or too few embeddings in half of them.
    """
    if len(made) < 2:
        raise InputError(f"halving needs two made clips or more, not {len(made)}; make more")
    rng = np.random.default_rng(0)
    found = []
    for _ in range(_HALVINGS):
        ours, growth = _halves(made, rng)
        if isinstance(reference, Groups) and len(reference) > 1:
            theirs, growth_of_theirs = _halves(reference, rng)
            growth = (growth + growth_of_theirs) / 2
        else:
            theirs = [reference.whole if isinstance(reference, Groups) else reference] * 2
        halves = np.mean([distance(*pair) for pair in zip(ours, theirs, strict=True)])
        found.append((float(halves) - whole) / growth)
    return float(np.mean(found))


def _halves(groups: Groups, rng: np.random.Generator) -> tuple[list[Gaussian], float]:
    """Two halves of the clips, and by how much their bias exceeds that of the whole: 1 if even."""
    order = rng.permutation(len(groups))
    halves = [groups.gaussian(part) for part in np.array_split(order, 2)]
    clips = groups.whole.n_clips
    return halves, float(np.mean([clips / half.n_clips for half in halves])) - 1


def _fit(sizes: Array, distances: Array) -> Fit:
    design = np.stack([np.ones(len(sizes)), 1 / sizes], axis=1)
    (intercept, slope), *_ = np.linalg.lstsq(design, distances)
    rest = distances - design @ [intercept, slope]
    freedom = max(len(sizes) - 2, 1)
    covariance = np.linalg.inv(design.T @ design) * float(rest @ rest) / freedom
    return Fit(float(intercept), float(slope), math.sqrt(covariance[0, 0]))
