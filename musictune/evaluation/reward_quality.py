"""How good a learned reward is on comparisons it has not seen, and what more votes would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from musictune.metrics.base import Score
from musictune.metrics.intervals import mean_interval, wilson_interval
from musictune.training.feature_reward import (
    FEWEST,
    RewardReport,
    RewardSettings,
    in_order,
    train_reward,
)

WARN_BELOW = 200
"""Comparisons below which the card and the command say that little can be trusted; ours."""

_BINS = 5
_DRAWS = 3  # choices of the prompts at each size of the curve
_SMALLEST = 16  # comparisons at the left end of the curve


@dataclass(frozen=True)
class Bin:
    """Comparisons about which the reward was about as sure.

    Attributes:
        low, high: between which its chances for the one it prefers lie, from 0.5 to 1.
        count: how many.
        sure: the mean of those chances; NaN of none.
        right: the share in which that one was chosen; NaN of none.
    """

    low: float
    high: float
    count: int
    sure: float
    right: float


@dataclass(frozen=True)
class CurvePoint:
    """Held-out accuracy after learning from fewer comparisons.

    Attributes:
        pairs: how many.
        accuracy: the mean over draws of prompts.
        low, high: the worst and the best draw.
    """

    pairs: int
    accuracy: float
    low: float
    high: float


def held_out_accuracy(report: RewardReport) -> Score:
    """Share of held-out comparisons in order, with its 95 % interval.

    Comparisons of one prompt are alike, so the interval leaves out whole prompts (jackknife); where
    all comparisons come out the same it is Wilson's with the prompts as its count. NaN where none
    are held out.
    """
    if not report.held_out:
        return Score(math.nan, math.nan, math.nan, 0, "higher", "no comparisons held out")
    values, names = in_order(report.probability).numpy(), np.asarray(report.groups)
    parts = [values[names == name] for name in dict.fromkeys(report.groups)]
    means, counts = np.array([part.mean() for part in parts]), np.array([*map(len, parts)])
    value, low, high = mean_interval(means, counts)
    if len(parts) > 1 and np.ptp(means) == 0 and value in (0.0, 1.0):
        low, high = wilson_interval(value, len(parts))
    note = f"interval over {len(parts)} prompts" if len(parts) > 1 else "one prompt: no interval"
    # As wide below as above, also where no share can be.
    low, high = (float(np.clip(end, 0, 1)) for end in (low, high))
    return Score(value, low, high, len(values), "higher", note)


def reliability(probability: Tensor) -> tuple[list[Bin], float]:
    """How often the reward is right where it is so sure, and the expected calibration error.

    The error is the mean over comparisons of the distance between both (Guo et al. 2017, arXiv
    1706.04599), in five bins of equal width from 0.5 to 1.

    Args:
        probability: ``(pairs,)`` what it gave to what was chosen.

    Returns:
        The bins, and the error from 0 to 0.5 or more; NaN of no comparisons.
    """
    values = probability.double().numpy()
    sure, right = np.maximum(values, 1 - values), in_order(probability).numpy()
    edges = np.linspace(0.5, 1, _BINS + 1)
    place = np.clip(np.searchsorted(edges, sure, side="right") - 1, 0, _BINS - 1)
    bins = []
    for index in range(_BINS):
        inside = place == index
        means = (sure[inside].mean(), right[inside].mean()) if inside.any() else (math.nan,) * 2
        bins.append(Bin(edges[index], edges[index + 1], int(inside.sum()), *map(float, means)))
    if not len(values):
        return bins, math.nan
    apart = sum(one.count * abs(one.sure - one.right) for one in bins if one.count)
    return bins, apart / len(values)


def learning_curve(
    chosen: Tensor,
    rejected: Tensor,
    groups: Sequence[str],
    settings: RewardSettings,
    report: RewardReport,
    draws: int = _DRAWS,
) -> list[CurvePoint]:
    """Accuracy on the same held-out comparisons after learning from 16, 32, ... of the others.

    Comparisons come prompt after prompt in random order, so that few comparisons are also few
    prompts, as they would be had the collecting stopped there. The last point is the reward of
    ``report`` itself. Empty where nothing is held out.

    Args:
        chosen, rejected, groups, settings: as `train_reward` was given.
        report: what it reported.
        draws: orders of the prompts.
    """
    if not report.held_out:
        return []
    held_out = list(report.held_out)
    whole = replace(settings, held_out=0.0)
    points = []
    size = _SMALLEST
    while size < len(report.learned):
        found = []
        for draw in range(draws):
            chance = torch.Generator().manual_seed(settings.seed * draws + draw)
            few = _first(report.learned, groups, size, chance)
            part, _ = train_reward(chosen[few], rejected[few], [groups[i] for i in few], whole)
            seen = part.probability(chosen[held_out], rejected[held_out])
            found.append(float(in_order(seen).mean()))
        points.append(CurvePoint(size, float(np.mean(found)), min(found), max(found)))
        size *= 2
    points.append(CurvePoint(len(report.learned), *[report.accuracy] * 3))
    return points


def caveat(pairs: int, accuracy: Score) -> str:
    """What to beware of, in one sentence; empty if nothing."""
    if math.isnan(accuracy.value):
        return "nothing was held out, so nothing tells whether this reward is better than chance"
    if math.isnan(accuracy.low) or accuracy.low <= 0.5:
        return (
            f"a held-out accuracy of {interval(accuracy)} cannot be told from chance (50 %): "
            "collect more votes before anything is tuned with this reward"
        )
    if pairs < WARN_BELOW:
        return (
            f"{pairs} comparisons are few: reward models of fewer than about 2,000 were found "
            "barely above chance (Gao et al. 2022, arXiv 2210.10760)"
        )
    return ""


def interval(score: Score) -> str:
    """A share as percent with its 95 % interval."""
    if math.isnan(score.low):
        return f"{score.value:.1%}"
    return f"{score.value:.1%} (95 % interval {score.low:.1%} to {score.high:.1%})"


def _first(
    learned: Sequence[int], groups: Sequence[str], size: int, chance: torch.Generator
) -> list[int]:
    names = list(dict.fromkeys(groups[index] for index in learned))
    order = torch.randperm(len(names), generator=chance).tolist()
    place = {names[index]: rank for rank, index in enumerate(order)}
    ordered = sorted(learned, key=lambda index: place[groups[index]])
    return ordered[: max(size, FEWEST)]
