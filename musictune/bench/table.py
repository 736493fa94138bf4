"""From cells to tables: means over concepts and seeds with intervals, as CSV, JSON and a page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musictune.bench.asked import NONE
from musictune.bench.cells import as_json, publish_text
from musictune.metrics.intervals import clustered_interval

SCHEMA = 1
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A figure of a cell, if need be beside that of the base.

    Attributes:
        title: for people.
        better: ``higher``, ``lower``, or empty where neither is.
        value: from the cell and the base's cell of the same concept and seed; None if it has none.
        form: a format specification, or ``count``, ``bytes`` or ``seconds``.
        group: which part of the page it stands in.
    """

    title: str
    better: str
    value: Callable[[Record, Record], float | None]
    form: str = ".3f"
    group: str = "scores"


@dataclass(frozen=True)
class Value:
    """A mean over concepts with its 95 % interval, NaN where there is none; None if unknown."""

    value: float | None
    low: float = math.nan
    high: float = math.nan
    concepts: int = 0

    def as_json(self) -> dict[str, Any]:
        """NaN as None."""
        ends = {"low": self.low, "high": self.high}
        plain = {k: None if math.isnan(v) else v for k, v in ends.items()}
        return {"value": self.value, **plain, "concepts": self.concepts}


@dataclass(frozen=True)
class Row:
    """A method's figures, over all concepts or of one.

    Attributes:
        label: the method's text.
        cells: how many cells it rests on.
        failed: how many more could not be made.
        values: by column.
    """

    label: str
    cells: int
    failed: int
    values: dict[str, Value]


@dataclass(frozen=True)
class Tables:
    """What a benchmark came to.

    Attributes:
        overall: a row per method, the base first.
        by_concept: the same for each concept.
        pairs, by_pair: the same for pairs of concepts; empty without any.
        cells, pair_cells: what they were made from.
        command: that made it.
        made_with: versions, hashes, settings.
        notes: what could not be computed, and why.
    """

    overall: list[Row]
    by_concept: dict[str, list[Row]]
    pairs: list[Row]
    by_pair: dict[str, list[Row]]
    cells: list[Record]
    pair_cells: list[Record]
    command: str
    made_with: Mapping[str, Any]
    notes: list[str]


def _at(*path: str) -> Callable[[Record, Record], float | None]:
    def value(cell: Record, base: Record) -> float | None:
        return _look(cell, path)

    return value


def _gain(*path: str) -> Callable[[Record, Record], float | None]:
    """Over the base, whose own gain is not a figure."""

    def value(cell: Record, base: Record) -> float | None:
        ours, theirs = _look(cell, path), _look(base, path)
        known = ours is not None and theirs is not None and cell["method"] != NONE
        return ours - theirs if known and ours is not None and theirs is not None else None

    return value


def _learned(*path: str) -> Callable[[Record, Record], float | None]:
    """Of a tuned cell only."""

    def value(cell: Record, base: Record) -> float | None:
        return None if cell["method"] == NONE else _look(cell, path)

    return value


def _look(record: Record, path: Sequence[str]) -> float | None:
    found: Any = record
    for name in path:
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return None if found is None else float(found)


def _part(part: str, title: str) -> dict[str, Column]:
    """Scores of some of the prompts, with the paired difference from the base."""
    tail = "" if part == "all" else f"_{part}"
    group = "scores" if part == "all" else part
    names = {
        "audio": ("audio_alignment", f"Audio alignment{title}", "higher"),
        "text": ("text_alignment", f"Text alignment{title}", "higher"),
        "frechet": ("frechet_distance", f"Fréchet distance{title}", "lower"),
        "self": ("self_similarity", f"Self-similarity{title}", "lower"),
    }
    columns = {}
    for short, (name, shown, better) in names.items():
        path = ("scores", part, name)
        columns[f"{name}{tail}"] = Column(shown, better, _at(*path), group=group)
        columns[f"{short}_gain{tail}"] = Column(
            f"{shown}, minus base", better, _gain(*path), "+.3f", group
        )
    return columns


