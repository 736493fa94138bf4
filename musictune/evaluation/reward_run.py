"""From comparisons to a folder with a learned reward, its card and its figures."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from musictune.data.preferences import Comparison
from musictune.evaluation.reward_quality import (
    Bin,
    CurvePoint,
    caveat,
    held_out_accuracy,
    interval,
    learning_curve,
    reliability,
)
from musictune.files import publish_folder
from musictune.metrics.base import Score
from musictune.training.reward import LearnedReward, RewardReport, RewardSettings, train_reward
from musictune.training.reward_features import ClipFeatures, hear_comparisons


@dataclass(frozen=True)
class LearnedRun:
    """What came of learning a reward.

    Attributes:
        reward: to score clips with.
        report: how the learning went.
        pairs, prompts: how many comparisons there were, of how many prompts.
        accuracy: on the held-out comparisons.
        bins, calibration_error: see `reliability`.
        curve: see `learning_curve`.
        caveat: what to beware of; empty if nothing.
    """

    reward: LearnedReward
    report: RewardReport
    pairs: int
    prompts: int
    accuracy: Score
    bins: list[Bin]
    calibration_error: float
    curve: list[CurvePoint]
    caveat: str


def learn_reward(
    comparisons: Sequence[Comparison],
    features: ClipFeatures,
    settings: RewardSettings,
    out: Path,
    *,
    named: Mapping[str, str],
    overwrite: bool = False,
) -> LearnedRun:
    """Hear the clips, learn, judge, and write ``out``, which appears whole or not at all.

    ``out`` gets ``model.safetensors`` and ``reward.json``, which `LearnedReward.load` reads,
    ``metrics.csv`` (a row for each weight decay tried), ``curve.png`` and ``README.md``.

    Args:
        comparisons: from `musictune.data.preferences.comparisons`.
        features: what is known of a clip.
        settings: how to learn.
        out: the new folder.
        named: the ``embedder`` and ``base`` behind ``features``, as they are loaded by.
        overwrite: replace ``out``.

    Raises:
        InputError: too few comparisons, audio that cannot be read, or ``out`` cannot be written.
        CheckFailed: nothing was learned.
    """
    chosen, rejected = hear_comparisons(comparisons, features)
    groups = [one.prompt for one in comparisons]
    head, report = train_reward(chosen, rejected, groups, settings)
    accuracy = held_out_accuracy(report)
    bins, error = reliability(report.probability)
    curve = learning_curve(chosen, rejected, groups, settings, report)
    pairs, prompts = len(comparisons), len(set(groups))
    warning = caveat(pairs, accuracy)
    figures: dict[str, Any] = {
        "pairs": pairs,
        "prompts": prompts,
        "learned": len(report.learned),
        "held_out": len(report.held_out),
        "held_out_accuracy": accuracy.as_json(),
        "training_accuracy": report.training_accuracy,
        "calibration_error": error if report.held_out else None,
        "weight_decay": report.decay,
        "curve": [asdict(point) for point in curve],
    }
    about = {**named, "settings": asdict(settings), "figures": figures}
    reward = LearnedReward(features, head, about)
    run = LearnedRun(reward, report, pairs, prompts, accuracy, bins, error, curve, warning)
    with publish_folder(out, overwrite=overwrite) as folder:
        reward.save(folder)
        _write_metrics(report, folder / "metrics.csv")
        if curve:
            _draw(run, folder / "curve.png")
        (folder / "README.md").write_text(_card(run, settings), encoding="utf-8")
    return run


def _write_metrics(report: RewardReport, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.DictWriter(stream, list(report.choices[0]))
        rows.writeheader()
        rows.writerows({name: repr(v) for name, v in row.items()} for row in report.choices)


def _draw(run: LearnedRun, path: Path) -> None:
    """Accuracy by the number of comparisons, and how sure the reward is against how right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), dpi=120, layout="constrained")
    sizes, sure = figure.subplots(1, 2)
    pairs = [point.pairs for point in run.curve]
    sizes.fill_between(pairs, [p.low for p in run.curve], [p.high for p in run.curve], alpha=0.2)
    sizes.plot(pairs, [point.accuracy for point in run.curve], marker="o", markersize=4)
    sizes.axhline(0.5, color="grey", linewidth=1.0, linestyle=":")
    sizes.set(xlabel="comparisons learned from", ylabel="held-out accuracy", ylim=(0.3, 1.02))
    sizes.set_xscale("log", base=2)
    sizes.xaxis.set_major_formatter("{x:.0f}")
    held = [one for one in run.bins if one.count]
    sure.plot([0.5, 1], [0.5, 1], color="grey", linewidth=1.0, linestyle=":")
    sure.scatter(
        [one.sure for one in held],
        [one.right for one in held],
        [12 + 120 * one.count / len(run.report.held_out) for one in held],
    )
    sure.set(xlabel="how sure it is", ylabel="how often it is right", xlim=(0.48, 1.02))
    sure.set_ylim(-0.02, 1.02)
    for axes in (sizes, sure):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _card(run: LearnedRun, settings: RewardSettings) -> str:
    reward, report = run.reward, run.report
    named = ", ".join(f"{part} `{reward.about[part] or 'bundled'}`" for part in _parts(reward))
    kind = f"hidden layer of {settings.hidden}" if settings.hidden else "linear"
    lines = [
        "# Learned reward",
        "",
        f"What listeners would prefer, learned from {run.pairs} comparisons of {run.prompts} "
        "prompts with musictune. Higher is better; the unit is the standard deviation over the "
        "clips learned from.",
        "",
        f"- hears with: features `{reward.features.kind}` of {named}",
        f"- scores: Bradley-Terry, {kind}, {settings.members} members on prompts drawn with "
        f"replacement; their mean less {settings.caution:g} times their spread",
        f"- weight decay {report.decay:.3g}, chosen on the prompts each member did not draw "
        "(`metrics.csv`)",
        f"- learned from {len(report.learned)} comparisons, judged on the {len(report.held_out)} "
        f"of {len(set(report.groups))} other prompts",
        "",
        "## How good it is",
        "",
    ]
    if run.caveat:
        lines += [f"**Beware: {run.caveat}.**", ""]
    if report.held_out:
        lines += _figures(run)
    return "\n".join([*lines, *_USE])


