"""The card and the curves of a run that learned labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from musictune.training.callbacks import read_metrics
from musictune.training.card import licence
from musictune.training.classify_recipe import ClassifyRecipe

_NAMED = 30  # labels on the card


def write_card(folder: Path, recipe: ClassifyRecipe, facts: dict[str, Any]) -> None:
    """Write ``folder/README.md``."""
    run, labels = recipe.run, facts["labels"]
    named = ", ".join(f"`{label}`" for label in labels[:_NAMED])
    more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    counts = facts["clips"]
    lines = [
        f"# {len(labels)} labels for sound",
        "",
        "What an audio encoder learned with musictune.",
        "",
        f"- base model: `{run.base}`",
        f"- licence: {licence(run.base)}",
        f"- learned from: `{run.clips}` (mind the rights of those recordings): {counts['train']} "
        f"clips, chosen by {counts['validation']}, measured on {counts['test']} others",
        f"- method: {facts['method']}, {int(facts['trained_parameters']):,} trained weights, "
        f"{run.epochs} epochs, seed {recipe.training.seed}",
        f"- labels: {named}{more}",
        "",
        "## Use",
        "",
        "```",
        "musictune classify RECORDING --model THIS_FOLDER",
        "musictune evaluate LABELLED_CLIPS --run THIS_FOLDER --out report",
        "```",
        "",
        "## Figures",
        "",
    ]
    if facts["test"]:
        lines += [
            "On clips that were neither trained on nor chosen by, with 95 % intervals:",
            "",
            "| | value | low | high | clips |",
            "|---|---|---|---|---|",
            *(_row(name, score) for name, score in facts["test"].items()),
            "",
        ]
    else:
        lines += ["No clips were left for a test, so nothing is claimed.", ""]
    if "kept_step" in facts:
        lines += [
            f"Kept: step {facts['kept_step']}, where validation was {facts['validation_kept']} "
            f"(at the end {facts['validation_last']}). It was chosen by this figure, so that one "
            "flatters.",
            "",
        ]
    lines += [
        "`results.json` holds all figures, `config.yaml` the whole recipe, `metrics.csv` every "
        "step.",
        "",
        "![loss and validation](learning.png)",
        "",
    ]
    if (folder / "confusion.png").is_file():
        lines += ["![what is taken for what](confusion.png)", ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def draw_learning(folder: Path) -> None:
    """``learning.png`` from ``metrics.csv``: losses, and how many validation clips were right."""
    from matplotlib.figure import Figure

    rows = read_metrics(folder / "metrics.csv")
    figure = Figure(figsize=(6, 4.4), dpi=120, layout="constrained")
    losses, right = figure.subplots(2, sharex=True)
    for axes, column, label in (
        (losses, "loss", "training"),
        (losses, "held_out_loss", "validation"),
        (right, "validation_accuracy", "validation"),
    ):
        points = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2)
    losses.set(ylabel="nats")
    losses.legend(frameon=False)
    right.set(xlabel="step", ylabel="rightly named", ylim=(0, 1.02))
    for axes in (losses, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "learning.png")


def _row(name: str, score: dict[str, Any]) -> str:
    title = name.replace("_", " ")
    if "reason" in score:
        return f"| {title} | not computed: {score['reason']} | | | |"
    cells = [_shown(score[key]) for key in ("value", "low", "high")]
    return f"| {title} | {' | '.join(cells)} | {score['n']} |"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
