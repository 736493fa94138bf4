"""The tables of a benchmark as one page that needs nothing else, with a picture of what is won."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from musictune.bench.asked import NONE
from musictune.bench.table import COLUMNS, PAIR_COLUMNS, Column, Row, Tables, shown
from musictune.metrics.report_page import templates

_GROUPS = {
    "scores": ("Scores", "Against clips of the concept that were never trained on."),
    "keep": ("Prompts that keep the class", ""),
    "move": ("Prompts that move it", "To another instrument, mood, tempo, place or style."),
    "forgetting": (
        "Forgetting",
        "Clips in the base's own styles whose captions do not name the concept.",
    ),
    "copying": (
        "Copying",
        "Excerpts of 2.5 s and their nearest excerpt of the training clips, beside the same for "
        "held-out clips, which were copied from nothing.",
    ),
    "cost": ("Cost", "Tuning time leaves out the preparation of clips."),
}


def page(tables: Tables) -> str:
    """The page as HTML."""
    environment = templates(Path(__file__).parent)
    picture = draw(tables.overall)
    return environment.get_template("table.html.j2").render(
        command=tables.command,
        counts=_counts(tables),
        picture=base64.b64encode(picture).decode("ascii") if picture else "",
        overall=_sections(tables.overall, COLUMNS, interval=True),
        concepts={n: _sections(r, COLUMNS, interval=False) for n, r in tables.by_concept.items()},
        pairs=_sections(tables.pairs, PAIR_COLUMNS, interval=True),
        by_pair={n: _sections(r, PAIR_COLUMNS, interval=False) for n, r in tables.by_pair.items()},
        failures=_failures([*tables.cells, *tables.pair_cells]),
        notes=tables.notes,
        made_with=_facts(tables.made_with),
    )


def draw(rows: Sequence[Row]) -> bytes | None:
    """PNG of what each method wins in sound and loses in text; None where nothing is known."""
    from matplotlib.figure import Figure

    known = [
        row for row in rows if row.label != NONE and row.values["audio_gain"].value is not None
    ]
    if not known:
        return None
    figure = Figure(figsize=(7, 4.2), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="0.75", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.75", linewidth=0.8, zorder=0)
    axes.plot(0, 0, "o", color="0.45", label=f"{NONE} (the base)")
    for row in known:
        gain, text = row.values["audio_gain"], row.values["text_gain"]
        x, y = gain.value, text.value
        if x is None or y is None:
            continue
        axes.errorbar(
            x,
            -y,
            xerr=_reach(x, gain.low, gain.high),
            yerr=_reach(-y, -text.high, -text.low),
            fmt="o",
            capsize=3,
            linewidth=1.2,
            label=row.label,
        )
    axes.set(xlabel="audio alignment won over the base", ylabel="text alignment lost")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    file = io.BytesIO()
    # A version of the drawing package in the file would make other bytes of equal pictures.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _reach(value: float, low: float, high: float) -> list[list[float]] | None:
    """Lengths of the two whiskers; a basic bootstrap may lie beside its estimate."""
    if math.isnan(low):
        return None
    return [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def _sections(
    rows: Sequence[Row], columns: Mapping[str, Column], *, interval: bool
) -> list[dict[str, Any]]:
    """One small table per group of columns, as text."""
    sections = []
    for group in dict.fromkeys(column.group for column in columns.values()):
        chosen = {name: column for name, column in columns.items() if column.group == group}
        if not any(row.values[name].value is not None for row in rows for name in chosen):
            continue
        title, meaning = _GROUPS[group] if columns is COLUMNS else ("", "")
        sections.append(
            {
                "title": title,
                "meaning": meaning,
                "heads": [(column.title, _arrow(column.better)) for column in chosen.values()],
                "rows": [
                    {
                        "label": row.label,
                        "cells": row.cells,
                        "failed": row.failed,
                        "figures": [
                            shown(row.values[name], column.form, interval)
                            for name, column in chosen.items()
                        ],
                    }
                    for row in rows
                ],
            }
        )
    return sections


def _arrow(better: str) -> str:
    return {"higher": "↑", "lower": "↓"}.get(better, "")


def _counts(tables: Tables) -> str:
    """What the tables rest on, in words."""
    seeds = sorted({cell["seed"] for cell in tables.cells})
    clips = sum(len(cell.get("clips", ())) for cell in tables.cells)
    return (
        f"{_many(len(tables.by_concept), 'concept')}, {_many(len(tables.overall), 'row')}, "
        f"{_many(len(seeds), 'seed')} ({', '.join(map(str, seeds))}), {_many(clips, 'clip')}"
    )


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _failures(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{cell.get('concept') or cell['pair']}, {cell['method']}, seed {cell['seed']}: "
        f"{cell['failed']}"
        for cell in cells
        if "failed" in cell
    ]


def _facts(made_with: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = []
    for name, value in made_with.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        facts.append((name.replace("_", " "), str(value)))
    return facts
