"""Pictures of the concept benchmark: each answers one of its questions, with intervals."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from musictune.bench.contrast import Contrast
from musictune.bench.findings import FORGETTING, Compared, main_choices
from musictune.bench.findings_more import (
    UNITS,
    apart_entries,
    correlated,
    mean_points,
    shown_number,
)
from musictune.bench.finished import RANDOM, Finished
from musictune.bench.sweep import LOSS, Number, Sweep, find_sweeps

_INK, _SOFT, _LINE = "#22303c", "#5f6b76", "#d5dade"
_RULE, _RIVAL, _CONTROL = "#1f6fb2", "#c4622d", "#6b7075"
_COLOURS = ("#1f6fb2", "#c4622d", "#2f8f5b", "#8a5aa8", "#a98600")
_KINDS = {"choice": _RULE, "rival": _RIVAL, "control": _CONTROL}
_NAMES = {
    "choice": "chooses weights of the base",
    "rival": "another kind of method",
    "control": "chooses by chance",
}
_WIDE = 7.6  # inches
_LIMIT = 2.0  # times the 80th percentile of forgetting, beyond which a dot is put at the edge
_APART = 0.015  # of the width of a logarithmic axis, from curve to curve
_PANELS = 3  # methods in the picture of pairs


def draw_trade(found: Sequence[Compared]) -> bytes | None:
    """What was learned against what was forgotten; None where neither is known."""
    known = [c for c in found if LOSS in c.means and FORGETTING in c.means]
    if not known:
        return None
    figure, (axes,) = _figure(_WIDE, 5.4)
    _zero(axes)
    # One that forgets far more than all others would press these into one line.
    top = _LIMIT * float(np.quantile([c.means[FORGETTING].value for c in known], 0.8))
    points, names = [], []
    for compared in known:
        x, y = compared.means[LOSS], compared.means[FORGETTING]
        colour, name = _KINDS[_kind(compared)], compared.entry.label
        beyond = 0 < top < y.value
        place = top if beyond else y.value
        axes.errorbar(
            -x.value, place, xerr=_reach(x, flip=True), yerr=None if beyond else _reach(y),
            fmt="^" if beyond else "o", color=colour, ecolor=_light(colour), markersize=5,
            elinewidth=0.6, zorder=3,
        )  # fmt: skip
        points.append((-x.value, place))
        names.append(f"{name} ({y.value:+.3f})" if beyond else name)
    _label(axes, points, names)
    axes.set_xlabel("learned: held-out loss of the concept, nats below the base")
    axes.set_ylabel("forgotten: loss of general clips,\nnats above the base")
    _legend(axes, {_kind(c) for c in known})
    return _png(figure)


def draw_choices(found: Sequence[Compared]) -> bytes | None:
    """Each method of the control's size against it; None without any."""
    known = main_choices(found)[1]
    if not known:
        return None
    known = sorted(known, key=lambda c: -c.over_random.value if c.over_random else 0.0)
    figure, (axes,) = _figure(_WIDE, 1.3 + 0.27 * len(known))
    axes.axvline(0, color=_CONTROL, linewidth=1.2, zorder=1)
    for place, compared in enumerate(known):
        over = compared.over_random
        assert over is not None
        colour = _KINDS[_kind(compared)]
        axes.barh(place, over.value, height=0.62, color=_light(colour), zorder=2)
        axes.errorbar(
            over.value, place, xerr=_reach(over), fmt="o", color=colour, markersize=4,
            linewidth=1.3, capsize=2, zorder=3,
        )  # fmt: skip
    axes.set_yticks(range(len(known)), [c.entry.label for c in known])
    axes.set_ylim(-0.7, len(known) - 0.3)
    axes.set_xlabel(
        "held-out loss minus that of a random choice of equal size, nats\n"
        "(to the left is better; lines are 95 % intervals over concepts)"
    )
    axes.tick_params(axis="y", length=0)
    _legend(axes, {_kind(c) for c in known})
    return _png(figure)


