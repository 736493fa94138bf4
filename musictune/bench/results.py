"""The concept benchmark as a document: RESULTS.md with its pictures, and the figures as CSV."""

from __future__ import annotations

import csv
import io
import re
import shlex
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from musictune.bench.asked import NONE
from musictune.bench.cells import publish_text
from musictune.bench.concept_plots import draw_choices, draw_pairs, draw_sweep, draw_trade
from musictune.bench.findings import (
    Compared,
    compare_methods,
    said_of_choices,
    said_of_losses,
    said_of_methods,
    said_of_ranks,
)
from musictune.bench.findings_more import (
    has_pairs,
    pair_table,
    said_of_joint,
    said_of_overlap,
    said_of_sweep,
    sweep_table,
)
from musictune.bench.findings_tables import cost_table, kept_table, learned_table
from musictune.bench.finished import Finished, read_finished
from musictune.bench.sweep import Number, find_sweeps
from musictune.bench.table import COLUMNS, PAIR_COLUMNS, Column
from musictune.errors import InputError
from musictune.files import readable

_SWEEPS: Mapping[Number, tuple[str, str]] = {
    "fraction": ("How many weights", "budget.png"),
    "reference_seconds": ("How much audio", "reference.png"),
}
_WIDTH = 100


def write_results(out: Path, folder: Path) -> list[Path]:
    """Write RESULTS.md, its pictures, cells.csv and pairs.csv of all finished cells.

    Args:
        out: the cells.
        folder: made if missing; other files in it stay.

    Returns:
        What was written.

    Raises:
        InputError: no finished cells, or ``folder`` cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"results {folder} is a file; give a folder, such as benchmarks/concepts")
    finished = read_finished(out)
    found = compare_methods(finished)
    pictures: dict[str, Callable[[], bytes | None]] = {
        "choices.png": lambda: draw_choices(found),
        "trade.png": lambda: draw_trade(found),
        "budget.png": lambda: draw_sweep(finished, "fraction"),
        "reference.png": lambda: draw_sweep(finished, "reference_seconds"),
        "pairs.png": lambda: draw_pairs(finished),
    }
    files: dict[str, str | bytes] = {
        name: picture for name, draw in pictures.items() if (picture := draw()) is not None
    }
    files["RESULTS.md"] = document(finished, found, set(files))
    files["cells.csv"] = _csv(finished, "concept", COLUMNS)
    if has_pairs(finished):
        files["pairs.csv"] = _csv(finished, "pair", PAIR_COLUMNS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in {*pictures, "pairs.csv"} - set(files):
            (folder / name).unlink(missing_ok=True)  # of an earlier, larger set of cells
    except OSError as error:
        raise readable(error, folder) from error
    for name, content in files.items():
        publish_text(content, folder / name)
    return [folder / name for name in files]


def document(finished: Finished, found: Sequence[Compared], pictures: Iterable[str]) -> str:
    """RESULTS.md.

    Args:
        pictures: those that there are.
    """
    there = set(pictures)
    parts = [
        "# Concept benchmark",
        "Written by `musictune bench concepts --results` from the finished cells; every figure and "
        "every sentence about a result follows from them.",
        _setting(finished),
        "## Does it matter which weights are chosen?",
        *said_of_choices(found),
        _picture("choices.png", "held-out loss against a random choice of equal size", there),
        "## All methods",
        *said_of_methods(found),
        *said_of_ranks(finished, found),
        _table(learned_table(found)),
        _KEY_LEARNED,
        "### What was forgotten and copied",
        *said_of_losses(found),
        _picture("trade.png", "learned against forgotten", there),
        _table(kept_table(finished, found)),
        "### What it took",
        _table(cost_table(found)),
        "Tuning time leaves out the preparation of clips and includes the look that chooses "
        "weights. Peak memory is that of the whole process, with what earlier cells left in it; "
        "`bench tune` counts that of a step.",
    ]
    for number, (title, picture) in _SWEEPS.items():
        if find_sweeps(finished, number):
            parts += [
                f"## {title}",
                *said_of_sweep(finished, number),
                _picture(picture, f"held-out loss and forgetting: {title.lower()}", there),
                _table(sweep_table(finished, number)),
            ]
    if has_pairs(finished):
        parts += [
            "## Two concepts",
            "### Does mask overlap tell of conflict?",
            *(said_of_overlap(finished) or ["No pair has two masks to compare."]),
            _picture("pairs.png", "shared part of two masks against conflict", there),
            "### Does learning both in one run help?",
            *(said_of_joint(finished) or ["No pair was learned in one run."]),
            _table(pair_table(finished)),
            _KEY_PAIRS,
        ]
    if missing := _failures(finished):
        parts += ["## Not made", _table(missing)]
    parts += ["## Made with", _table(_made_with(finished))]
    if finished.commands:
        parts.append("\n".join(["```sh", *_commands(finished), "```"]))
    return "\n\n".join(part for part in parts if part) + "\n"


_KEY_LEARNED = (
    "In brackets: 95 % intervals over concepts, each the mean of its seeds. Held-out loss is "
    "cross-entropy on the concept's clips that were never trained on, tuned with the trigger minus "
    "base with the class word. P is of flipping the sign of whole concepts, not corrected. An "
    "asterisk marks methods that are not within 15 % of the random control's size. Fractions, "
    "rounds and rates of all selection rules are our own choices."
)
_KEY_PAIRS = (
    "Interference is what a concept loses when the other is loaded too, unasked; conflict what it "
    "loses when both are asked for, against asking for it alone with its own adapter. A joint run "
    "has twice the steps, as many for each concept as a run of its own, and the budget of one."
)


def _setting(finished: Finished) -> str:
    concepts = list(dict.fromkeys(name for name, _ in finished.bases))
    cells = sum(len(entry.cells) for entry in finished.methods)
    steps = sorted({entry.steps for entry in finished.methods if entry.cells})
    general = finished.general
    said = [
        f"{cells} tuned cells of {len(finished.methods)} methods over {len(concepts)} concepts "
        f"({', '.join(concepts)}), {' or '.join(map(str, steps))} training steps; "
        f"{finished.prompts} prompts of {finished.seconds:g} s each."
    ]
    if general:
        played = general.get("music", 0)
        said.append(
            f"Forgetting is measured on {general['clips']} clips of other music"
            + (f", {played} of them played too." if played else ", by their loss alone.")
        )
    return " ".join(said)


def _failures(finished: Finished) -> list[str]:
    return [
        f"- {record.get('concept') or record.get('pair')}, `{entry.label}`, seed {record['seed']}: "
        f"{record['failed']}"
        for entry in (*finished.methods, *finished.pairs)
        for record in entry.failed
    ]


def _made_with(finished: Finished) -> list[str]:
    lines = []
    for name, value in finished.made_with.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        shown = str(value)
        if name in ("base", "embedder"):
            shown = Path(shown).name
        lines.append(f"- {name.replace('_', ' ')}: {shown}")
    return lines


def _commands(finished: Finished) -> list[str]:
    """Without the places of this machine, and folded."""
    return [_folded(_portable(line)) for line in finished.commands]


def _portable(command: str) -> str:
    """Absolute paths by their names alone."""
    words = [
        Path(word).name if word.startswith("/") and " " not in word else word
        for word in shlex.split(command)
    ]
    return shlex.join(re.sub(r"^/\S*/([^/:\s]+)(:\S+)?$", r"\1\2", word) for word in words)


def _folded(command: str) -> str:
    lines = textwrap.wrap(
        command, _WIDTH - 2, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return " \\\n".join(lines)


def _picture(name: str, alt: str, there: set[str]) -> str:
    return f"![{alt}]({name})" if name in there else ""


def _table(lines: Sequence[str]) -> str:
    return "\n".join(lines)


def _csv(finished: Finished, by: str, columns: Mapping[str, Column]) -> str:
    """A row per cell, the base's first."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    paired = by == "pair"
    bases = finished.pair_bases if paired else finished.bases
    entries = finished.pairs if paired else finished.methods
    rows: list[tuple[str, str, int, Mapping[str, Any]]] = [
        (NONE, *where, record) for where, record in bases.items()
    ]
    for entry in entries:
        rows += [(entry.label, *where, record) for where, record in entry.cells.items()]
    values = [
        {name: c.value(record, bases.get((place, seed), {})) for name, c in columns.items()}
        for _, place, seed, record in rows
    ]
    known = [name for name in columns if any(each[name] is not None for each in values)]
    writer.writerow([by, "method", "seed", *known])
    for (label, place, seed, _), each in zip(rows, values, strict=True):
        figures = ["" if each[name] is None else f"{each[name]:.6g}" for name in known]
        writer.writerow([place, label, seed, *figures])
    return file.getvalue()