COLUMNS: dict[str, Column] = {
    **_part("all", ""),
    **_part("keep", " (class kept)"),
    **_part("move", " (class moved)"),
    "concept_loss": Column(
        "Loss of the concept's held-out clips, nats", "lower", _at("concept_loss", "loss"), ".4f"
    ),
    "concept_loss_change": Column(
        "the same, minus base", "lower", _gain("concept_loss", "loss"), "+.4f"
    ),
    "loss_change": Column(
        "Loss of general clips, minus base, nats",
        "lower",
        _learned("forgetting", "loss_change"),
        "+.4f",
        "forgetting",
    ),
    "general_frechet": Column(
        "Fréchet distance of general music", "lower", _at("forgetting", "frechet"), ".3f",
        "forgetting",
    ),
    "general_frechet_change": Column(
        "the same, minus base", "lower", _learned("forgetting", "frechet_change"), "+.3f",
        "forgetting",
    ),
    **{
        f"{kind}_{name}": Column(
            f"{title}, {shown}", better, _at("copying", kind, name), ".3f", "copying"
        )
        for kind, title in (("clap", "Nearest by sound"), ("chroma", "Nearest by notes"))
        for name, shown, better in (
            ("median", "median", "lower"),
            ("held_out_median", "held-out median", ""),
            ("p95", "95th percentile", "lower"),
            ("held_out_p95", "held-out 95th percentile", ""),
            ("above_held_out", "share above all held-out", "lower"),
        )
    },
    "token_run": Column(
        "Longest run of training tokens", "lower", _at("copying", "tokens", "longest"), ".1f",
        "copying",
    ),
    "token_run_held_out": Column(
        "the same, held-out clips", "", _at("copying", "tokens", "held_out_longest"), ".1f",
        "copying",
    ),
    "trained_parameters": Column(
        "Trained parameters", "lower", _at("facts", "trained_parameters"), "count", "cost"
    ),
    "adapter_bytes": Column("Adapter", "lower", _at("facts", "adapter_bytes"), "bytes", "cost"),
    "seconds": Column("Tuning time", "lower", _at("facts", "seconds"), "seconds", "cost"),
    "peak_memory_bytes": Column(
        "Peak memory", "lower", _at("facts", "peak_memory_bytes"), "bytes", "cost"
    ),
}  # fmt: skip

PAIR_COLUMNS: dict[str, Column] = {
    "conflict": Column("Conflict", "lower", _at("scores", "conflict"), "+.3f"),
    "conflict_over_base": Column(
        "Conflict, minus base", "lower", _gain("scores", "conflict"), "+.3f"
    ),
    "interference": Column(
        "Interference", "lower", _learned("scores", "interference"), "+.3f"
    ),
    "loss_interference": Column(
        "Interference, nats", "lower", _learned("scores", "loss_interference"), "+.4f"
    ),
    "mask_overlap": Column(
        "Shared part of the smaller mask", "", _at("overlap", "of_smaller"), ".3f"
    ),
    "mask_overlap_expected": Column(
        "the same by chance", "", _at("overlap", "expected"), ".3f"
    ),
    "alone": Column("Alignment alone", "higher", _at("scores", "alone")),
    "beside": Column("Alignment alone, both learned", "higher", _at("scores", "beside")),
    "both": Column("Alignment, both asked for", "higher", _at("scores", "both")),
    "text_both": Column("Text alignment, both", "higher", _at("scores", "text_both")),
    "neither_change": Column(
        "Alignment unasked, minus base", "lower", _gain("scores", "neither"), "+.3f"
    ),
    "text_neither_change": Column(
        "Text alignment of neither, minus base", "higher", _gain("scores", "text_neither"), "+.3f"
    ),
}  # fmt: skip


def rows(cells: Sequence[Record], columns: Mapping[str, Column], group: str) -> list[Row]:
    """A row per method in the order of ``cells``, each figure a mean over ``group``.

    Args:
        cells: records with ``method``, ``seed`` and ``group``, the base's among them.
        columns: what to put in.
        group: ``concept`` or ``pair``: what the interval is over.
    """
    bases = {(c[group], c["seed"]): c for c in cells if c["method"] == NONE}
    made = []
    for method in dict.fromkeys(cell["method"] for cell in cells):
        own = [cell for cell in cells if cell["method"] == method]
        good = [cell for cell in own if "failed" not in cell]
        values = {}
        for name, column in columns.items():
            known = [
                (cell[group], value)
                for cell in good
                if (value := column.value(cell, bases.get((cell[group], cell["seed"]), {})))
                is not None
            ]
            values[name] = _mean(known)
        made.append(Row(method, len(good), len(own) - len(good), values))
    return made