def draw_sweep(finished: Finished, number: Number) -> bytes | None:
    """Held-out loss and forgetting along each curve; None without any."""
    sweeps = find_sweeps(finished, number)
    if not sweeps:
        return None
    figure, panels = _figure(_WIDE, 3.4, 1, 2)
    sides = (
        (LOSS, "held-out loss of the concept,\nnats from the base"),
        (FORGETTING, "loss of general clips,\nnats from the base"),
    )
    for axes, (column, title) in zip(panels, sides, strict=True):
        axes.axhline(0, color=_LINE, linewidth=0.9, zorder=0)
        whole = {x for sweep in sweeps for x in sweep.points}
        apart = (max(whole) / min(whole)) ** _APART
        for place, sweep in enumerate(sweeps):
            # Side by side, so that intervals at one number can be told apart.
            shift = apart ** (place - (len(sweeps) - 1) / 2)
            _curve(axes, sweep, sweep.values(finished, column), shift, _colour(sweeps, place))
        axes.set_xscale("log")
        ticks = sorted({x for sweep in sweeps for x in sweep.points})
        axes.set_xticks(ticks, [shown_number(number, x) for x in ticks], rotation=40, ha="right")
        axes.minorticks_off()
        axes.set_xlabel(UNITS[number])
        axes.set_ylabel(title)
    panels[0].legend(frameon=False, fontsize="small")
    return _png(figure)


def draw_pairs(finished: Finished, conflict: str = "loss_interference") -> bytes | None:
    """Shared part of the masks against conflict, a dot per pair; None without pivotal pairs."""
    entries = apart_entries(finished)[:_PANELS]
    if not entries:
        return None
    figure, panels = _figure(max(_WIDE, 3.6 * len(entries)), 3.9, 1, len(entries))
    for axes, entry in zip(panels, entries, strict=True):
        axes.axhline(0, color=_LINE, linewidth=0.9, zorder=0)
        names, xs, ys = mean_points(finished, entry, "mask_overlap", conflict)
        colour = _CONTROL if entry.rule == RANDOM else _RULE
        axes.scatter(xs, ys, s=24, color=colour, zorder=3)
        axes.margins(x=0.12)
        relation = correlated(finished, entry, conflict)
        said = f"\nrank correlation {relation.shown}".replace(", p", ",\np") if relation else ""
        axes.set_title(f"{entry.label}{said}", fontsize=8.5, color=_INK, loc="left")
        axes.set_xlabel("shared part of the smaller mask")
        _label(axes, list(zip(xs, ys, strict=True)), names)
    panels[0].set_ylabel("held-out loss that a concept takes back\nwhen the other is loaded, nats")
    return _png(figure)


def _curve(
    axes: Any, sweep: Sweep, curve: Mapping[float, Contrast], shift: float, colour: str
) -> None:
    xs = [x * shift for x in curve]
    axes.plot(xs, [c.value for c in curve.values()], color=colour, linewidth=1.4, zorder=2)
    for x, value in zip(xs, curve.values(), strict=True):
        axes.errorbar(
            x, value.value, yerr=_reach(value), fmt="o", color=colour, markersize=4,
            linewidth=1.1, capsize=2, zorder=3,
        )  # fmt: skip
    axes.plot([], [], "o-", color=colour, markersize=4, label=sweep.label)


def _colour(sweeps: Sequence[Sweep], place: int) -> str:
    """Chance is grey everywhere."""
    if sweeps[place].rule == RANDOM:
        return _CONTROL
    before = sum(sweep.rule != RANDOM for sweep in sweeps[:place])
    return _COLOURS[before % len(_COLOURS)]


def _kind(compared: Compared) -> str:
    if compared.entry.rule == RANDOM:
        return "control"
    return "choice" if compared.entry.rule else "rival"


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_SOFT)
        axes.tick_params(colors=_SOFT, labelsize=8.5)
        axes.xaxis.label.set(color=_INK, size=9)
        axes.yaxis.label.set(color=_INK, size=9)
    return figure, panels


