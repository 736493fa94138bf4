"""The whole benchmark: every cell that was asked for, then the tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from musictune.bench.asked import NONE, Method, Plan
from musictune.bench.cells import open_cells
from musictune.bench.concept_set import BenchConcept
from musictune.bench.concepts import Bench, Cell, resumable
from musictune.bench.pairs import Pair, pair_record
from musictune.bench.table import (
    COLUMNS,
    PAIR_COLUMNS,
    Row,
    Tables,
    make_tables,
    shown,
    write_tables,
)
from musictune.models import checkpoint
from musictune.models.devices import find_device

_PRINTED = {
    "audio_alignment": "audio",
    "audio_gain": "gain",
    "text_alignment": "text",
    "text_gain": "gain",
    "frechet_distance": "Fréchet",
    "self_similarity": "self-sim.",
    "loss_change": "forgets",
    "clap_above_held_out": "copies",
    "adapter_bytes": "adapter",
    "seconds": "time",
}
_PRINTED_PAIRS = {
    "conflict": "conflict",
    "conflict_over_base": "minus base",
    "interference": "interference",
    "alone": "alone",
    "both": "both",
}


def run_bench(
    concepts: Sequence[BenchConcept],
    methods: Sequence[Method],
    seeds: Sequence[int],
    pairs: Sequence[Pair],
    plan: Plan,
    out: Path,
    *,
    command: str,
    overwrite: bool = False,
) -> Tables:
    """Make what is missing in ``out`` and write its tables.

    Args:
        concepts: what is learned.
        methods: by what, beside the base, which always is the first row.
        seeds: each cell is made with each.
        pairs: of the concepts.
        plan: how.
        out: a folder of an earlier run, whose finished cells are used, or a new one.
        command: what the page is headed with.
        overwrite: start again.

    Raises:
        InputError: bad input, a full disk, or an ``out`` with other settings or other content.
        KeyboardInterrupt: stopped; finished cells are kept.
    """
    place = Path(checkpoint.check(plan.base))
    find_device(plan.device)
    for method in methods:  # a mistake in any recipe shows before anything is written
        plan.recipe(method, concepts[0], seeds[0], concepts[0].name)
    reads = [place, *(folder for c in concepts for folder in (c.reference, c.heldout))]
    cells = open_cells(out, overwrite=overwrite, inputs=reads)
    rows: list[Method | None] = [None, *methods]
    with resumable():
        bench = Bench(plan, cells)
        wanted = [Cell(c, method, seed) for c in concepts for seed in seeds for method in rows]
        for cell in wanted:
            cells.find(cell.key, bench.settings(cell))
        done: list[dict[str, Any]] = []
        paired = {concept.name for pair in pairs for concept in (pair.first, pair.second)}
        for concept in concepts:
            done += [bench.record(cell) for cell in wanted if cell.concept is concept]
            if concept.name not in paired:
                bench.forget(concept)
        pair_cells = [
            pair_record(bench, pair, method, seed)
            for pair in pairs
            for seed in seeds
            for method in rows
        ]
    order = [NONE, *(method.text for method in methods)]
    tables = make_tables(
        sorted(done, key=lambda cell: order.index(cell["method"])),
        sorted(pair_cells, key=lambda cell: order.index(cell["method"])),
        command,
        bench.made_with() | {"settings": _settings(plan, seeds)},
        [f"forgetting: {bench.general}"] if isinstance(bench.general, str) else [],
    )
    write_tables(tables, out)
    return tables


def failures(tables: Tables) -> int:
    """How many cells could not be made."""
    return sum("failed" in cell for cell in [*tables.cells, *tables.pair_cells])


def printed(tables: Tables) -> list[str]:
    """The short table: a line per method."""
    lines = _lines(tables.overall, _PRINTED, COLUMNS)
    if tables.pairs:
        lines += ["", *_lines(tables.pairs, _PRINTED_PAIRS, PAIR_COLUMNS)]
    return lines


def _lines(rows: Sequence[Row], titles: dict[str, str], columns: dict[str, Any]) -> list[str]:
    """Means only: intervals would not fit into a terminal; they are in the files."""
    table = [["method", *titles.values()]]
    for row in rows:
        figures = [shown(row.values[name], columns[name].form, interval=False) for name in titles]
        table.append([row.label, *figures])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]


def _settings(plan: Plan, seeds: Sequence[int]) -> dict[str, Any]:
    values = dataclasses.asdict(plan) | {"sets": list(plan.sets), "seeds": list(seeds)}
    return {name: value for name, value in values.items() if value not in (None, [], ())}