def _mean(known: Sequence[tuple[str, float]]) -> Value:
    if not known:
        return Value(None)
    clusters = [name for name, _ in known]
    value, low, high = clustered_interval(np.array([v for _, v in known]), clusters)
    return Value(value, low, high, len(set(clusters)))


def make_tables(
    cells: Sequence[Record],
    pair_cells: Sequence[Record],
    command: str,
    made_with: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> Tables:
    """Tables of cells, which hold the base's cell of each concept and seed."""

    def grouped(records: Sequence[Record], columns: Mapping[str, Column], by: str) -> Any:
        names = dict.fromkeys(record[by] for record in records)
        return {n: rows([r for r in records if r[by] == n], columns, by) for n in names}

    return Tables(
        overall=rows(cells, COLUMNS, "concept"),
        by_concept=grouped(cells, COLUMNS, "concept"),
        pairs=rows(pair_cells, PAIR_COLUMNS, "pair"),
        by_pair=grouped(pair_cells, PAIR_COLUMNS, "pair"),
        cells=list(cells),
        pair_cells=list(pair_cells),
        command=command,
        made_with=made_with,
        notes=list(notes),
    )


def write_tables(tables: Tables, out: Path) -> None:
    """Write ``table.csv``, ``table.json`` and ``table.html`` into ``out``; ``pairs.csv`` of pairs.

    Raises:
        InputError: they cannot be written, or the disk is full.
    """
    from musictune.bench.page import page

    publish_text(_csv(tables.overall, tables.by_concept, COLUMNS, "concept"), out / "table.csv")
    if tables.pairs:
        text = _csv(tables.pairs, tables.by_pair, PAIR_COLUMNS, "pair")
        publish_text(text, out / "pairs.csv")
    publish_text(as_json(_json(tables)), out / "table.json")
    publish_text(page(tables), out / "table.html")


def shown(value: Value, form: str, interval: bool = True) -> str:
    """A figure as people read it."""
    if value.value is None:
        return "–"
    text = number(value.value, form)
    if not interval or math.isnan(value.low) or form in ("count", "bytes", "seconds"):
        return text
    return f"{text} ({number(value.low, form)} to {number(value.high, form)})"


def number(value: float, form: str) -> str:
    """A number with its unit."""
    if form == "count":
        return f"{value:,.0f}"
    if form == "bytes":
        return f"{value / 1e6:,.2f} MB"
    if form == "seconds":
        return f"{value:,.1f} s"
    return f"{value:{form}}"


def _csv(
    over: Sequence[Row],
    by: Mapping[str, Sequence[Row]],
    columns: Mapping[str, Column],
    group: str,
) -> str:
    """The rows over all (``all``), then those of each concept or pair."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = [head for name in columns for head in (name, f"{name}_low", f"{name}_high")]
    writer.writerow([group, "method", "cells", "failed", *heads])
    for name, part in [("all", over), *by.items()]:
        for row in part:
            figures = [
                "" if end is None or math.isnan(end) else repr(float(end))
                for value in row.values.values()
                for end in (value.value, value.low, value.high)
            ]
            writer.writerow([name, row.label, row.cells, row.failed, *figures])
    return file.getvalue()


def _json(tables: Tables) -> dict[str, Any]:
    def plain(part: Sequence[Row]) -> list[dict[str, Any]]:
        return [
            {
                "method": row.label,
                "cells": row.cells,
                "failed": row.failed,
                "values": {name: value.as_json() for name, value in row.values.items()},
            }
            for row in part
        ]

    return {
        "schema": SCHEMA,
        "command": tables.command,
        "made_with": dict(tables.made_with),
        "notes": tables.notes,
        "columns": {n: {"title": c.title, "better": c.better} for n, c in COLUMNS.items()},
        "table": plain(tables.overall),
        "concepts": {name: plain(part) for name, part in tables.by_concept.items()},
        "pairs": plain(tables.pairs),
        "by_pair": {name: plain(part) for name, part in tables.by_pair.items()},
        "cells": [dict(cell) for cell in tables.cells],
        "pair_cells": [dict(cell) for cell in tables.pair_cells],
    }
