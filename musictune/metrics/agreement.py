"""How far raters agree beyond chance: Krippendorff's alpha."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from musictune.errors import InputError
from musictune.metrics.base import NotComputed, Score

Array = np.ndarray
Level = Literal["nominal", "ordinal", "interval"]

_LEVELS = ("nominal", "ordinal", "interval")
_ROUNDS = 1_000
_FEW = 10  # units


def krippendorff_alpha(ratings: Array, level: Level, seed: int = 0) -> Score | NotComputed:
    """Agreement from 1 (all raters alike) over 0 (as by chance) down to below 0 (opposed).

    Krippendorff, "Content Analysis" (2004), chapter 11; raters may leave units out, and units with
    one value tell nothing and are left out. The interval is the 2.5 and 97.5 % of 1,000 bootstraps
    over units (ours: Krippendorff draws pairs of values).

    Args:
        ratings: ``(raters, units)``, NaN where a rater gave no value.
        level: whether values are only alike or not, have an order, or have distances.
        seed: of the bootstrap.

    Returns:
        The value, its interval, and how many units it rests on; not computed if no unit has two
        values or if all values are the same.

    Raises:
        InputError: another shape or level, or infinite values.
    """
    ratings = np.asarray(ratings, dtype=np.float64)
    if ratings.ndim != 2:
        raise InputError(f"ratings have shape {ratings.shape}; give (raters, units)")
    if level not in _LEVELS:
        raise InputError(f"level {level!r} is unknown; choose from {', '.join(_LEVELS)}")
    if np.isinf(ratings).any():
        raise InputError("ratings have infinite values; give finite ones, or NaN for none")
    paired = ratings[:, (~np.isnan(ratings)).sum(0) >= 2]
    if not paired.size:
        return NotComputed("no unit has values of two raters; let two raters answer the same")
    values = np.unique(paired[~np.isnan(paired)])
    if len(values) < 2:
        return NotComputed("all values are the same; agreement beyond chance needs some variation")
    # (units, values): how often each unit has each value.
    counts = (paired[:, :, None] == values).sum(0).astype(np.float64)
    units = len(counts)
    alpha = float(_alphas(counts, np.ones((1, units)), values, level)[0])
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(units, np.full(units, 1 / units), size=_ROUNDS)
    drawn = _alphas(counts, weights.astype(np.float64), values, level)
    drawn = drawn[~np.isnan(drawn)]
    low, high = math.nan, math.nan
    if units > 1 and len(drawn) > _ROUNDS / 2:
        low, high = (float(end) for end in np.quantile(drawn, (0.025, 0.975)))
    few = f"only {units} units: the interval is too narrow" if units < _FEW else ""
    return Score(alpha, low, high, units, "higher", few)


def _alphas(counts: Array, weights: Array, values: Array, level: Level) -> Array:
    """``(rounds,)`` for ``(rounds, units)`` weights; NaN where nothing varies.

    The ordinal distance of two values is that of their mid-ranks, so it is the interval case again
    once values are replaced by those.
    """
    totals = weights @ counts
    number = totals.sum(1)
    each = counts.sum(1)
    if level == "nominal":
        observed = weights @ ((np.square(each) - np.square(counts).sum(1)) / (each - 1))
        expected = (np.square(number) - np.square(totals).sum(1)) / (number - 1)
    else:
        points = np.cumsum(totals, 1) - totals / 2
        if level == "interval":
            points = np.broadcast_to(values, totals.shape)
        points = points - (totals * points).sum(1, keepdims=True) / number[:, None]
        spread = each * (np.square(points) @ counts.T) - np.square(points @ counts.T)
        observed = (weights * 2 * np.maximum(spread, 0) / (each - 1)).sum(1)
        expected = 2 * number * (totals * np.square(points)).sum(1) / (number - 1)
    varies = (totals > 0).sum(1) > 1
    with np.errstate(invalid="ignore"):  # what does not vary may have no agreement either
        return np.where(varies, 1 - observed / np.where(varies, expected, 1.0), math.nan)
