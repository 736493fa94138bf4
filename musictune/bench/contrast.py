"""Differences and correlations over concepts, with what chance could do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from musictune.bench.table import number
from musictune.metrics.intervals import mean_interval, sign_flip_p

NATS = "+.4f"
"""How differences of losses are written."""

Where = tuple[str, int]
Verdict = Literal["lower", "higher", "open"]

_EXACT = 8  # points up to which all orders are tried
_ROUNDS = 10_000


@dataclass(frozen=True)
class Contrast:
    """A mean over concepts of the mean over their seeds.

    Attributes:
        value: the mean.
        low, high: 95 % interval over concepts; NaN with fewer than two.
        p: two-sided, of flipping the sign of whole concepts; NaN with fewer than two.
        concepts: how many it rests on.
    """

    value: float
    low: float
    high: float
    p: float
    concepts: int

    @property
    def verdict(self) -> Verdict:
        """Whether the interval leaves out zero, and on which side."""
        if self.high < 0:
            return "lower"
        return "higher" if self.low > 0 else "open"

    def shown(self, form: str = NATS) -> str:
        """For people: the value, then its interval."""
        text = number(self.value, form)
        if math.isnan(self.low):
            return text
        return f"{text} [{number(self.low, form)}, {number(self.high, form)}]"


@dataclass(frozen=True)
class Correlation:
    """Spearman's, of ranks.

    Attributes:
        value: -1 to 1.
        low, high: 95 % interval (Fieller, Hartley and Pearson 1957); NaN with fewer than five.
        p: two-sided, over orders of one side.
        points: how many.
    """

    value: float
    low: float
    high: float
    p: float
    points: int

    @property
    def shown(self) -> str:
        """For people."""
        inside = "" if math.isnan(self.low) else f" [{self.low:+.2f}, {self.high:+.2f}]"
        return f"{self.value:+.2f}{inside}, {probability(self.p)}, {self.points} points"


def mean_of(values: Mapping[Where, float]) -> Contrast | None:
    """The mean of values by concept and seed; None without any.

    Args:
        values: by concept and seed.
    """
    if not values:
        return None
    by: dict[str, list[float]] = {}
    for (concept, _), value in values.items():
        by.setdefault(concept, []).append(value)
    means = np.array([np.mean(each) for each in by.values()])
    p = sign_flip_p(means) if len(means) > 1 else math.nan
    return Contrast(*mean_interval(means), p, len(means))


def difference(ours: Mapping[Where, float], theirs: Mapping[Where, float]) -> Contrast | None:
    """Ours minus theirs where both are known of one concept and seed; None where nowhere."""
    return mean_of({where: ours[where] - theirs[where] for where in ours if where in theirs})


def holm(ps: Sequence[float]) -> list[float]:
    """P values made good for being several (Holm 1979), in the same order."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    found = [math.nan] * len(ps)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min((len(ps) - rank) * ps[i], 1.0))
        found[i] = largest
    return found


def spearman(one: Sequence[float], other: Sequence[float], seed: int = 0) -> Correlation | None:
    """The rank correlation of two lists; None with fewer than three points or equal values only.

    All orders are tried for up to 8 points, else 10,000 random ones.
    """
    from scipy.stats import rankdata

    count = len(one)
    if count < 3:
        return None
    x, y = (rankdata(side) for side in (one, other))
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float(x @ x) * float(y @ y))
    if not size:
        return None
    value = float(x @ y) / size
    if count <= _EXACT:
        orders = np.array(list(itertools.permutations(range(count))))
    else:
        draw = np.random.default_rng(seed)
        orders = np.array([draw.permutation(count) for _ in range(_ROUNDS - 1)])
    reached = np.abs(y[orders] @ x) >= abs(value) * size * (1 - 1e-9)
    p = float(reached.mean())
    if count > _EXACT:  # the order that was seen is one of those possible
        p = (1 + int(reached.sum())) / _ROUNDS
    low = high = math.nan
    if count > 4:
        middle = math.atanh(min(max(value, -0.9999), 0.9999))
        half = 1.96 * math.sqrt(1.06 / (count - 3))
        low, high = math.tanh(middle - half), math.tanh(middle + half)
    return Correlation(value, low, high, p, count)


def friedman_p(table: np.ndarray) -> float:
    """P of methods being alike, ``(concepts, methods)``, by ranks within concepts; NaN if few."""
    from scipy.stats import friedmanchisquare

    if table.shape[0] < 2 or table.shape[1] < 3:
        return math.nan
    return float(friedmanchisquare(*table.T).pvalue)


def probability(p: float) -> str:
    """For people."""
    if math.isnan(p):
        return "p unknown"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
