"""The page of `musictune bench tune`: what was claimed, what was reached, where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from musictune.bench.step_profile import CATEGORIES, OPTIMISER, WEIGHT

_MIB = 2**20

_HOW = """\
Each side has its own copy of the same weights, the same batch, the model's own loss and fused
AdamW; the text encoder gets no gradient and dropout is off. Sides are stepped in turn in one
process, each round beginning with another one, after two steps to warm up; a time is the median
over the rounds, a ratio that of two medians, with the smallest and largest ratio of one round
beside it. A ratio over 1 means that ours is better. "Saved for backward" adds up the storages that
autograd keeps, without weights; "most held" also gradients and what operations make on the way.
The choice of weights is random: which ones they are changes no time."""

_LIMITS = """\
A step of full tuning is three products of equal size per layer: forward, the gradient of the input
and the gradient of the weight. A frozen base drops the third, so 1.5 is the most that can be had on
the products, and less on the whole step, because attention, norms and the loss stay. Whole columns,
rows or heads make their gradient one small dense product. Single weights that lie anywhere have the
memory of what is kept, but their gradient must be picked from a product that is formed, tile by
tile or one dot product per weight: towards full tuning's time as more of them are chosen."""


def page(document: Mapping[str, Any], command: str) -> str:
    """Markdown of what `bench_tune` returned.

    Args:
        document: its rows, sides and what they were made with.
        command: what made it.
    """
    facts = document["made_with"]
    shapes = list(facts["shapes"])
    parts = [
        "# Speed and memory of a training step",
        f"`{command}`",
        _HOW,
        _machine(facts),
        "## What was claimed and what was reached",
    ]
    for shape in shapes:
        rows = [row for row in document["rows"] if row["case"].startswith(f"{shape}, ")]
        parts += [f"### {_size(shape, facts)}", _claims(rows, shape)]
    parts += ["## Every side", _sides(document["sides"]), "## What the arithmetic allows", _LIMITS]
    profiled = [side for side in document["sides"] if side["profile"] is not None]
    if profiled:
        parts += [_bounds(profiled), "## Where the time goes", _profiles(profiled)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _machine(facts: Mapping[str, Any]) -> str:
    versions = facts["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "peft") if name in versions)
    load = f"{facts['load_average_before'][0]:g} before, {facts['load_average_after'][0]:g} after"
    return (
        f"Measured on {facts['machine']}, {facts['threads']} threads, {named}; load average {load}."
    )


def _size(shape: str, facts: Mapping[str, Any]) -> str:
    own = facts["shapes"][shape]
    batch, tokens = facts["batch"] or own["batch"], facts["tokens"] or own["tokens"]
    size = f"{own['layers']} layers x {own['width']}, random weights, " if own["layers"] else ""
    return f"{shape}: {size}bfloat16, {batch} clips of {tokens} tokens, LoRA of rank {own['rank']}"


def _claims(rows: Sequence[Mapping[str, Any]], shape: str) -> str:
    table = [("case", "ours", "peer", "ratio", "target", "met", "")]
    for row in rows:
        table.append(
            (
                row["case"].removeprefix(f"{shape}, "),
                f"{_number(row['ours'])} {row['unit']}",
                f"{_number(row['peer'])} {row['peer_name']}",
                "" if row["ratio"] is None else f"{row['ratio']:.2f}",
                row["target"] or "",
                {None: "", True: "yes", False: "**no**"}[row["met"]],
                row["note"],
            )
        )
    judged = [row["met"] for row in rows if row["met"] is not None]
    return f"{_table(table)}\n\n{sum(judged)} of {len(judged)} targets met."


def _sides(sides: Sequence[Mapping[str, Any]]) -> str:
    header = ("shape", "layers", "side", "weights trained", "ms per step", "CPU ms")
    table = [(*header, "saved MiB", "most held MiB", "optimiser and gradients MiB")]
    for side in sides:
        cpu = sorted(side["cpu"])[len(side["cpu"]) // 2]
        sizes = [f"{side[name] / _MIB:.1f}" for name in ("saved", "peak", "state")]
        table.append(
            (
                side["shape"],
                side["layers"],
                side["name"],
                f"{side['trained']:,}",
                f"{side['step'] * 1000:.0f}",
                f"{cpu * 1000:.0f}",
                *sizes,
            )
        )
    return _table(table)


def _bounds(sides: Sequence[Mapping[str, Any]]) -> str:
    """What the work of the products, and full tuning's own step, say that can be had."""
    lines = []
    for full in (side for side in sides if side["name"] == "full fine-tuning"):
        seconds, work = full["profile"]["seconds"], full["profile"]["flops"]
        free = 1 / (1 - (seconds[WEIGHT] + seconds[OPTIMISER]) / sum(seconds.values()))
        products = 1 / (1 - work[WEIGHT] / sum(work.values()))
        ours = [
            f"{side['name']} {full['step'] / side['step']:.2f}"
            for side in sides
            if side["shape"] == full["shape"]
            and side["layers"] == full["layers"]
            and side["name"].startswith("pivotal")
        ]
        lines.append(
            f"- {full['shape']}: without weight gradients the products are {products:.2f} times "
            f"less work; full tuning's step without them and without its optimiser would be "
            f"{free:.2f} times faster. Reached: {', '.join(ours)}."
        )
    for lora in (side for side in sides if side["name"].startswith("peft LoRA")):
        ours = [
            f"{sum(lora['profile']['flops'].values()) / sum(side['profile']['flops'].values()):.2f}"
            f" times those of {side['name']}"
            for side in sides
            if (side["shape"], side["layers"]) == (lora["shape"], lora["layers"])
            and side["name"].startswith("pivotal")
        ]
        lines.append(
            f"- {lora['shape']}, {lora['layers']}: the products of {lora['name']} are "
            f"{', '.join(ours)}; what it takes longer is casts, traffic and calls."
        )
    return "\n".join(lines)


def _profiles(sides: Sequence[Mapping[str, Any]]) -> str:
    header = ("shape", "layers", "side", *(f"{name}, ms" for name in CATEGORIES))
    table = [(*header, "products, GFLOP")]
    for side in sides:
        seconds, work = side["profile"]["seconds"], side["profile"]["flops"]
        table.append(
            (
                side["shape"],
                side["layers"],
                side["name"],
                *(f"{seconds[name] * 1000:.0f}" for name in CATEGORIES),
                f"{sum(work.values()) / 1e9:.0f}",
            )
        )
    return (
        "Of one step, operation by operation; what is left of the median step is Python and "
        f"dispatch.\n\n{_table(table)}"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    header, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([header, "|---" * len(rows[0]) + "|", *body])


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