def _zero(axes: Any) -> None:
    axes.axhline(0, color=_LINE, linewidth=0.9, zorder=0)
    axes.axvline(0, color=_LINE, linewidth=0.9, zorder=0)


def _legend(axes: Any, kinds: set[str]) -> None:
    for kind, colour in _KINDS.items():
        if kind in kinds:
            axes.plot([], [], "o", color=colour, markersize=5, label=_NAMES[kind])
    axes.legend(frameon=False, fontsize="small")


def _reach(contrast: Contrast, *, flip: bool = False) -> list[list[float]] | None:
    """Lengths of the two whiskers; None without an interval."""
    if math.isnan(contrast.low):
        return None
    below, above = contrast.value - contrast.low, contrast.high - contrast.value
    return [[max(above, 0.0)], [max(below, 0.0)]] if flip else [[max(below, 0)], [max(above, 0)]]


def _light(colour: str) -> str:
    """The colour three fifths of the way to white."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part + 0.6 * (255 - part)):02x}" for part in parts)


def _label(axes: Any, points: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Write each name beside its point, where it covers no other name if there is such a place."""
    figure = axes.figure
    figure.draw_without_rendering()  # which lays it out, so that places in pixels are known
    if not points:
        return
    placed: list[tuple[float, float, float, float]] = []
    dots = [(float(x), float(y)) for x, y in axes.transData.transform(list(points))]
    size = figure.dpi / 72
    order = sorted(range(len(names)), key=lambda i: dots[i][1])
    for i in order:
        width, height = 4.2 * size * len(names[i]), 9.5 * size
        choices = [
            (dx * size, dy * size, side)
            for away in (1, 1.9, 2.8, 3.7, 4.6)
            for dx, dy, side in (
                (6, 0, "left"), (-6, 0, "right"), (5, 7 * away, "left"), (5, -7 * away, "left"),
                (-5, 7 * away, "right"), (-5, -7 * away, "right"),
            )
        ]  # fmt: skip
        boxes = [_box(*dots[i], choice, width, height) for choice in choices]
        inside = axes.get_window_extent()
        best = min(
            range(len(choices)),
            key=lambda k: _covered(boxes[k], placed, dots) + _outside(boxes[k], inside),
        )
        placed.append(boxes[best])
        dx, dy, side = choices[best]
        text = axes.annotate(
            names[i], points[i], (dx / size, dy / size), textcoords="offset points", ha=side,
            va="center", fontsize=7.5, color=_INK, zorder=4,
            arrowprops={"arrowstyle": "-", "color": _LINE, "linewidth": 0.6, "shrinkB": 3},
        )  # fmt: skip
        text.set_in_layout(False)
        if text.arrow_patch is not None:
            text.arrow_patch.set_zorder(1)


def _box(
    x: float, y: float, choice: tuple[float, float, str], width: float, height: float
) -> tuple[float, float, float, float]:
    dx, dy, side = choice
    left = x + dx if side == "left" else x + dx - width
    return left, y + dy - height / 2, left + width, y + dy + height / 2


def _covered(
    box: tuple[float, float, float, float],
    others: Sequence[tuple[float, float, float, float]],
    dots: Sequence[tuple[float, float]],
) -> float:
    """How much of what is there already lies under a box."""
    left, low, right, high = box
    area = 0.0
    for a, b, c, d in others:
        area += max(min(right, c) - max(left, a), 0.0) * max(min(high, d) - max(low, b), 0.0)
    inside = sum(left < x < right and low < y < high for x, y in dots)
    return area + 40.0 * inside


def _outside(box: tuple[float, float, float, float], frame: Any) -> float:
    """How much of a box lies left or right of the frame, or above or below it."""
    left, low, right, high = box
    across = max(frame.x0 - left, 0.0) + max(right - frame.x1, 0.0)
    return (across * (high - low)) + (max(frame.y0 - low, 0.0) + max(high - frame.y1, 0.0)) * (
        right - left
    )


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    # A version of the drawing package in the file would make other bytes of equal pictures.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
