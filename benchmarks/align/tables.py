"""The tables and pictures of RESULTS.md from the files that `cells.py` left.

python benchmarks/align/tables.py --pool POOL --cells CELLS --out benchmarks/align
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cells import COUNTS, RATES
from matplotlib.figure import Figure
from measure import best_of
from pool import PROMPTS, Pool
from rules import RULES
from scipy import stats

UNITS = {"faster": "onsets/s", "brighter": "octaves", "c_major": "correlation"}
BESIDE = ("text_alignment", "judged_text", "quality", "diversity")
Cells = dict[str, dict[str, Any]]
WAYS = (*RATES, "rloo_guided")


def main() -> None:
    """Print all tables as Markdown, and draw what one would rather look at."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--cells", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    pool = Pool(asked.pool)
    cells = {
        folder.name: {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))}
        for folder in sorted(asked.cells.iterdir())
    }
    base = cells["known"]["base"]
    cells["known"] |= cells.get("as_played", {})
    print("\n".join(_known(cells["known"], base, pool)))
    if "other_judge" in cells:
        print("\n".join(_arms(cells["other_judge"], base, "CLAP's text alignment as reward")))
    if "staged" in cells:
        print("\n".join(_arms(cells["staged"], base, "R, U, RU and mixed")))
    if "noise" in cells:
        print("\n".join(_noise(cells["noise"])))
        _draw_noise(cells["noise"], asked.out / "noise.png")
    _draw_known(cells["known"], base, pool, asked.out / "reward_kl.png")


def _known(cells: Cells, base: dict[str, Any], pool: Pool) -> list[str]:
    lines = [
        "", "### Against known truth", "",
        "| rule | way | moved, deviations of the base's clips | nats per clip | text alignment "
        "| other judge | quality | variety |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for rule in RULES:
        lines.append(
            f"| {rule} ({base[rule]:.2f} {UNITS[rule]}) | base | 0 | 0 | "
            + " | ".join(f"{base[name]:.3f}" for name in BESIDE) + " |"
        )  # fmt: skip
        for objective in WAYS:
            found = [
                cell for name, cell in cells.items() if name.startswith(f"{rule}-{objective}-")
            ]
            if not found:
                continue
            moved = [(cell[rule] - base[rule]) / base[f"{rule}_sd"] for cell in found]
            lines.append(
                f"| | {objective}, seeds: {len(found)} | {_interval(moved)} | "
                f"{np.mean([cell['kl'] for cell in found]):.1f} | "
                + " | ".join(f"{np.mean([cell[name] for cell in found]):.3f}" for name in BESIDE)
                + " |"
            )
        for count in (2, 4):
            moved, nats = _best(pool, rule, count)
            lines.append(
                f"| | best of {count}, no training | {moved:+.2f} | {nats:.2f} at most | | | | |"
            )
    return lines


def _best(pool: Pool, rule: str, count: int) -> tuple[float, float]:
    """How far best-of-N moves on the pool's prompts, in deviations of its clips."""
    values = pool.values[rule].reshape(len(PROMPTS), -1)
    best, nats = best_of(values, count)
    return (best - values.mean()) / values.std(ddof=1), nats


def _arms(cells: Cells, base: dict[str, Any], title: str) -> list[str]:
    names = ("c_major", "text_alignment", "judged_text", "quality", "diversity", "kl")
    lines = ["", f"### {title}", "", f"| | seeds | {' | '.join(names)} |", "|---" * 8 + "|"]
    arms = dict.fromkeys(name.rsplit("-", 1)[0] for name in cells)
    rows = {"base": [base], **{arm: [c for n, c in cells.items() if n.rsplit("-", 1)[0] == arm]
                               for arm in arms}}  # fmt: skip
    for arm, found in rows.items():
        shown = [_plus([cell[name] for cell in found]) for name in names]
        lines.append(f"| {arm} | {len(found)} | {' | '.join(shown)} |")
    return lines


def _noise(cells: Cells) -> list[str]:
    lines = [
        "", "### A reward learned from labels", "",
        "| rule | pairs | 0 % wrong | 10 % | 30 % |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for rule in RULES:
        for count in COUNTS:
            shown = [
                _interval(cells[f"reward-{rule}-{count}-{share}"]["accuracy"], sign=False)
                for share in (0.0, 0.1, 0.3)
            ]
            lines.append(f"| {rule} | {count} | {' | '.join(shown)} |")
    return lines


def _interval(values: Sequence[float], sign: bool = True) -> str:
    """Mean with Student's 95 % interval."""
    mean, count = float(np.mean(values)), len(values)
    form = "+.2f" if sign else ".3f"
    if count < 2:
        return f"{mean:{form}}"
    half = stats.t.ppf(0.975, count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return f"{mean:{form}} ({mean - half:{form}} to {mean + half:{form}})"


def _plus(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{np.mean(values):.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.3f}"


def _draw_known(cells: Cells, base: dict[str, Any], pool: Pool, path: Path) -> None:
    figure = Figure(figsize=(10, 3.4), dpi=120, layout="constrained")
    for axes, rule in zip(figure.subplots(1, 3), RULES, strict=True):
        for objective in WAYS:
            found = [
                cell for name, cell in cells.items() if name.startswith(f"{rule}-{objective}-")
            ]
            across = [cell["kl"] for cell in found]
            up = [(cell[rule] - base[rule]) / base[f"{rule}_sd"] for cell in found]
            axes.plot(across, up, "o", markersize=5, alpha=0.8, label=objective)
        curve = [_best(pool, rule, count) for count in (1, 2, 3, 4, 5)]
        axes.plot(
            [nats for _, nats in curve], [moved for moved, _ in curve], color="black",
            linewidth=1, label="best of 1 to 5",
        )  # fmt: skip
        axes.axhline(0, color="grey", linewidth=0.6)
        axes.set(title=rule, xlabel="nats per clip from the base")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("moved, deviations of the base's clips")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _draw_noise(cells: Cells, path: Path) -> None:
    figure = Figure(figsize=(10, 3), dpi=120, layout="constrained")
    for axes, rule in zip(figure.subplots(1, 3, sharey=True), RULES, strict=True):
        for share in (0.0, 0.1, 0.3):
            up = [np.mean(cells[f"reward-{rule}-{n}-{share}"]["accuracy"]) for n in COUNTS]
            axes.semilogx(COUNTS, up, marker="o", label=f"{share:.0%} wrong labels")
        axes.axhline(0.5, color="grey", linewidth=0.6)
        axes.set(title=rule, xlabel="pairs", xticks=COUNTS, xticklabels=COUNTS)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("held-out pairs right")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    main()
