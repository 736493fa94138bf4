"""The study's cells as tables in Markdown and a picture.

python benchmarks/classify/tables.py --cells CELLS --out benchmarks/classify
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from arms import ARMS, PLACES
from scipy.stats import spearmanr, t
from study import EPOCHS, TASKS, chosen, slug

BESIDE = ["linear", "full", "lora", "convolution", *PLACES]
Cells = dict[tuple[str, str, int], list[dict[str, Any]]]


def read(folder: Path, names: Sequence[str], kind: str) -> Cells:
    """Cells of a table by name, task and clips per class."""
    found: Cells = defaultdict(list)
    for name in names:
        for file in sorted(folder.glob(f"{slug(f'{kind} {name} ')}*.json")):
            cell = json.loads(file.read_text())
            if cell["cell"].startswith(f"{kind} {name} {cell['task']}"):
                found[name, cell["task"], cell["shots"]].append(cell)
    return found


def shown(cells: Sequence[dict[str, Any]]) -> str:
    """Mean and deviation over seeds, in percent."""
    values = [100 * cell["accuracy"] for cell in cells]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def mean(cells: Cells, name: str, tasks: Sequence[str] = TASKS) -> float:
    """Over tasks and numbers of clips, in percent."""
    rows = [cells[name, task, shots] for task in tasks for shots in EPOCHS]
    return 100 * statistics.fmean(cell["accuracy"] for row in rows for cell in row)


def few_shot(cells: Cells, folder: Path) -> list[str]:
    """A table per task, best mean first."""
    lines: list[str] = []
    names = [name for name in ARMS if all(cells[name, task, s] for task in TASKS for s in EPOCHS)]
    for task in TASKS:
        lines += [
            f"### {task}", "",
            "| method | weights | rate | " + " | ".join(f"{s} per class" for s in EPOCHS)
            + " | mean | CPU s at 16 |",
            "|---|---|---|" + "---|" * (len(EPOCHS) + 2),
        ]  # fmt: skip
        for name in sorted(names, key=lambda n: -mean(cells, n, [task])):
            some = cells[name, task, 16]
            cost = statistics.median(cell["cpu_seconds"] for cell in some)
            lines.append(
                f"| {name} | {some[0]['parameters']:,} | {chosen(folder, name):g} | "
                + " | ".join(shown(cells[name, task, shots]) for shots in EPOCHS)
                + f" | {mean(cells, name, [task]):.1f} | {cost:.0f} |"
            )
        lines.append("")
    return lines


def ranking(cells: Cells) -> list[str]:
    """Ours beside the paper's."""
    names = [
        name for name, arm in ARMS.items()
        if arm.paper is not None and all(cells[name, task, s] for task in TASKS for s in EPOCHS)
    ]  # fmt: skip
    ours = {name: mean(cells, name) for name in names}
    most = {
        name: 100 * statistics.fmean(c["accuracy"] for task in TASKS for c in cells[name, task, 16])
        for name in names
    }
    theirs = {name: float(ARMS[name].paper or 0) for name in names}
    lines = [
        "| method | paper, mean of four sets | its rank | ours, mean | rank | ours at 16 | rank |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in sorted(names, key=lambda n: -theirs[n]):
        lines.append(
            f"| {name} | {theirs[name]:.1f} | {rank(theirs, name)} | {ours[name]:.1f} | "
            f"{rank(ours, name)} | {most[name]:.1f} | {rank(most, name)} |"
        )
    for what, found in (("over all", ours), ("at 16 per class", most)):
        result = spearmanr([theirs[n] for n in names], [found[n] for n in names])
        lines += [
            "", f"Rank correlation with the paper, {what}: {result.statistic:.2f} "
            f"(p = {result.pvalue:.3f}, {len(names)} methods).",
        ]  # fmt: skip
    return lines


def over_linear(cells: Cells) -> list[str]:
    """Each method less the linear probe on the same clips with the same seed, in points."""
    lines = ["| method | all | families | styles | 16 per class |", "|---|---|---|---|---|"]
    names = [name for name in ARMS if name != "linear" and cells[name, TASKS[0], 16]]
    for name in sorted(names, key=lambda n: -mean(cells, n)):
        row = [difference(cells, name, tasks, EPOCHS) for tasks in (TASKS, TASKS[:1], TASKS[1:])]
        row.append(difference(cells, name, TASKS, [16]))
        lines.append(f"| {name} | {' | '.join(row)} |")
    return lines


def difference(cells: Cells, name: str, tasks: Sequence[str], shots: Iterable[int]) -> str:
    """The mean over tasks, clips per class and seeds, with its 95 % interval over those pairs."""
    points = [
        100 * (one["accuracy"] - other["accuracy"])
        for task in tasks
        for count in shots
        for one in cells[name, task, count]
        for other in cells["linear", task, count]
        if one["seed"] == other["seed"]
    ]
    error = statistics.stdev(points) / len(points) ** 0.5
    reach = float(t.ppf(0.975, len(points) - 1)) * error
    middle = statistics.fmean(points)
    return f"{middle:+.1f} ({middle - reach:+.1f} to {middle + reach:+.1f})"


def rank(values: dict[str, float], name: str) -> int:
    """1 for the highest."""
    return 1 + sum(other > values[name] for other in values.values())


def placements(cells: Cells) -> list[str]:
    """The bottleneck adapter in each place, and other methods after as many epochs."""
    lines = ["| | " + " | ".join(TASKS) + " |", "|---|" + "---|" * len(TASKS)]
    for name in BESIDE:
        row = " | ".join(shown(cells[name, task, 16]) for task in TASKS)
        lines.append(f"| {name} | {row} |")
    return lines


def costs(folder: Path) -> list[str]:
    """Seconds and memory of a step, as a share of full tuning's."""
    lines: list[str] = []
    for shape in ("mini", "base"):
        file = folder / f"cost_{shape}.json"
        if not file.is_file():
            continue
        rows = json.loads(file.read_text())
        full = next(row for row in rows if row["method"] == "full")
        lines += [
            f"### {'The bundled AST' if shape == 'mini' else 'The shape of AST-base'}", "",
            "| method | weights | seconds a step | of full | MB | of full |",
            "|---|---|---|---|---|---|",
            *(
                f"| {row['method']} | {row['parameters']:,} | {row['seconds']:.2f} | "
                f"{row['seconds'] / full['seconds']:.2f} | {row['bytes'] / 1e6:.0f} | "
                f"{row['bytes'] / full['bytes']:.2f} |"
                for row in rows
            ), "",
        ]  # fmt: skip
    return lines


def draw(cells: Cells, path: Path) -> None:
    """Accuracy over clips per class, a panel per task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(TASKS), sharey=False)
    names = [name for name in ARMS if all(cells[name, task, s] for task in TASKS for s in EPOCHS)]
    names.sort(key=lambda name: -mean(cells, name))
    for axes, task in zip(panels, TASKS, strict=True):
        for number, name in enumerate(names):
            values = [
                100 * statistics.fmean(c["accuracy"] for c in cells[name, task, shots])
                for shots in EPOCHS
            ]
            style = ("-", "--", ":")[number // 5]
            axes.plot(list(EPOCHS), values, style, marker="o", markersize=3, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(EPOCHS), [str(shots) for shots in EPOCHS])
        axes.set(title=task, xlabel="clips per class", ylabel="accuracy, %")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path)


def main() -> None:
    """Print the tables and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    few = read(asked.cells, list(ARMS), "few")
    parts = {
        "Few clips per class": few_shot(few, asked.cells),
        "Less the linear probe, pair by pair": over_linear(few),
        "Beside the paper": ranking(few),
        "Where an adapter sits": placements(read(asked.cells, BESIDE, "place")),
        "What a step costs": costs(asked.cells),
    }
    for title, lines in parts.items():
        print("\n".join([f"## {title}", "", *lines, ""]))
    draw(few, asked.out / "few_shot.png")


if __name__ == "__main__":
    main()
