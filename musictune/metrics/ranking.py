"""Strengths of systems from votes between two of them, with ties."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from musictune.errors import InputError
from musictune.metrics.base import Score

Array = np.ndarray
Outcome = Literal["a", "b", "tie"]

ELO = 400 / math.log(10)
"""Points on Elo's scale per unit of log-odds: 400 more is ten wins to one loss."""

_PRIOR = 3.0  # deviation of strengths in log-odds, 521 points: weak, but it keeps them finite
_DROP = 3.841459  # 95 % of chi-squared with one degree of freedom
_STEPS = 200


@dataclass(frozen=True)
class Ranked:
    """One system's place.

    Attributes:
        system: its name.
        elo: its strength on Elo's scale, where the mean over systems is 0.
        wins, losses, ties: how its votes went.
    """

    system: str
    elo: Score
    wins: int
    losses: int
    ties: int


def rank(votes: Iterable[tuple[str, str, Outcome]]) -> list[Ranked]:
    """Systems, the strongest first, by the Bradley-Terry model with ties.

    Davidson's (1970): wins, losses and ties of i and j are as ``p_i : p_j : nu sqrt(p_i p_j)``. The
    posterior mode is found by Newton's method; strengths have a normal prior of deviation 3 in
    log-odds (ours), so that one who has won every vote has a finite value. Intervals are where the
    profile of the posterior falls by half the 95 % quantile of chi-squared; votes count as
    independent, which those of one rater on one pair are not quite.

    Args:
        votes: each the two systems and which was preferred.

    Raises:
        InputError: no votes, a system against itself, an outcome that is none, or systems that no
            chain of votes connects: it names the groups.
    """
    wins, ties = _counted(votes)
    systems = sorted({name for ends in (*wins, *ties) for name in ends})
    if not systems:
        raise InputError("no votes between two systems; there is nothing to rank")
    _check_connected(systems, [*wins, *ties])
    posterior = _Posterior(systems, wins, ties)
    best = posterior.mode()
    found = []
    for index, system in enumerate(systems):
        won = sum(count for ends, count in wins.items() if ends[0] == system)
        lost = sum(count for ends, count in wins.items() if ends[1] == system)
        tied = sum(count for ends, count in ties.items() if system in ends)
        low, high = posterior.interval(index, best)
        remark = ""
        if not lost + tied or not won + tied:
            remark = f"{'lost' if lost else 'won'} every vote: how far it lies off is the prior's"
        elo = Score(
            ELO * float(best[index]), ELO * low, ELO * high, won + lost + tied, "higher", remark
        )
        found.append(Ranked(system, elo, won, lost, tied))
    return sorted(found, key=lambda each: (-each.elo.value, each.system))


