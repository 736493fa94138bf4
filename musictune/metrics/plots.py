"""Where the lines and dots of the report's plots go; the templates draw them as SVG.

Across, places are percent of the width, so that a plot is as sharp and its letters as large on a
phone as on a wide screen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from musictune.metrics.base import Score

Anchor = Literal["start", "middle", "end"]

FURTHEST = 4.0
"""Spreads of the pair differences that a forest plot reaches to on either side."""

SIZE_HEIGHT = 240
"""Pixels of the plot of a distance by the number of clips, its numbers below left out."""

_MARGIN = 0.06  # of the range, so that no end lies on the edge
_CLOSEST = 9.0  # percent between two numbers under an axis
_EDGE = 8.0  # percent within which a number leans inwards


@dataclass(frozen=True)
class Tick:
    """A number on an axis.

    Attributes:
        at: percent of the width, or pixels from the top on an axis that runs upwards.
        label: the number.
        anchor: which end of the label lies there.
    """

    at: float
    label: str
    anchor: Anchor = "middle"


@dataclass(frozen=True)
class Mark:
    """A value with its interval.

    Attributes:
        kind: whose it is or what it says; a class of the style sheet.
        at: percent of the width.
        start, end: of the interval, None where there is none.
        cut: whether the value or an end lies beyond the plot.
    """

    kind: str
    at: float
    start: float | None
    end: float | None
    cut: bool = False


@dataclass(frozen=True)
class Strip:
    """Values on one line each, over one axis.

    Attributes:
        marks: from top to bottom.
        ticks: of the axis.
        zero: where zero is, None where it is not in sight.
    """

    marks: tuple[Mark, ...]
    ticks: tuple[Tick, ...]
    zero: float | None


@dataclass(frozen=True)
class SizePlot:
    """A distance against one over the number of clips, and the line to infinitely many.

    Attributes:
        points: percent across, pixels down, clips, distance.
        line: the first and the last point of the fitted line, percent across and pixels down.
        limit: what the line reaches where one over the number of clips is 0.
        across, up: the ticks.
    """

    points: tuple[tuple[float, float, int, float], ...]
    line: tuple[tuple[float, float], tuple[float, float]]
    limit: float
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float]) -> _Axis | None:
        known = [v for v in values if math.isfinite(v)]
        if not known:
            return None
        low, high = min(known), max(known)
        margin = _MARGIN * (high - low) or 0.1 * abs(high) or 1.0
        return cls(low - margin, high + margin)

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def place(self, value: float) -> float:
        return round(100 * min(max(self.share(value), 0.0), 1.0), 2)

    def ticks(self, most: int = 5) -> tuple[Tick, ...]:
        return tuple(
            Tick(self.place(v), label, _anchor(self.place(v)))
            for v, label in round_numbers(self.low, self.high, most)
        )


def strip(scores: Sequence[tuple[str, Score]]) -> Strip | None:
    """Scores under each other on their own axis; None where there is nothing to compare.

    Args:
        scores: with the kind of each.
    """
    found = [(kind, s) for kind, s in scores if math.isfinite(s.value)]
    axis = _Axis.over(end for _, s in found for end in (s.value, s.low, s.high))
    if axis is None or (len(found) == 1 and math.isnan(found[0][1].low)):
        return None
    marks = tuple(_mark(kind, s.value, s.low, s.high, axis) for kind, s in found)
    zero = axis.place(0.0) if axis.low < 0 < axis.high else None
    return Strip(marks, axis.ticks(), zero)


def forest(spans: Sequence[tuple[str, float, float, float] | None]) -> list[Strip | None]:
    """Differences on one axis whose middle is zero, a strip for each.

    Args:
        spans: kind, value and the ends of its interval (NaN without one); None where there is
            nothing to draw.
    """
    ends = [abs(end) for span in spans if span for end in span[1:] if math.isfinite(end)]
    reach = min(max([1.0, *ends]) * (1 + _MARGIN), FURTHEST)
    axis = _Axis(-reach, reach)
    return [Strip((_mark(*s, axis),), axis.ticks(), 50.0) if s else None for s in spans]


def by_size(sizes: np.ndarray, distances: np.ndarray) -> SizePlot | None:
    """The plot of a distance by the number of clips; None with fewer than two sizes.

    A plain Fréchet distance is too large by about a constant over the number of clips (Chong and
    Forsyth, arXiv 1911.07023): what a line through the points says at 0 is free of that.

    Args:
        sizes, distances: ``(sizes,)``.
    """
    known = np.isfinite(distances) & (sizes > 0)
    counts, values = np.asarray(sizes)[known], np.asarray(distances)[known]
    if len(np.unique(counts)) < 2:
        return None
    shares = 1.0 / counts
    slope, limit = np.polyfit(shares, values, 1)
    across = _Axis(-0.04 * shares.max(), 1.04 * shares.max())
    upwards = _Axis.over([*values, limit, slope * shares.max() + limit])
    assert upwards is not None

    def down(value: float) -> float:
        return round(SIZE_HEIGHT * (1 - upwards.share(value)), 1)

    points = [
        (across.place(s), down(v), round(n), float(v))
        for s, v, n in zip(shares, values, counts, strict=True)
    ]
    far = float(shares.max())
    line = ((across.place(0), down(limit)), (across.place(far), down(slope * far + limit)))
    marks = _apart([(across.place(0), "∞"), *((x, str(n)) for x, _, n, _ in sorted(points))])
    steps = round_numbers(upwards.low, upwards.high, 5)
    return SizePlot(
        points=tuple(points),
        line=line,
        limit=float(limit),
        across=tuple(Tick(at, label) for at, label in marks),
        up=tuple(Tick(down(v), label, "start") for v, label in steps),
    )


def round_numbers(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """At most ``most`` numbers of few digits, evenly from ``low`` to ``high``, as people read them.

    Raises:
        ValueError: ``low`` is not below ``high``.
    """
    if not low < high:
        raise ValueError(f"there is nothing from {low} to {high}")
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least))
    for step in (power * factor for factor in (1, 2, 5, 10, 20)):
        first, last = math.ceil(low / step), math.floor(high / step)
        if last - first + 1 <= most:
            break
    digits = max(-math.floor(math.log10(step) + 1e-9), 0)
    return [(n * step, _label(n * step, digits)) for n in range(first, last + 1)]


def _label(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}" if digits <= 4 else f"{value:.0e}"
    return "0" if float(text) == 0 else text.replace("-", "−")


def _mark(kind: str, value: float, low: float, high: float, axis: _Axis) -> Mark:
    cut = any(end < axis.low or end > axis.high for end in (value, low, high))
    if math.isnan(low) or math.isnan(high):
        return Mark(kind, axis.place(value), None, None, cut)
    return Mark(kind, axis.place(value), axis.place(low), axis.place(high), cut)


def _anchor(at: float) -> Anchor:
    if at < _EDGE:
        return "start"
    return "end" if at > 100 - _EDGE else "middle"


def _apart(marks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Those of marks in order that do not write over one another."""
    kept: list[tuple[float, str]] = []
    for at, label in marks:
        if not kept or at - kept[-1][0] >= _CLOSEST:
            kept.append((at, label))
    return kept
