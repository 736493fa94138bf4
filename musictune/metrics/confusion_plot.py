"""What is taken for what, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from musictune.errors import InputError
from musictune.metrics.classification import most_confused

_INK = "#22313f"
_SHARES, _COUNTS = 12, 26  # classes up to which cells also show shares, or counts
_LONGEST = 22  # letters of a label
_PAIRS = 6  # named beside the grid
_DOTS = 120  # per inch


def draw_confusion(counts: Tensor, labels: Sequence[str], path: Path) -> None:
    """Write a PNG: a row for each true label, a column for what was said, the worst pairs named.

    Colours are shares of the row, so that rare labels are seen as well as common ones. Up to twelve
    labels the cells hold counts and shares, up to 26 counts.

    Args:
        counts: ``(true, said)`` clips, as `musictune.metrics.classification.confusion` gives.
        labels: of rows and columns.
        path: a ``.png`` file.

    Raises:
        InputError: the picture cannot be written.
        ValueError: the shapes do not fit.
    """
    try:
        path.write_bytes(confusion_png(counts, labels))
    except OSError as error:
        raise InputError(f"plot {path} cannot be written: {error.strerror}") from error


def confusion_png(counts: Tensor, labels: Sequence[str]) -> bytes:
    """The picture of `draw_confusion` as the bytes of a PNG."""
    file = io.BytesIO()
    _draw(counts, labels, file)
    return file.getvalue()


def _draw(counts: Tensor, labels: Sequence[str], file: BinaryIO) -> None:
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    size = len(labels)
    if counts.shape != (size, size):
        raise ValueError(f"counts are {tuple(counts.shape)} and there are {size} labels")
    names = [short(label) for label in labels]
    cell = 0.62 if size <= _SHARES else 0.34 if size <= _COUNTS else 0.175
    room = 0.085 * max(map(len, names))  # inches that a label's letters take
    side = max(cell * size, 2.6) + min(room, 1.8)
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    figure = Figure(figsize=(side + 3.2, side + 0.9), dpi=_DOTS, layout=layout)
    axes, beside = figure.subplots(1, 2, width_ratios=(side + 0.4, 2.5))
    grid = counts.double().numpy()
    occurs = grid.sum(1)
    shares = np.divide(grid, occurs[:, None], out=np.zeros_like(grid), where=occurs[:, None] > 0)
    # The square root: an error of three per cent must be seen beside a class that is mostly right.
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    _name_axes(axes, names, size)
    if size <= _COUNTS:
        _write_cells(axes, grid, shares, size)
    _say(beside, counts, labels, occurs)
    figure.savefig(file, format="png")


def short(label: str) -> str:
    """A label of at most 22 letters, its middle left out."""
    if len(label) <= _LONGEST:
        return label
    return f"{label[: _LONGEST - 9]}…{label[-8:]}"


def _name_axes(axes: Any, names: list[str], size: int) -> None:
    letters = 9 if size <= _SHARES else 8 if size <= _COUNTS else 6
    # Labels may hold a dollar sign, which would begin a formula.
    plain = [name.replace("$", r"\$") for name in names]
    upright = size > _SHARES or max(map(len, names)) > 7
    axes.set_xticks(range(size), plain, rotation=90 if upright else 0, fontsize=letters)
    axes.set_yticks(range(size), plain, fontsize=letters)
    axes.set_xlabel("said", fontsize=10, color=_INK)
    axes.set_ylabel("true", fontsize=10, color=_INK)
    axes.tick_params(length=0, labelcolor=_INK)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e7ecf0", linewidth=0.8 if size <= _COUNTS else 0.4)
    axes.tick_params(which="minor", length=0)


def _write_cells(axes: Any, grid: np.ndarray, shares: np.ndarray, size: int) -> None:
    for (row, column), count in np.ndenumerate(grid):
        if not count:
            continue
        text = f"{count:.0f}"
        if size <= _SHARES:
            text += f"\n{100 * shares[row, column]:.0f} %"
        ink = "white" if shares[row, column] > 0.4 else _INK
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=7.5)


def _say(axes: Any, counts: Tensor, labels: Sequence[str], occurs: np.ndarray) -> None:
    """Beside the grid: how many are right, and the worst confusions."""
    axes.axis("off")
    total, right = int(counts.sum()), int(counts.diagonal().sum())
    clips = "clip" if total == 1 else "clips"
    lines = [f"{right} of {total} {clips} right"]
    if total:
        lines[0] += f" ({100 * right / total:.1f} %)"
    pairs = most_confused(counts, labels, _PAIRS)
    if pairs:
        lines += ["", "Most often confused:"]
    for true, said, count, share in pairs:
        lines += [f"{short(true)}", f"   → {short(said)}: {count} ({100 * share:.0f} %)"]
    never = [labels[i] for i in range(len(labels)) if not occurs[i]]
    if never:
        named = ", ".join(short(label) for label in never[:3])
        more = f" and {len(never) - 3} more" if len(never) > 3 else ""
        lines += ["", "No clips of:", f"{named}{more}"]
    lines += ["", "Darker: a larger share of the row."]
    text = "\n".join(lines).replace("$", r"\$")
    axes.text(
        0, 1, text, va="top", ha="left", fontsize=8.5, color=_INK, linespacing=1.45,
        transform=axes.transAxes, wrap=False,
    )  # fmt: skip
