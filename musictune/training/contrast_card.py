"""The card and the curve of a run that taught a CLAP captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from musictune.training.callbacks import read_metrics
from musictune.training.card import licence
from musictune.training.contrast_recipe import ContrastRecipe

_TITLES = {
    "held_out": "Retrieval on held-out recordings",
    "retention": "Retrieval on general clips, what may have been forgotten",
    "order": "Order of two held-out clips: the right caption above the swapped one",
}
_HEADLINES = ("text_to_audio_map_at_10", "audio_to_text_map_at_10")


def write_card(folder: Path, recipe: ContrastRecipe, facts: dict[str, Any]) -> None:
    """Write ``folder/README.md``."""
    run, counts = recipe.run, facts["clips"]
    lines = [
        "# CLAP",
        "",
        "A model that scores how well music fits a text, tuned with musictune.",
        "",
        f"- base model: `{run.base}`",
        f"- licence: {licence(run.base)}",
        f"- learned from: `{run.clips}` (mind the rights of those recordings): {counts['train']} "
        f"clips, measured on {counts['held_out']} of other recordings",
        f"- method: {facts['method']}, tower {run.tower}, "
        f"{int(facts['trained_parameters']):,} trained weights, stages {', '.join(run.stages)}, "
        f"{recipe.training.steps} steps, seed {recipe.training.seed}",
        "",
        "## Use",
        "",
    ]
    if facts["clap"]:
        lines += [
            "```",
            "musictune evaluate MUSIC --reference RECORDINGS --embedder THIS_FOLDER/clap",
            "```",
            "",
        ]
    else:
        lines += [f"Method {facts['method']} cannot be folded in; attach the adapter.", ""]
    lines += ["## Figures", "", "With 95 % intervals.", ""]
    for name, before in facts["before"].items():
        after = facts["after"][name]
        lines += [f"### {_TITLES[name]}", "", "| | before | after |", "|---|---|---|"]
        lines += [
            f"| {score.replace('_', ' ')} | {_shown(before[score])} | {_shown(after[score])} |"
            for score in before
        ]
        lines.append("")
    if not facts["before"]:
        lines += ["No clips were held out, so nothing is claimed.", ""]
    if "kept_step" in facts:
        lines += [
            f"Kept: step {facts['kept_step']}, where the held-out loss was "
            f"{facts['held_out_kept']} nats (untrained {facts['held_out_before']}, at the end "
            f"{facts['held_out_last']}). It was chosen on the clips that it is measured on, so the "
            "figures flatter a little.",
            "",
        ]
    lines += [
        "`results.json` holds all figures, `config.yaml` the whole recipe, `metrics.csv` every "
        "step.",
        "",
        "![losses](losses.png)",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def headlines(facts: dict[str, Any]) -> list[str]:
    """A line for each thing that was measured, before and after."""
    lines = []
    for name, before in facts["before"].items():
        chosen = _HEADLINES if name != "order" else tuple(before)
        found = [
            f"{score.replace('_', ' ')} {before[score]['value']:.3f} -> "
            f"{facts['after'][name][score]['value']:.3f}"
            for score in chosen
            if "value" in before[score]
        ]
        if found:
            lines.append(f"{_TITLES[name]}: {'; '.join(found)}")
    return lines


def draw_contrast(folder: Path) -> None:
    """``losses.png`` from ``metrics.csv``."""
    from matplotlib.figure import Figure

    rows = read_metrics(folder / "metrics.csv")
    figure = Figure(figsize=(6, 3.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    for column, label in (("loss", "training"), ("held_out_loss", "held out")):
        points = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2)
    axes.set(xlabel="step", ylabel="nats")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "losses.png")


def _shown(score: dict[str, Any]) -> str:
    if "reason" in score:
        return f"not computed: {score['reason']}"
    if score["low"] is None:
        return f"{score['value']:.3f}"
    return f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"
