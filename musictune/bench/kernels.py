"""`musictune bench kernels`: each kernel beside what torch has for the same work."""

from __future__ import annotations

import importlib
import json
import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from musictune.bench import machine
from musictune.bench.cells import versions
from musictune.bench.rows import Row, print_table
from musictune.console import progress
from musictune.errors import InputError
from musictune.files import publish_file
from musictune.kernels.runtime import has_triton
from musictune.models.devices import find_device

SCHEMA = 1
KERNELS = ("attention", "relative", "loss", "sampling")
"""Each is measured by ``musictune.bench.kernel_<name>.measure(device)``, which gives rows."""

OPEN = "open: this target is for a GPU"


def bench_kernels(
    target: Path, only: Sequence[str] = (), device: str = "cpu", threads: int | None = None
) -> dict[str, Any]:
    """Measure, print a table per kernel, and write all as JSON.

    The file is ``{"schema": 1, "rows": [...], "made_with": {...}}``. A row with a target whose
    ``met`` is null is open: its kernel runs in Triton on a GPU alone.

    Args:
        target: the file.
        only: of `KERNELS`; all of them if empty.
        device: ``cpu``, ``cuda`` or ``auto``; on a CPU the twins in plain torch are measured.
        threads: of torch; what it finds if None.

    Returns:
        the same document.

    Raises:
        InputError: an unknown kernel or device, or a file that cannot be written.
    """
    where = find_device(device)
    _check(target, only, threads)
    load = machine.load()
    rows: list[Row] = []
    names = tuple(dict.fromkeys(only)) or KERNELS
    with machine.threads(threads), progress("kernels", len(names)) as advance:
        for name in names:
            measured = importlib.import_module(f"musictune.bench.kernel_{name}").measure(where)
            made = [_opened(row) for row in measured]
            print_table(made, f"{name} on {where.type}, {torch.get_num_threads()} threads")
            rows += made
            advance(text=name)
        facts = {
            "versions": versions(),
            "machine": machine.machine(where),
            "triton": has_triton(),
            "threads": torch.get_num_threads(),
            "load_average_before": load,
            "load_average_after": machine.load(),
            "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "kernels": names,
        }
    document = {"schema": SCHEMA, "rows": [row.as_json for row in rows], "made_with": facts}
    with publish_file(target) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


def _opened(row: Row) -> Row:
    """``row``, which says so if its target is not judged here."""
    if row.target is None or row.met is not None:
        return row
    return replace(row, note=f"{row.note}; {OPEN}" if row.note else OPEN)


def _check(target: Path, only: Sequence[str], threads: int | None) -> None:
    for name in only:
        if name not in KERNELS:
            raise InputError(f"--only {name!r} is not known; give one of {', '.join(KERNELS)}")
    if threads is not None and threads < 1:
        raise InputError(f"--threads {threads} must be at least 1")
    if target.is_dir():
        raise InputError(f"--json {target} is a folder; name a file in it")
    if not target.absolute().parent.is_dir():
        raise InputError(f"--json {target}: its folder does not exist; make it first")
