"""From kernel sums per clip to the kernel distance and its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from musictune.metrics.intervals import NONE

Array = np.ndarray

SCALE = 100.0  # the published figures are a hundred times the squared discrepancy


@dataclass(frozen=True)
class KernelSums:
    """Kernel sums per clip, from which the distance and all that leave out a clip follow.

    Attributes:
        made, reference: ``(clips,)`` rows of each clip.
        made_within, reference_within: ``(clips,)`` over rows of the clip and of its set's others.
        made_across, reference_across: ``(clips,)`` over rows of the clip and of the other set.
    """

    made: Array
    reference: Array
    made_within: Array
    reference_within: Array
    made_across: Array
    reference_across: Array

    @property
    def mean_across(self) -> float:
        """Mean kernel between the sets."""
        return float(self.made_across.sum() / (self.made.sum() * self.reference.sum()))

    def distance(self) -> float:
        """A hundred times the squared discrepancy."""
        x, y = self.made, self.reference
        within = self.made_within.sum() / _pairs(x) + self.reference_within.sum() / _pairs(y)
        return SCALE * (float(within) - 2 * self.mean_across)

    def without_each_made(self) -> Array:
        """``(clips,)`` distances when one made clip is left out."""
        x, y = self.made, self.reference
        pairs = _pairs(x) - 2 * x * (x.sum() - x)
        within = (self.made_within.sum() - 2 * self.made_within) / pairs
        across = (self.made_across.sum() - self.made_across) / ((x.sum() - x) * y.sum())
        return SCALE * (within + self.reference_within.sum() / _pairs(y) - 2 * across)

    def without_each_reference(self) -> Array:
        """``(clips,)`` distances when one reference clip is left out."""
        turned = KernelSums(
            self.reference,
            self.made,
            self.reference_within,
            self.made_within,
            self.reference_across,
            self.made_across,
        )
        return turned.without_each_made()

    def interval(self) -> tuple[float, float]:
        """The two-sample jackknife's 95 % interval; NaN where a set has fewer than three clips."""
        if min(len(self.made), len(self.reference)) < 3:
            return NONE
        from scipy.special import stdtrit

        sides = self.without_each_made(), self.without_each_reference()
        parts = [(len(s) - 1) * float(np.square(s - s.mean()).mean()) for s in sides]
        variance = sum(parts)
        if variance == 0:
            return self.distance(), self.distance()
        freedom = variance**2 / sum(
            part**2 / (len(s) - 1) for part, s in zip(parts, sides, strict=True)
        )
        half = float(stdtrit(freedom, 0.975)) * math.sqrt(variance)
        return self.distance() - half, self.distance() + half


def _pairs(lengths: Array) -> float:
    """Ordered pairs of rows of different clips."""
    return float(lengths.sum()) ** 2 - float(np.square(lengths).sum())
