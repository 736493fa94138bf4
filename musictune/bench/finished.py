"""All finished cells of a folder, whichever commands made them, as methods that can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from musictune.bench.asked import NONE
from musictune.bench.cells import CELL, Cells, open_cells, read_json
from musictune.bench.table import COLUMNS, PAIR_COLUMNS, Column
from musictune.errors import InputError

Record = Mapping[str, Any]
Where = tuple[str, int]
"""A concept or pair, and a seed."""

RANDOM = "random"


@dataclass(frozen=True)
class Entry:
    """A method, or a method on pairs.

    Attributes:
        label: what its rows are called.
        cells: what was made, by concept or pair and seed.
        failed: what could not be made.
    """

    label: str
    cells: Mapping[Where, Record]
    failed: tuple[Record, ...] = ()

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe of its cells, without concept and seed."""
        for cell in (*self.cells.values(), *self.failed):
            settings = cell["settings"]
            return dict(settings.get("recipe") or settings["concepts"][0].get("recipe") or {})
        return {}

    @property
    def options(self) -> Mapping[str, Any]:
        """The method's own options."""
        return dict((self.recipe.get("method") or {}).get("init_args") or {})

    @property
    def rule(self) -> str | None:
        """How it chooses weights; None if it does not."""
        path = str((self.recipe.get("method") or {}).get("class_path", ""))
        return str(self.options["selection"]) if path.endswith(".Pivotal") else None

    @property
    def reference_seconds(self) -> float | None:
        """How much of the reference it learns from; None for all of it."""
        for cell in self.cells.values():
            return _number(cell["settings"].get("reference_seconds"))
        return None

    @property
    def steps(self) -> int:
        """Training steps."""
        return int(self.recipe["training"]["steps"])

    @property
    def trained(self) -> float:
        """Trained parameters, the median over cells; NaN without cells."""
        counts = [cell["facts"]["trained_parameters"] for cell in self.cells.values()]
        return float(np.median(counts)) if counts else float("nan")

    @property
    def concepts(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys(name for name, _ in self.cells))

    def family(self, without: str) -> str:
        """Equal for methods that differ in nothing but ``without``.

        Args:
            without: ``fraction`` or ``reference_seconds``.
        """
        method = dict(self.recipe.get("method") or {})
        options = {k: v for k, v in self.options.items() if k not in (without, "seed")}
        training = {k: v for k, v in self.recipe.get("training", {}).items() if k != "seed"}
        length = None if without == "reference_seconds" else self.reference_seconds
        return json.dumps([method.get("class_path"), options, training, length], sort_keys=True)


@dataclass(frozen=True)
class Finished:
    """What a folder of cells holds.

    Attributes:
        bases, pair_bases: cells of the untouched base.
        methods, pairs: the others, in the order of the commands, then of their names.
        commands: that made them.
        made_with: versions and hashes.
        general: clips that forgetting was measured on, and how many were played.
        seconds: length of each clip made.
        prompts: of each concept.
        reference_seconds: of audio to learn from, the median over concepts; None if unknown.
    """

    bases: Mapping[Where, Record]
    pair_bases: Mapping[Where, Record]
    methods: Sequence[Entry]
    pairs: Sequence[Entry]
    commands: Sequence[str]
    made_with: Mapping[str, Any]
    general: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    prompts: int = 0
    reference_seconds: float | None = None

    def values(self, entry: Entry, column: str) -> dict[Where, float]:
        """A column of the table, or of the table of pairs, for each cell that has it."""
        paired = entry in self.pairs
        columns: Mapping[str, Column] = PAIR_COLUMNS if paired else COLUMNS
        bases = self.pair_bases if paired else self.bases
        found = {
            where: columns[column].value(cell, bases.get(where, {}))
            for where, cell in entry.cells.items()
        }
        return {where: value for where, value in found.items() if value is not None}

    def base_values(self, column: str) -> dict[Where, float]:
        """A column of the base."""
        found = {where: COLUMNS[column].value(cell, cell) for where, cell in self.bases.items()}
        return {where: value for where, value in found.items() if value is not None}

    @property
    def random(self) -> list[Entry]:
        """Methods that choose their weights by chance: the controls."""
        return [
            entry
            for entry in self.methods
            if entry.rule == RANDOM
            and entry.cells
            and entry.options.get("granularity", "element") == "element"
        ]


def read_finished(out: Path) -> Finished:
    """Read every cell under ``out``.

    Raises:
        InputError: ``out`` is no folder of this benchmark, has no finished cell of a method, or a
            damaged one.
    """
    if not out.is_dir():
        raise InputError(f"folder {out} does not exist; give --out with finished cells")
    cells = open_cells(out)
    records = _read(cells, "cells")
    paired = _read(cells, "pairs")
    if not any(record["method"] != NONE for record in records):
        raise InputError(f"folder {out} has no finished cell of a method; make some first")
    commands = cells.commands()
    bases, methods = _sorted(records, "concept", commands)
    pair_bases, pairs = _sorted(paired, "pair", commands)
    first = records[0]
    return Finished(
        bases,
        pair_bases,
        methods,
        pairs,
        commands,
        first["made_with"],
        first["settings"].get("general") or {},
        float(first["settings"]["seconds"]),
        len(first["settings"]["prompts"]),
        _reference_seconds(cells, {str(record["concept"]) for record in records}),
    )


def _read(cells: Cells, part: str) -> list[dict[str, Any]]:
    found = []
    for path in sorted((cells.out / part).glob(f"*/*/*/{CELL}")):
        record = read_json(path)
        needed = ("concept" if part == "cells" else "pair", "method", "seed", "settings")
        if any(name not in record for name in needed):
            raise InputError(f"{path} is damaged; remove its folder and run again")
        found.append(record)
    return found


def _sorted(
    records: Sequence[Record], by: str, commands: Sequence[str]
) -> tuple[dict[Where, Record], list[Entry]]:
    """The base's cells and an entry for each method."""
    bases: dict[Where, Record] = {}
    good: dict[str, dict[Where, Record]] = {}
    failed: dict[str, list[Record]] = {}
    for record in records:
        where = (str(record[by]), int(record["seed"]))
        label = str(record["method"])
        if label == NONE:
            bases[where] = record
        elif "failed" in record:
            failed.setdefault(label, []).append(record)
        else:
            good.setdefault(label, {})[where] = record
    said = " ".join(commands)

    def order(label: str) -> tuple[int, str]:
        place = said.find(label)
        return (place if place >= 0 else len(said), label)

    labels = sorted(good.keys() | failed.keys(), key=order)
    entries = [Entry(name, good.get(name, {}), tuple(failed.get(name, ()))) for name in labels]
    return bases, entries


def _reference_seconds(cells: Cells, concepts: set[str]) -> float | None:
    """What was cut for training, where it is still there; the longest of each concept is all."""
    longest: dict[str, float] = {}
    for path in (cells.out / "prepared").glob("*/report.json"):
        name = path.parent.name.rpartition("-")[0]
        if name in concepts:
            longest[name] = max(longest.get(name, 0.0), float(read_json(path)["seconds"]))
    return round(float(np.median(list(longest.values()))), 1) if longest else None


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
