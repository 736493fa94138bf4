"""The tables of the document that the concept benchmark ends in."""

from __future__ import annotations

import math
from collections.abc import Sequence

from musictune.bench.asked import NONE
from musictune.bench.contrast import NATS, mean_of
from musictune.bench.findings import AUDIO, FORGETTING, TEXT, Compared
from musictune.bench.finished import Entry, Finished
from musictune.bench.sweep import LOSS
from musictune.bench.table import COLUMNS, number


def learned_table(found: Sequence[Compared]) -> list[str]:
    """What was learned."""
    heads = (
        "method", "trained", "concepts x seeds", "held-out loss, nats from base ↓",
        "minus random of equal size ↓", "p", "mean rank ↓", "audio alignment won ↑",
        "text alignment won ↑",
    )  # fmt: skip
    rows = []
    for c in found:
        over = c.over_random
        rows.append(
            [
                f"`{c.entry.label}`" + (f" ({len(c.entry.failed)} failed)" * bool(c.entry.failed)),
                f"{c.entry.trained:,.0f}",
                _counted(c.entry),
                _cell(c, LOSS, NATS),
                "–" if over is None else over.shown() + ("" if c.matched else " *"),
                "–" if over is None or math.isnan(over.p) else f"{over.p:.3f}",
                "–" if c.rank is None else f"{c.rank.value:.1f}",
                _cell(c, AUDIO, "+.3f"),
                _cell(c, TEXT, "+.3f"),
            ]
        )
    return markdown(heads, rows)


def kept_table(finished: Finished, found: Sequence[Compared]) -> list[str]:
    """What was forgotten and copied, the base in the first row."""
    columns = {
        FORGETTING: ("loss of general clips, nats from base ↓", NATS),
        "general_frechet_change": ("Fréchet distance of general music, from base ↓", "+.3f"),
        "clap_above_held_out": ("excerpts nearer by sound than any held-out one ↓", ".3f"),
        "chroma_above_held_out": ("the same by notes ↓", ".3f"),
        "token_run": ("longest run of training tokens ↓", ".1f"),
    }
    columns = {name: it for name, it in columns.items() if any(name in c.means for c in found)}
    base = []
    for name, (_, form) in columns.items():
        mean = mean_of(finished.base_values(name))
        base.append("–" if mean is None else mean.shown(form))
    rows = [[f"{NONE} (the base)", *base, "–"]]
    for c in found:
        beside = "–" if c.forgot_over_random is None else c.forgot_over_random.shown()
        figures = [_cell(c, name, form) for name, (_, form) in columns.items()]
        rows.append([f"`{c.entry.label}`", *figures, beside])
    titles = [title for title, _ in columns.values()]
    return markdown(["method", *titles, "general loss minus random's ↓"], rows)


def cost_table(found: Sequence[Compared]) -> list[str]:
    """What it took."""
    columns = {
        "trained_parameters": "trained",
        "adapter_bytes": "adapter",
        "seconds": "tuning time",
        "peak_memory_bytes": "peak memory of the process",
    }
    rows = [
        [
            f"`{c.entry.label}`",
            *(
                number(c.means[name].value, COLUMNS[name].form) if name in c.means else "–"
                for name in columns
            ),
        ]
        for c in found
    ]
    return markdown(["method", *columns.values()], rows)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, its first column to the left."""
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _cell(compared: Compared, column: str, form: str) -> str:
    return compared.means[column].shown(form) if column in compared.means else "–"


def _counted(entry: Entry) -> str:
    seeds = len(entry.cells) / max(len(entry.concepts), 1)
    return f"{len(entry.concepts)} x {seeds:g}"
