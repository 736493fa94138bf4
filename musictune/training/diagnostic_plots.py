"""A run's diagnostics on disk, and plots of them and of how adapters overlap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from musictune.errors import InputError
from musictune.methods.base import TuningMethod
from musictune.methods.diagnostics import LEADING, THRESHOLD, Diagnosis, MatrixChange, diagnose
from musictune.methods.overlap import Overlaps
from musictune.models.base import MusicModel

_PLACES = {
    "self_attn.q_proj": "self q",
    "self_attn.k_proj": "self k",
    "self_attn.v_proj": "self v",
    "self_attn.out_proj": "self out",
    "encoder_attn.q_proj": "text q",
    "encoder_attn.k_proj": "text k",
    "encoder_attn.v_proj": "text v",
    "encoder_attn.out_proj": "text out",
    "fc1": "feed in",
    "fc2": "feed out",
}
_INK, _PALE, _ALARM = "#22313f", "#b8c4ce", "#c0392b"
_NUMBERS = 160  # cells up to which a grid has its numbers written in
_PAIRS = 10  # adapters up to which those of pairs are


def write_diagnostics(
    model: MusicModel, method: TuningMethod, work: Path
) -> dict[str, int | float | str]:
    """Write ``diagnostics.json`` and ``diagnostics.png`` into ``work``.

    Args:
        model: with ``method`` attached; stays as it is.
        method: what was learned.
        work: the run's folder.

    Returns:
        Facts for the run's card; none if the method changes no weight of the backbone.
    """
    found = diagnose(model, method)
    if found is None:
        return {}
    (work / "diagnostics.json").write_text(json.dumps(found.plain(), indent=1) + "\n")
    draw_diagnostics(found, work / "diagnostics.png")
    return found.facts


def draw_diagnostics(found: Diagnosis, path: Path) -> None:
    """Four views of a change: how much and how many where, in what directions, how foreign."""
    figure, ((much, many), (foreign, spread)) = _figure(10, 7.6, 2, 2)
    inside = [m for m in found.matrices if m.layer is not None and len(m.nearest)]
    inside = inside or [m for m in found.matrices if m.layer is not None]
    if inside:
        _by_place(figure, much, found, inside, "relative")
        _by_place(figure, many, found, inside, "changed")
    _title(much, "how far: norm of the change over that of the weights, %")
    _title(many, "how many: share of the weights that changed, %")
    _foreign(foreign, found)
    _spread(spread, found)
    figure.savefig(path)


def draw_overlap(found: Overlaps, path: Path) -> None:
    """Shared entries of each pair beside chance, how far they agree, and where in depth.

    Raises:
        InputError: the picture cannot be written.
    """
    count = len(found.names)
    side = max(4.2, 0.62 * count + 1.6)
    figure, (shared, agreement, depth) = _figure(3 * side, side, 1, 3)
    names = [name if len(name) < 23 else f"…{name[-21:]}" for name in found.names]
    most = max(max(pair.of_smaller, pair.expected) for pair in found.pairs.values())
    _pairs(shared, names, _square(found, "of_smaller"), "Blues", (0.0, 1.35 * most), "%")
    _title(shared, "weights of the smaller mask in both, %\n(in brackets: expected by chance)")
    for (i, j), pair in found.pairs.items() if count <= _PAIRS else ():
        ink = "white" if pair.of_smaller > 0.8 * most else _INK
        for x, y in ((i, j), (j, i)):
            shared.text(
                x, y + 0.24, f"({100 * pair.expected:.1f})", ha="center", va="center",
                fontsize=7, color=ink,
            )  # fmt: skip
    widest = max(0.05, *(abs(pair.cosine) for pair in found.pairs.values()))
    grid = _square(found, "cosine")
    _pairs(agreement, names, grid, "RdBu", (-1.35 * widest, 1.35 * widest), "")
    _title(agreement, "cosine of the two changes\n(0: nothing in common)")
    _by_depth(depth, found, names)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(f"plot {path} cannot be written: {error}; name a .png file") from error


def _figure(width: float, height: float, rows: int, columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)  # inches
    figure = Figure(figsize=(width, height), dpi=120, layout=layout)
    axes = figure.subplots(rows, columns)
    for each in axes.flat:
        each.spines[["top", "right"]].set_visible(False)
        each.spines[["left", "bottom"]].set_color(_PALE)
        each.tick_params(labelsize=8, color=_PALE, labelcolor=_INK)
        each.xaxis.label.set(fontsize=9, color=_INK)
        each.yaxis.label.set(fontsize=9, color=_INK)
    return figure, axes


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, fontsize=10, color=_INK, loc="left", pad=8)


def _scale(figure: Any, image: Any, axes: Any) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.85)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, color=_PALE, labelcolor=_INK)


def _by_place(
    figure: Any, axes: Any, found: Diagnosis, matrices: list[MatrixChange], what: str
) -> None:
    """A grid of layers by places in a layer."""
    import numpy as np

    places = [p for p in _PLACES if any(m.place == p for m in matrices)]
    places += sorted({m.place for m in matrices} - set(places))
    grid = np.full((found.layers, len(places)), np.nan)
    for m in matrices:
        share = m.relative if what == "relative" else m.changed / m.weights
        grid[m.layer, places.index(m.place)] = 100 * share
    image = axes.imshow(grid, origin="lower", aspect="auto", cmap="YlGnBu", vmin=0)
    axes.set_xticks(range(len(places)), [_PLACES.get(p, p[-12:]) for p in places])
    axes.tick_params(axis="x", labelrotation=40 if len(places) > 5 else 0)
    _layer_ticks(axes.yaxis, found.layers)
    axes.set_ylabel("decoder layer")
    axes.spines[:].set_visible(False)
    _scale(figure, image, axes)
    if grid.size > _NUMBERS:
        return
    most = np.nanmax(grid)
    for (row, column), value in np.ndenumerate(grid):
        if not np.isnan(value):
            axes.text(
                column, row, f"{value:.3g}", ha="center", va="center", fontsize=7,
                color="white" if value > 0.6 * most else _INK,
            )  # fmt: skip


def _layer_ticks(axis: Any, layers: int) -> None:
    step = max(1, layers // 8)
    axis.set_ticks(range(0, layers, step))


def _foreign(axes: Any, found: Diagnosis) -> None:
    """Each leading singular vector as a dot: is there one like it in the base?"""
    import numpy as np

    looked = [m for m in found.matrices if m.nearest and m.layer is not None]
    jitter = np.random.default_rng(0)
    for m in looked:
        cosines = np.array(m.nearest)
        across = (m.layer or 0) + jitter.uniform(-0.28, 0.28, len(cosines))
        colours = np.where(cosines < THRESHOLD, _ALARM, "#2a7f9e")
        axes.scatter(across, cosines, s=9, c=colours, alpha=0.6, linewidths=0)
    axes.axhline(THRESHOLD, color=_ALARM, linewidth=0.8, linestyle=":")
    total = sum(m.intruders or 0 for m in looked)
    axes.set(ylim=(0, 1.03), xlabel="decoder layer", ylabel="nearest base vector, |cosine|")
    axes.text(
        0.01, 0.03, f"{total} intruders of {sum(len(m.nearest) for m in looked)} below "
        f"{THRESHOLD:g}", transform=axes.transAxes, fontsize=8, color=_ALARM,
    )  # fmt: skip
    _title(axes, f"how foreign: {LEADING} leading singular vectors per tuned matrix")
    _layer_ticks(axes.xaxis, found.layers)


def _spread(axes: Any, found: Diagnosis) -> None:
    """In how many directions each change goes."""
    looked = [m for m in found.matrices if m.stable_rank is not None and m.layer is not None]
    places = [p for p in _PLACES if any(m.place == p for m in looked)]
    places += sorted({m.place for m in looked} - set(places))
    for index, place in enumerate(places):
        points = [(m.layer, m.stable_rank) for m in looked if m.place == place]
        axes.plot(
            *zip(*points, strict=True), marker="o", markersize=4, linewidth=1.0, alpha=0.85,
            color=f"C{index}", label=_PLACES.get(place, place[-12:]),
        )  # fmt: skip
    axes.set(xlabel="decoder layer", ylabel="stable rank of the change")
    axes.set_ylim(bottom=0)
    _title(axes, "how spread: in how many directions the change goes")
    _layer_ticks(axes.xaxis, found.layers)
    if places:
        axes.legend(frameon=False, fontsize=7, ncols=2)


def _square(found: Overlaps, what: str) -> Any:
    import numpy as np

    grid = np.full((len(found.names),) * 2, np.nan)
    for (i, j), pair in found.pairs.items():
        grid[i, j] = grid[j, i] = getattr(pair, what)
    return grid


def _pairs(
    axes: Any, names: list[str], grid: Any, colours: str, limits: tuple[float, float], unit: str
) -> None:
    import numpy as np

    axes.imshow(grid, cmap=colours, vmin=limits[0], vmax=limits[1])
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if len(names) > _PAIRS:
        return
    for (row, column), value in np.ndenumerate(grid):
        if not np.isnan(value):
            said = f"{100 * value:.1f}" if unit else f"{value:+.3f}"
            strong = abs(value) > 0.6 * limits[1]
            axes.text(
                column, row - 0.08, said, ha="center", va="center", fontsize=9,
                color="white" if strong else _INK,
            )  # fmt: skip


def _by_depth(axes: Any, found: Overlaps, names: list[str]) -> None:
    """Shared entries over those expected by chance, layer by layer."""
    from musictune.methods.composition import layer_of

    for index, ((i, j), matrices) in enumerate(found.layers.items()):
        shared: dict[int, float] = {}
        chance: dict[int, float] = {}
        for name, each in matrices.items():
            layer = layer_of(f"{name}.")
            if layer is None:
                continue
            shared[layer] = shared.get(layer, 0) + each.shared
            chance[layer] = chance.get(layer, 0) + each.expected * min(each.first, each.second)
        layers = sorted(layer for layer in shared if chance[layer] > 0)
        axes.plot(
            layers, [shared[layer] / chance[layer] for layer in layers], marker="o", markersize=4,
            linewidth=1.0, color=f"C{index % 10}", label=f"{names[i]} & {names[j]}",
        )  # fmt: skip
    axes.axhline(1.0, color=_INK, linewidth=0.8, linestyle=":")
    axes.set(xlabel="decoder layer", ylabel="times chance")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(0, max(2.0, 1.1 * axes.get_ylim()[1]))
    _title(axes, "shared weights over chance,\nlayer by layer")
    if len(found.pairs) <= 6:
        axes.legend(frameon=False, fontsize=7)
