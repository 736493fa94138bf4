"""What an alignment leaves for people: curves side by side, reward against divergence, a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from musictune.training.align_recipe import AlignRecipe
from musictune.training.callbacks import read_metrics
from musictune.training.card import licence

_TITLES = {
    "reward": "reward while playing",
    "held_out_reward": "reward, held-out prompts",
    "held_out_accuracy": "held-out pairs right",
    "held_out_kl": "nats per token from the reference",
    "held_out_entropy": "entropy, nats per token",
    "diversity": "variety of a prompt's clips",
    "margin": "margin of pairs, nats",
}
_NEVER = {"step", "loss", "held_out_loss", "lr", "seconds", "stage", "beta", "stopped"}
_NEVER |= {"held_out_reward_error", "reward_spread", "accuracy", "drift", "kl", "entropy"}


def draw_alignment(folder: Path) -> None:
    """``alignment.png`` from ``metrics.csv``: a small curve of each figure over steps."""
    from matplotlib.figure import Figure

    rows = read_metrics(folder / "metrics.csv")
    names = [name for name in (rows[0] if rows else {}) if name and name not in _NEVER]
    curves = {name: _points(rows, "step", name) for name in names}
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if not curves:
        return
    across = min(3, len(curves))
    down = -(-len(curves) // across)
    figure = Figure(figsize=(3.1 * across, 2.2 * down), dpi=120, layout="constrained")
    places = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, (name, points) in zip(places, curves.items(), strict=False):
        marker = "o" if len(points) < 30 else ""
        axes.plot(*zip(*points, strict=True), marker=marker, markersize=3, linewidth=1.2)
        axes.set_title(_TITLES.get(name, name.replace("_", " ")), fontsize=9)
    for axes in places:
        axes.set_visible(bool(axes.lines))
        _calm(axes)
    figure.savefig(folder / "alignment.png")


def draw_trade(folder: Path) -> None:
    """``reward_kl.png``: what was gained in reward for how much divergence, step by step."""
    from matplotlib.figure import Figure

    rows = read_metrics(folder / "metrics.csv")
    points = _points(rows, "held_out_kl", "held_out_reward")
    if len(points) < 2:
        return
    errors = [error for _, error in _points(rows, "held_out_kl", "held_out_reward_error")]
    figure = Figure(figsize=(5, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    across, up = zip(*points, strict=True)
    axes.errorbar(
        across, up, errors if len(errors) == len(up) else None, marker="o", markersize=4,
        linewidth=1.2, elinewidth=0.6,
    )  # fmt: skip
    steps = [int(row["step"]) for row in rows if row.get("held_out_reward")]
    for step, x, y in zip(steps, across, up, strict=True):
        axes.annotate(str(step), (x, y), (4, 4), textcoords="offset points", fontsize=7)
    axes.set(
        xlabel="nats per token from the reference",
        ylabel="reward of held-out prompts, standard deviations",
    )
    _calm(axes)
    figure.savefig(folder / "reward_kl.png")


def write_align_card(
    folder: Path, recipe: AlignRecipe, facts: dict[str, int | float | str]
) -> None:
    """``README.md`` of a run: what was aligned to what, how to use it, and its figures."""
    run, align, settings = recipe.run, recipe.align, recipe.training
    towards = [f"votes {', '.join(align.votes)}"] if align.votes else []
    towards += [f"reward {', '.join(align.reward)}"] if align.reward else []
    towards += [f"then {', '.join(align.then)}"] if align.then else []
    says = f"{recipe.concepts[0].trigger} PROMPT" if recipe.concepts else "PROMPT"
    lines = [
        f"# {folder.name.removeprefix('.').removesuffix('.partial')}",
        "",
        f"`{run.base}` aligned by {recipe.objective.name} in {settings.steps} steps.",
        "",
        f"- towards: {'; '.join(towards) or 'what was given in Python'}",
        *([f"- goes on from: {align.adapter}"] if align.adapter else []),
        f"- method: {facts['method']}, {facts['trained_parameters']} trained parameters",
        f"- licence: {licence(run.base)}",
        "",
        "## Use",
        "",
        "```",
        f'musictune generate "{says}" --adapter THIS_FOLDER --base {run.base} --out music',
        "```",
        "",
        "## Figures",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key.replace('_', ' ')} | {value} |" for key, value in facts.items()
          if key != "method"),
        "",
        "Rewards are in standard deviations of what the model played before. `kl` is in nats per "
        "token, of the model from what it was, over the music it plays; held-out prompts are "
        "never trained on, but where a reward chose the step it was by them, which flatters. A "
        "reward that rises while text alignment or variety fall is being gamed: listen.",
        "",
        "![figures over steps](alignment.png)",
        "",
    ]  # fmt: skip
    if (folder / "reward_kl.png").is_file():
        lines += ["![reward against divergence](reward_kl.png)", ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _points(rows: list[dict[str, str]], across: str, up: str) -> list[tuple[float, float]]:
    return [(float(row[across]), float(row[up])) for row in rows if row.get(across) and row.get(up)]


def _calm(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
