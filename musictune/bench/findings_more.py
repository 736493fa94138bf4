"""What the finished cells say of pairs of concepts, and of curves over one number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from musictune.bench.contrast import (
    NATS,
    Contrast,
    Correlation,
    difference,
    mean_of,
    probability,
    spearman,
)
from musictune.bench.findings import FORGETTING
from musictune.bench.findings_tables import markdown
from musictune.bench.finished import Entry, Finished
from musictune.bench.pairs import joint_label
from musictune.bench.sweep import LOSS, Number, Sweep, find_sweeps
from musictune.bench.table import PAIR_COLUMNS

CONFLICTS = {
    "loss_interference": "held-out loss that a concept takes back when the other is loaded too",
    "interference": "audio alignment that it loses then",
    "conflict": "audio alignment that it loses when both are asked for",
}
UNITS: Mapping[Number, str] = {
    "fraction": "share of the weights trained",
    "reference_seconds": "seconds of audio learned from",
}


# --- pairs ---


def points_of(finished: Finished, entry: Entry, column: str) -> dict[str, float]:
    """A column by pair, the mean over seeds."""
    by: dict[str, list[float]] = {}
    for (pair, _), value in finished.values(entry, column).items():
        by.setdefault(pair, []).append(value)
    return {pair: float(np.mean(values)) for pair, values in by.items()}


def correlated(
    finished: Finished, entry: Entry, conflict: str, cause: str = "mask_overlap"
) -> Correlation | None:
    """Whether pairs whose masks share more get more into each other's way."""
    causes = points_of(finished, entry, cause)
    effects = points_of(finished, entry, conflict)
    pairs = [pair for pair in causes if pair in effects]
    return spearman([causes[p] for p in pairs], [effects[p] for p in pairs])


def apart_entries(finished: Finished) -> list[Entry]:
    """Methods on pairs whose concepts are learned apart and whose masks are known."""
    return [
        entry
        for entry in finished.pairs
        if entry.cells
        and _joint_tokens(entry) is None  # one mask, which has nothing to overlap with
        and points_of(finished, entry, "mask_overlap")
    ]


def said_of_overlap(finished: Finished) -> list[str]:
    """Whether overlap predicts conflict."""
    said = []
    for entry in apart_entries(finished):
        shared = mean_of(finished.values(entry, "mask_overlap"))
        chance = mean_of(finished.values(entry, "mask_overlap_expected"))
        pairs = points_of(finished, entry, "mask_overlap")
        assert shared and chance
        said.append(
            f"`{entry.label}`, {len(pairs)} pairs: of the smaller mask {shared.shown('.3f')} is "
            f"in both, where chance would give {chance.value:.3f}."
        )
        for name, meaning in CONFLICTS.items():
            found = correlated(finished, entry, name)
            if found is None:
                continue
            said.append(
                f"Rank correlation of that share with the {meaning}: {found.shown}. "
                f"{_predicts(found)}"
            )
        names = [name for pair in pairs for name in pair.split("+")]
        if len(set(names)) < len(names):
            said.append(
                "Pairs that share a concept are not independent, so these intervals and p are a "
                "little too sure of themselves."
            )
    return said


def _predicts(found: Correlation) -> str:
    if math.isnan(found.low):
        return "With so few pairs nothing can be said."
    if found.low > 0:
        return "So more overlap goes with more conflict."
    if found.high < 0:
        return "So more overlap goes with less conflict."
    return "The interval holds zero: overlap does not tell of conflict here."


def said_of_joint(finished: Finished) -> list[str]:
    """Whether learning both in one run helps."""
    said = []
    apart = {entry.label: entry for entry in finished.pairs if entry.cells}
    for entry in finished.pairs:
        tokens = _joint_tokens(entry)
        base = apart.get(entry.label.removesuffix(joint_label(tokens))) if tokens else None
        if base is None or base is entry or not entry.cells:
            continue
        parts = []
        for column, form in (("loss_interference", NATS), ("conflict", "+.3f")):
            change = difference(finished.values(entry, column), finished.values(base, column))
            if change is not None:
                title = PAIR_COLUMNS[column].title.split(",")[0].lower()
                unit = " nats" if column == "loss_interference" else ""
                verdict = {"lower": "less", "higher": "more", "open": "not to be told apart"}
                parts.append(
                    f"{title} {change.shown(form)}{unit} ({probability(change.p)}: "
                    f"{verdict[change.verdict]})"
                )
        if parts:
            said.append(
                f"`{entry.label}` against two runs of `{base.label}` loaded together, over "
                f"{len(entry.concepts)} pairs: {'; '.join(parts)}."
            )
    return said


def _joint_tokens(entry: Entry) -> int | None:
    for cell in entry.cells.values():
        joint = cell["settings"].get("joint")
        return int(joint["run"]["tokens"]) if joint else None
    return None