def _figures(run: LearnedRun) -> list[str]:
    lines = [
        f"Held-out accuracy {interval(run.accuracy)}, {run.accuracy.note}; on what it learned from "
        f"{run.report.training_accuracy:.1%}. Chance is 50 %. MusicRL's reward of 285,000 "
        "comparisons reached 60 %, as often as its listeners agreed (arXiv 2402.04229).",
        "",
        "![accuracy by comparisons, and calibration](curve.png)",
        "",
        "On the left, bands go from the worst to the best of three choices of prompts. The reward "
        f"is {run.calibration_error:.3f} off in how sure it is (expected calibration error):",
        "",
        "| how sure | comparisons | mean | right |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {one.low:.1f} to {one.high:.1f} | {one.count} | "
        + (f"{one.sure:.2f} | {one.right:.2f} |" if one.count else "| |")
        for one in run.bins
    ]
    return [*lines, ""]


def _parts(reward: LearnedReward) -> list[str]:
    named = {"embedder": "embedder", "codec": "base", "language": "base"}
    return list(dict.fromkeys(named[part] for part in reward.features.keys))


_USE = (
    "## Use",
    "",
    "```",
    "musictune align --reward reward:THIS_FOLDER ...",
    "```",
    "",
    "It knows nothing but these listeners' votes on this kind of music: tuned against for long, it "
    "is fooled. Watch other measures beside it. `reward.json` holds settings and figures.",
    "",
)