class _Posterior:
    """Log-posterior of strengths and, behind them, of the log of how common ties are.

    It is a concave function: of three choices with utilities theta_i, theta_j and
    eta + (theta_i + theta_j) / 2 one is made. Without a tie the third is left out.
    """

    def __init__(
        self,
        systems: list[str],
        wins: Counter[tuple[str, str]],
        ties: Counter[tuple[str, str]],
    ) -> None:
        at = {name: index for index, name in enumerate(systems)}
        met = sorted({tuple(sorted(ends)) for ends in (*wins, *ties)})
        choices = 3 if ties else 2
        self.systems = len(systems)
        self.size = self.systems + (1 if ties else 0)
        # (pairs, choices, parameters) and (pairs, choices)
        self.utilities = np.zeros((len(met), choices, self.size))
        self.counts = np.zeros((len(met), choices))
        for row, (one, other) in enumerate(met):
            self.utilities[row, 0, at[one]] = self.utilities[row, 1, at[other]] = 1.0
            self.counts[row, :2] = wins[one, other], wins[other, one]
            if ties:
                self.utilities[row, 2, [at[one], at[other], -1]] = 0.5, 0.5, 1.0
                self.counts[row, 2] = ties[one, other] + ties[other, one]

    def mode(self) -> Array:
        """``(parameters,)`` strengths, of which the mean is 0 by the prior, and eta."""
        return self._highest(np.zeros(self.size), np.eye(self.size))

    def interval(self, index: int, best: Array) -> tuple[float, float]:
        """Where the profile over one strength, seen from the mean, falls by what chance does."""
        from scipy.optimize import brentq

        direction = np.zeros(self.size)
        direction[: self.systems] = -1 / self.systems
        direction[index] += 1.0
        # Columns that leave the strength as it is, so that all else can follow it.
        free = np.linalg.svd(direction[None])[2][1:].T
        along = direction / (direction @ direction)
        highest = self.value(best)
        fisher = -self._derivatives(best)[1]
        step = math.sqrt(float(direction @ np.linalg.solve(fisher, direction)))

        def excess(shift: float) -> float:
            point = self._highest(best + shift * along, free)
            return 2 * (highest - self.value(point)) - _DROP

        value = float(direction @ best)
        ends = []
        for side in (-1.0, 1.0):
            far = _first_above(excess, side * 2 * step)
            ends.append(value + float(brentq(excess, 0.0, far, xtol=1e-4)))
        return ends[0], ends[1]

    def value(self, point: Array) -> float:
        heights = self.utilities @ point
        top = heights.max(1, keepdims=True)
        norm = top[:, 0] + np.log(np.exp(heights - top).sum(1))
        likelihood = (self.counts * (heights - norm[:, None])).sum()
        return float(likelihood - point @ point / (2 * _PRIOR**2))

    def _derivatives(self, point: Array) -> tuple[Array, Array]:
        heights = self.utilities @ point
        shares = np.exp(heights - heights.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        votes = self.counts.sum(1)
        left = self.counts - votes[:, None] * shares
        # As products of two matrices, which is many times faster than sums over three indices.
        flat = self.utilities.reshape(-1, self.size)
        slope = left.ravel() @ flat - point / _PRIOR**2
        mean = (shares[:, None] @ self.utilities)[:, 0]
        bend = flat.T @ (flat * (votes[:, None] * shares).reshape(-1, 1))
        bend -= mean.T @ (mean * votes[:, None])
        return slope, -(bend + np.eye(self.size) / _PRIOR**2)

    def _highest(self, start: Array, free: Array) -> Array:
        """Newton's method from ``start`` along the columns of ``free``, halving steps that fail."""
        point, height = start, self.value(start)
        for _ in range(_STEPS):
            slope, bend = self._derivatives(point)
            slope, bend = free.T @ slope, free.T @ bend @ free
            step = free @ np.linalg.solve(-bend, slope) if free.shape[1] else np.zeros_like(point)
            while (new := self.value(point + step)) < height and np.abs(step).max() > 1e-9:
                step = step / 2
            if np.abs(step).max() <= 1e-9:
                return point
            point, height = point + step, new
        return point


def _first_above(function: Callable[[float], float], start: float) -> float:
    """A place at or beyond ``start`` where the function is positive; doubling finds it."""
    while function(start) <= 0:
        start *= 2
    return start


def _counted(
    votes: Iterable[tuple[str, str, Outcome]],
) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
    """How often the first of two won, and how often two tied."""
    wins: Counter[tuple[str, str]] = Counter()
    ties: Counter[tuple[str, str]] = Counter()
    for a, b, outcome in votes:
        if a == b:
            raise InputError(f"a vote has system {a!r} against itself; leave it out")
        if outcome == "tie":
            ties[a, b] += 1
        elif outcome in ("a", "b"):
            wins[(a, b) if outcome == "a" else (b, a)] += 1
        else:
            raise InputError(f"outcome {outcome!r} is unknown; give a, b or tie")
    return wins, ties


def _check_connected(systems: list[str], met: list[tuple[str, str]]) -> None:
    group = {name: {name} for name in systems}
    for one, other in met:
        if group[one] is not group[other]:
            joined = group[one] | group[other]
            group |= dict.fromkeys(joined, joined)
    groups = sorted({tuple(sorted(names)) for names in group.values()})
    if len(groups) > 1:
        named = "; ".join(", ".join(map(repr, names)) for names in groups)
        raise InputError(
            f"no vote connects these groups of systems: {named}; collect votes between them or "
            "rank each by itself"
        )
