"""What chance can do: intervals over clips, and a test of paired differences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

Array = np.ndarray

_EXACT = 12  # pairs up to which all sign patterns are tried
_ROUNDS = 10_000
_NUMBERS = 2**22  # drawn at once, so that memory stays flat
NONE = (math.nan, math.nan)


def mean_interval(values: Array, weights: Array | None = None) -> tuple[float, float, float]:
    """Weighted mean of one value per clip, and its 95 % interval over clips.

    Student's, with the jackknife's error and the degrees of freedom of the effective number of
    clips (Kish 1965). A bootstrap over eight clips holds the truth for 81 to 88 % of real sets
    where this does for 88 to 96 %: it takes the spread of the clips for that of all music.

    Args:
        values: ``(clips,)``.
        weights: ``(clips,)``, such as the windows of each clip; equal if not given.

    Returns:
        mean, low, high; both ends NaN with fewer than two clips of some weight.
    """
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    shares = weights / weights.sum()
    # Divided last, so that equal values have themselves as mean, to the bit.
    mean = float(weights @ values / weights.sum())
    held = shares > 0
    if held.sum() < 2:
        return mean, *NONE
    shares, around = shares[held], values[held] - mean
    effective = 1 / float(shares @ shares)
    return mean, *jackknife(mean - shares * around / (1 - shares), mean, max(effective - 1, 1.0))


def clustered_interval(values: Array, clusters: Sequence[str]) -> tuple[float, float, float]:
    """Mean over clusters of the mean in each, and its 95 % interval over clusters.

    Values of one cluster, such as the seeds of one concept, are alike; what a new cluster would
    give is only seen by drawing whole clusters (Davison and Hinkley 1997, 3.8).

    Args:
        values: ``(values,)``.
        clusters: what each value belongs to; with fewer than two there is no interval.
    """
    names = np.asarray(clusters)
    means = np.array([values[names == name].mean() for name in dict.fromkeys(clusters)])
    return mean_interval(means)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of ``count`` (Wilson 1927), within 0 to 1; NaN without a count.

    Drawing anew from sixteen successes gives sixteen successes, which would look like certainty.
    """
    if count < 1:
        return NONE
    z2 = 1.959964**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = z2 * (share * (1 - share) / count + z2 / (4 * count**2))
    half = math.sqrt(spread) / (1 + z2 / count)
    # At the ends rounding would leave an interval that misses its own value by a hair.
    low = 0.0 if share == 0 else max(middle - half, 0.0)
    high = 1.0 if share == 1 else min(middle + half, 1.0)
    return low, high


def share_interval(values: Array, clusters: Sequence[str]) -> tuple[float, float, float]:
    """Mean over clusters of values from 0 to 1, and its 95 % interval over clusters, within 0 to 1.

    Where all values are 0 or 1 it is `wilson_interval` with the clusters as its count.

    Args:
        values: ``(values,)``.
        clusters: what each value belongs to; with fewer than two there is no interval.
    """
    count = len(set(clusters))
    if not set(values.tolist()) <= {0.0, 1.0} or count < 2:
        value, low, high = clustered_interval(values, clusters)
        return value, float(np.maximum(low, 0)), float(np.minimum(high, 1))
    names = np.asarray(clusters)
    value = float(np.mean([values[names == name].mean() for name in dict.fromkeys(clusters)]))
    return value, *wilson_interval(value, count)


def jackknife(
    values_without: Array, estimate: float, freedom: float | None = None
) -> tuple[float, float]:
    """95 % interval from the estimates that leave out one clip each, ``(clips,)`` (Tukey 1958).

    Args:
        values_without: the estimates without each clip.
        estimate: that of all clips.
        freedom: degrees of freedom; one fewer than clips if not given.
    """
    from scipy.special import stdtrit

    clips = len(values_without)
    if clips < 2:
        return NONE
    spread = math.sqrt(
        (clips - 1) / clips * np.square(values_without - values_without.mean()).sum()
    )
    half = float(stdtrit(freedom or clips - 1, 0.975)) * spread
    return estimate - half, estimate + half


def sign_flip_p(differences: Array, seed: int = 0) -> float:
    """Two-sided p of a mean paired difference if each pair could as well be swapped.

    All ``2**n`` swaps are tried for up to 12 pairs, else 10,000 random ones.
    """
    differences = np.asarray(differences, dtype=np.float64)
    count = len(differences)
    seen = abs(float(differences.sum()))
    # A swap that gives the same sum but for rounding is no less than what was seen.
    enough = seen - 1e-12 * max(seen, 1.0)
    if count <= _EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=count)))
        return float(np.mean(np.abs(signs @ differences) >= enough))
    rng = np.random.default_rng(seed)
    reached = 1  # the swap that was seen is one of those possible
    block = max(_NUMBERS // count, 1)
    for first in range(1, _ROUNDS, block):
        swapped = rng.random((min(block, _ROUNDS - first), count)) < 0.5
        sums = differences.sum() - 2 * (swapped @ differences)
        reached += int((np.abs(sums) >= enough).sum())
    return reached / _ROUNDS
