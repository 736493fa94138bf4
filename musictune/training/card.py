"""The card of a run: what it is, what it came from, how to use it, how it went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from musictune.methods.adapter import live_methods
from musictune.training.callbacks import read_metrics
from musictune.training.recipe import Recipe

_DIAGNOSTICS = (
    "## What changed",
    "",
    "![where the change lives, how foreign and how spread it is](diagnostics.png)",
    "",
    "Relative change is the norm of the change over that of the weights it fell on; centre of "
    "depth is 0 where it lives in the first decoder layer and 1 in the last; stable rank says in "
    "how many directions it goes, the median over matrices. Intruder dimensions (arXiv 2410.21228) "
    "are leading singular vectors of a tuned matrix that resemble none of the base's: the fewer, "
    "the less the base was bent. `diagnostics.json` has every matrix.",
)


def write_card(
    folder: Path, recipe: Recipe, facts: dict[str, int | float | str], prompts: Sequence[str]
) -> None:
    """Write ``folder/README.md``; ``prompts`` are what the previews were asked for."""
    run, concepts = recipe.run, recipe.concepts
    name = " and ".join(concept.name for concept in concepts) or "adapter"
    clips = [str(lesson.clips or run.clips) for lesson in recipe.lessons]
    use = list(prompts)
    if len(concepts) > 1:
        use.append(" with ".join(concept.trigger for concept in concepts))
    lines = [
        f"# {name}",
        "",
        "A music adapter made with musictune.",
        "",
        f"- base model: `{run.base}`",
        f"- licence: {licence(run.base)}",
        f"- learned from: {', '.join(f'`{place}`' for place in clips)} (mind the rights of that "
        "music)",
        f"- method: {facts['method']}, {int(facts['trained_parameters']):,} trained weights, "
        f"{facts.get('stopped_step', recipe.training.steps)} steps, seed {recipe.training.seed}",
    ]
    if "stopped_step" in facts:
        lines.append(
            f"- stopped early, after step {facts['stopped_step']} of {recipe.training.steps}: "
            f"{facts['stopped_because']}"
        )
    if "kept_step" in facts:
        lines.append(
            f"- kept: step {facts['kept_step']}, whose previews came closest to the held-out clips "
            "and to their prompts"
        )
    lines += [
        f"- concept: write `{concept.trigger}` in a prompt; it is a kind of "
        f"{concept.class_word}, in {concept.tokens} token(s)"
        for concept in concepts
    ]
    if recipe.training.prior:
        lines.append(
            f"- prior preservation: {recipe.training.prior} clips of the base's own of each class "
            f"word, weight {recipe.training.prior_weight:g}"
        )
    lines += [
        "",
        "## Use",
        "",
        "```",
        *(
            f'musictune generate "{prompt}" --adapter THIS_FOLDER --base {run.base} --out music'
            for prompt in use
        ),
        *(
            ["musictune merge THIS_FOLDER --out merged   # a plain transformers folder"]
            if _merges(folder)
            else []
        ),
        "```",
        "",
        "## Figures",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key.replace('_', ' ')} | {value} |" for key, value in _figures(folder, facts)),
        "",
        "Proof of effect: the share of codec tokens that differ, and the mean difference in "
        f"decibels, between {_quoted(prompts)} with and without what was learned, at one seed. "
        "`config.yaml` holds the whole recipe, `metrics.csv` every step.",
        "",
        "![losses](losses.png)",
        "",
    ]
    if "kept_step" in facts:
        lines += [
            "Alignment is the mean over previews of the product of two cosines, each mapped from "
            "[-1, 1] to [0, 1]: with the held-out clips, and with the prompts, a concept read as "
            "its class word. Step 0 is untrained. Steps that differ by less than the standard "
            "error are as good as each other. The adapter was chosen by this figure, so it "
            "flatters: other prompts, seeds and listeners tell more.",
            "",
            "![alignment](alignment.png)",
            "",
        ]
    if (folder / "diagnostics.png").is_file():
        lines += [*_DIAGNOSTICS, ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _merges(folder: Path) -> bool:
    """Whether the run's adapter can become part of the plain weights."""
    return not ((folder / "adapter" / "adapter.json").is_file() and live_methods(folder))


def _quoted(prompts: Sequence[str]) -> str:
    if len(prompts) == 1:
        return f"`{prompts[0]}`"
    return f"the one of {', '.join(f'`{prompt}`' for prompt in prompts)} that changed least,"


def licence(base: str) -> str:
    """What an adapter inherits from its base, in one line."""
    if base == "mini":
        return "Apache-2.0, as the bundled base"
    if "musicgen" in base.lower() or "magnet" in base.lower():
        return "CC-BY-NC 4.0 if the base is one of Meta's: adapters of it are non-commercial too"
    return f"that of {base}; an adapter cannot be freer than its base"


def draw_losses(folder: Path) -> None:
    """``losses.png`` from ``metrics.csv``: training and held-out loss over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    for column, label, style in (
        ("loss", "training", {"linewidth": 1.0, "alpha": 0.8}),
        ("prior_loss", "the base's own music", {"linewidth": 1.0, "alpha": 0.5}),
        ("held_out_loss", "held out", {"marker": "o", "markersize": 4}),
    ):
        _curve(axes, folder, column, label=label, **style)
    axes.set(xlabel="step", ylabel="nats per token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(folder / "losses.png")


def draw_alignment(folder: Path, kept: int) -> None:
    """``alignment.png`` from ``metrics.csv``: what previews scored, with step ``kept`` marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.4), dpi=120, layout="constrained")
    cosines, product = figure.subplots(2, sharex=True)
    dots: dict[str, Any] = {"marker": "o", "markersize": 4}
    _curve(cosines, folder, "audio_alignment", label="with the held-out clips", **dots)
    _curve(cosines, folder, "text_alignment", label="with the prompts", **dots)
    _curve(product, folder, "alignment", color="black", **dots)
    for row in read_metrics(folder / "metrics.csv"):
        if row["alignment_error"]:
            place, error = float(row["alignment"]), float(row["alignment_error"])
            product.errorbar(int(row["step"]), place, error, color="black", linewidth=0.8)
    cosines.set(ylabel="cosine")
    product.set(xlabel="step", ylabel="alignment")
    for axes in (cosines, product):
        axes.axvline(kept, color="grey", linewidth=1.0, linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
    product.annotate(
        f"kept: {kept}", (kept, 0.02), (3, 0), xycoords=("data", "axes fraction"),
        textcoords="offset points", color="grey", fontsize=8,
    )  # fmt: skip
    cosines.legend(frameon=False)
    figure.savefig(folder / "alignment.png")


def _curve(axes: Any, folder: Path, column: str, **style: Any) -> None:
    rows = read_metrics(folder / "metrics.csv")
    points = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def _figures(
    folder: Path, facts: dict[str, int | float | str]
) -> list[tuple[str, int | float | str]]:
    rows = read_metrics(folder / "metrics.csv")
    last = int(facts.get("kept_step", rows[-1]["step"] if rows else 0))
    held_out = [
        float(row["held_out_loss"])
        for row in rows
        if row["held_out_loss"] and int(row["step"]) <= last
    ]
    figures: list[tuple[str, int | float | str]] = [
        (key, round(value, 6) if isinstance(value, float) else value)
        for key, value in facts.items()
        if key != "method"
    ]
    if held_out:
        figures += [
            ("held_out_loss_before", round(held_out[0], 4)),
            ("held_out_loss_after", round(held_out[-1], 4)),
        ]
    return figures
