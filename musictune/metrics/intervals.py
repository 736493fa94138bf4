"""What chance can do: intervals by resampling clips, and a test of paired differences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray

_EXACT = 12  # pairs up to which all sign patterns are tried
_ROUNDS = 10_000
NONE = (math.nan, math.nan)


def basic_bootstrap(
    statistic: Callable[[Array], float], clips: int, *, rounds: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval by the basic (reflected) bootstrap over clips (Davison and Hinkley 1997, 5.2).

    Unlike the percentile bootstrap it also takes out the bias of a statistic that grows when clips
    repeat, as the Fréchet distance does; it may then lie beside the plain estimate.

    Args:
        statistic: from how often each clip was drawn, ``(clips,)`` integers, to a value.
        clips: how many there are; under two there is no interval, and both ends are NaN.
        rounds: resamplings.
        seed: of the draws.
    """
    if clips < 2:
        return NONE
    rng = np.random.default_rng(seed)
    estimate = statistic(np.ones(clips, dtype=np.int64))
    draws = [
        statistic(np.bincount(rng.integers(clips, size=clips), minlength=clips))
        for _ in range(rounds)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(2 * estimate - high), float(2 * estimate - low)


def mean_interval(values: Array, weights: Array | None = None) -> tuple[float, float, float]:
    """Weighted mean of one value per clip, and its 95 % interval over clips.

    Args:
        values: ``(clips,)``.
        weights: ``(clips,)``, such as the windows of each clip; equal if not given.
    """
    weights = np.ones(len(values)) if weights is None else weights

    def mean(counts: Array) -> float:
        drawn = counts * weights
        return float(drawn @ values / drawn.sum())

    low, high = basic_bootstrap(mean, len(values))
    return mean(np.ones(len(values), dtype=np.int64)), low, high


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


def jackknife(values_without: Array, estimate: float) -> tuple[float, float]:
    """95 % interval from the estimates that leave out one clip each, ``(clips,)`` (Tukey 1958)."""
    from scipy.special import stdtrit

    clips = len(values_without)
    if clips < 2:
        return NONE
    spread = math.sqrt(
        (clips - 1) / clips * np.square(values_without - values_without.mean()).sum()
    )
    half = float(stdtrit(clips - 1, 0.975)) * spread
    return estimate - half, estimate + half


def sign_flip_p(differences: Array, seed: int = 0) -> float:
    """Two-sided p of a mean paired difference if each pair could as well be swapped.

    All ``2**n`` swaps are tried for up to 12 pairs, else 10,000 random ones.
    """
    differences = np.asarray(differences, dtype=np.float64)
    count = len(differences)
    if count <= _EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=count)))
    else:
        rng = np.random.default_rng(seed)
        signs = rng.choice((1.0, -1.0), size=(_ROUNDS, count))
        signs[0] = 1.0  # the swap that was seen is one of those possible
    sums = np.abs(signs @ differences)
    seen = abs(differences.sum())
    return float(np.mean(sums >= seen - 1e-12 * max(seen, 1.0)))
