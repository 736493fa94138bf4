"""The whole benchmark: every cell that was asked for, then the tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from musictune.bench.asked import NONE, Plan
from musictune.bench.cells import open_cells
from musictune.bench.concepts import Bench, resumable
from musictune.bench.jobs import Work, make_all
from musictune.bench.material import check_reference
from musictune.bench.pairs import joint_label
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
    "concept_loss_change": "nats",
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
    "loss_interference": "nats",
    "alone": "alone",
    "both": "both",
}


def run_bench(
    work: Work, out: Path, *, command: str, jobs: int = 1, overwrite: bool = False
) -> Tables:
    """Make what is missing in ``out`` and write its tables.

    Args:
        work: what is asked for.
        out: a folder of an earlier run, whose finished cells are used, or a new one.
        command: what the page is headed with.
        jobs: processes that make cells at once.
        overwrite: start again.

    Raises:
        InputError: bad input, a full disk, or an ``out`` with other settings or other content.
        CheckFailed: a process was killed.
        KeyboardInterrupt: stopped; finished cells are kept.
    """
    plan, concepts = work.plan, work.concepts
    place = Path(checkpoint.check(plan.base))
    find_device(plan.device)
    for method in work.methods:  # a mistake in any recipe shows before anything is written
        plan.recipe(method, concepts[0], work.seeds[0], concepts[0].name)
        for concept in concepts:
            check_reference(concept, method)
    reads = [place, *(folder for c in concepts for folder in (c.reference, c.heldout))]
    cells = open_cells(out, overwrite=overwrite, inputs=reads)
    with resumable():
        bench = Bench(plan, cells)
        cells.remember(command)
        made = make_all(work, bench, jobs)
    order = [NONE, *(method.text for method in work.methods)]
    order += [method.text + joint_label(n) for method in work.methods for n in work.joint]
    tables = make_tables(
        sorted(made.cells, key=lambda cell: order.index(cell["method"])),
        sorted(made.pair_cells, key=lambda cell: order.index(cell["method"])),
        command,
        bench.made_with() | {"settings": _settings(plan, work.seeds)},
        [f"forgetting: {bench.no_general}"] if bench.no_general else [],
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