def pair_table(finished: Finished) -> list[str]:
    """A row per method."""
    columns = {
        "mask_overlap": ".3f",
        "mask_overlap_expected": ".3f",
        "loss_interference": NATS,
        "interference": "+.3f",
        "conflict": "+.3f",
        "conflict_over_base": "+.3f",
        "both": ".3f",
        "text_both": ".3f",
    }
    heads = ["method", "pairs x seeds", *(PAIR_COLUMNS[name].title for name in columns)]
    rows = []
    for entry in finished.pairs:
        if not entry.cells:
            continue
        seeds = len(entry.cells) / len(entry.concepts)
        row = [f"`{entry.label}`", f"{len(entry.concepts)} x {seeds:g}"]
        for name, form in columns.items():
            mean = mean_of(finished.values(entry, name))
            row.append("–" if mean is None else mean.shown(form))
        rows.append(row)
    return markdown(heads, rows)


# --- curves ---


def said_of_sweep(finished: Finished, number: Number) -> list[str]:
    """Where a curve is best, and where it stops being worth more."""
    said = []
    sweeps = find_sweeps(finished, number)
    for sweep in sweeps:
        curve = sweep.values(finished, LOSS)
        best = min(curve, key=lambda x: curve[x].value)
        first, last = min(curve), max(curve)
        enough = _enough(finished, sweep, best)
        said.append(
            f"`{sweep.label}`, {len(curve)} points over {_cells(sweep)}: from "
            f"{shown_number(number, first)} to {shown_number(number, last)} held-out loss goes "
            f"from {curve[first].shown()} to {curve[last].shown()} nats from the base; lowest at "
            f"{shown_number(number, best)}. {shown_number(number, enough)} is the "
            f"least that cannot be told from that."
        )
    if number == "fraction":
        said += _against_random(finished, sweeps)
    return said


def _enough(finished: Finished, sweep: Sweep, best: float) -> float:
    """The least of the number whose difference from the best has zero in its interval."""
    top = finished.values(sweep.points[best], LOSS)
    for x, entry in sweep.points.items():
        values = {w: v for w, v in finished.values(entry, LOSS).items() if w in sweep.shared}
        change = difference(values, top)
        if x == best or (change and not change.low > 0):
            return x
    return best


def _against_random(finished: Finished, sweeps: Sequence[Sweep]) -> list[str]:
    control = next((s for s in sweeps if s.rule == "random"), None)
    if control is None:
        return []
    said = []
    for sweep in sweeps:
        if sweep.rule in (None, "random"):
            continue
        changes = sweep.against(control, finished)
        parts = [
            f"{shown_number('fraction', x)}: {c.shown()} ({probability(c.p)})"
            for x, c in changes.items()
        ]
        if not parts:
            continue
        wins = [shown_number("fraction", x) for x, c in changes.items() if c.verdict == "lower"]
        where = (
            f"It is beyond its interval at {', '.join(wins)}."
            if wins
            else ("At no size is it beyond its interval.")
        )
        said.append(f"`{sweep.label}` minus random, by size: {'; '.join(parts)}. {where}")
    return said


def sweep_table(finished: Finished, number: Number) -> list[str]:
    """A row per point."""
    heads = (
        "method", UNITS[number], "trained", "held-out loss, nats from base ↓",
        "audio alignment won ↑", "text alignment won ↑", "loss of general clips, nats from base ↓",
    )  # fmt: skip
    rows = []
    for sweep in find_sweeps(finished, number):
        columns = [sweep.values(finished, name) for name in (LOSS, "audio_gain", "text_gain")]
        columns.append(sweep.values(finished, FORGETTING))
        for x, entry in sweep.points.items():
            forms = (NATS, "+.3f", "+.3f", NATS)
            cells = [_cell(c, x, form) for c, form in zip(columns, forms, strict=True)]
            rows.append(
                [f"`{sweep.label}`", shown_number(number, x), f"{entry.trained:,.0f}", *cells]
            )
    return markdown(heads, rows)


def shown_number(number: Number, x: float) -> str:
    """With its unit."""
    return f"{100 * x:g} %" if number == "fraction" else f"{x:g} s"


def _cell(column: Mapping[float, Contrast], x: float, form: str) -> str:
    return column[x].shown(form) if x in column else "–"


def _cells(sweep: Sweep) -> str:
    concepts = {name for name, _ in sweep.shared}
    seeds = len(sweep.shared) / len(concepts)
    return (
        f"{len(concepts)} concept{'s' * (len(concepts) != 1)} x {seeds:g} seed{'s' * (seeds != 1)}"
    )


def has_pairs(finished: Finished) -> bool:
    """Whether there is anything to say of pairs."""
    return any(entry.cells for entry in finished.pairs)


def mean_points(
    finished: Finished, entry: Entry, one: str, other: str
) -> tuple[list[str], list[float], list[float]]:
    """Names and both columns of the pairs that have them."""
    xs, ys = (points_of(finished, entry, name) for name in (one, other))
    names = [name for name in xs if name in ys]
    return names, [xs[n] for n in names], [ys[n] for n in names]
