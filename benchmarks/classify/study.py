"""The study of adapters for AST at our scale: every method, few clips per class, three seeds.

    python benchmarks/classify/data.py DATA
    OMP_NUM_THREADS=1 python benchmarks/classify/study.py rates --data DATA --out CELLS --part 0/2
    OMP_NUM_THREADS=1 python benchmarks/classify/study.py few --data DATA --out CELLS --part 0/2
    OMP_NUM_THREADS=1 python benchmarks/classify/study.py places --data DATA --out CELLS --part 0/2
    python benchmarks/classify/tables.py --cells CELLS --out benchmarks/classify

``--part 1/2`` is the other half of the cells, for a second core. Each cell is a file, so that an
interrupted table goes on where it was. Rates are chosen by validation clips with a seed that the
table does not use, never by test clips.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from arms import ARMS, PLACES, Arm, changes

from musictune.data.labelled import LabelledClips, read_labelled
from musictune.training.classify import Sounds, tune_classifier
from musictune.training.classify_recipe import load_classify_recipe

TASKS = ("families", "styles")
EPOCHS = {1: 30, 2: 20, 4: 12, 8: 8, 16: 6}
"""By clips of each class: what is heard more often where there is less of it."""
SEEDS = (0, 1, 2)
LONGER = 1  # seeds of the table of places, whose runs take twice as long
SECONDS = 2.56
_CHOOSING = 100  # a seed of its own
_HEARD: dict[str, Sounds] = {task: {} for task in TASKS}
Cell = tuple[str, Callable[[], dict[str, Any]]]


@cache
def clips(data: Path, task: str) -> LabelledClips:
    """A task's labelled clips."""
    return read_labelled(data / task)


def run(
    data: Path, task: str, arm: Arm, shots: int, seed: int, rate: float, longer: int = 1
) -> dict[str, Any]:
    """Tune `mini`, for ``longer`` times the epochs, and say what became of it."""
    epochs = longer * EPOCHS[shots]
    values: dict[str, object] = {
        "run.clips": str(data / task), "run.seconds": SECONDS, "run.shots": shots,
        "run.epochs": epochs, "run.validate_every": max(1, epochs // 2),
        "training.batch": 16, "training.seed": seed, "training.warmup": 5, "training.lr": rate,
        "augment.time_mask": 40,
    }  # fmt: skip
    recipe = load_classify_recipe(sets=changes(arm.options), overrides=values, method=arm.method)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        found = tune_classifier(
            recipe, Path(folder) / "run", device="cpu", clips=clips(data, task),
            sounds=_HEARD[task], report=False,
        ).facts  # fmt: skip
    head = int(found.get("head_parameters", 0))
    return {
        "task": task, "shots": shots, "seed": seed, "rate": rate,
        "accuracy": found["test"]["accuracy"]["value"],
        "macro_f1": found["test"]["macro_f1"]["value"],
        "validation": found["validation_kept"],
        "parameters": int(found["trained_parameters"]) - head, "head": head,
        "cpu_seconds": time.process_time() - began,
    }  # fmt: skip


def rates(data: Path, out: Path) -> Iterator[Cell]:
    """Each method at each rate that is tried, on validation clips."""
    for name, arm in ARMS.items():
        for rate in arm.rates if len(arm.rates) > 1 else ():
            for task in TASKS:
                yield (
                    f"rate {name} {rate:g} {task}",
                    lambda arm=arm, rate=rate, task=task: run(data, task, arm, 8, _CHOOSING, rate),
                )


def few(data: Path, out: Path) -> Iterator[Cell]:
    """The table: every method, every task, every number of clips, every seed."""
    for seed in SEEDS:
        for shots in sorted(EPOCHS, reverse=True):
            for name, arm in ARMS.items():
                for task in TASKS:
                    rate = chosen(out, name)
                    yield (
                        f"few {name} {task} {shots} {seed}",
                        lambda arm=arm, task=task, shots=shots, seed=seed, rate=rate: run(
                            data, task, arm, shots, seed, rate
                        ),
                    )


def places(data: Path, out: Path) -> Iterator[Cell]:
    """The bottleneck adapter in each place, beside others, with most clips and twice the epochs."""
    beside = {name: ARMS[name] for name in ("linear", "full", "lora", "convolution")}
    for seed in SEEDS[:LONGER]:
        for name, arm in (beside | PLACES).items():
            for task in TASKS:
                rate = chosen(out, name if name in ARMS else "bottleneck")
                yield (
                    f"place {name} {task} {seed}",
                    lambda arm=arm, task=task, seed=seed, rate=rate: run(
                        data, task, arm, 16, seed, rate, longer=2
                    ),
                )


def chosen(out: Path, name: str) -> float:
    """The rate with the highest mean validation accuracy over both tasks; of equals the lowest."""
    tried = ARMS[name].rates
    if len(tried) == 1:
        return tried[0]

    def mean(rate: float) -> float:
        files = [out / f"{slug(f'rate {name} {rate:g} {task}')}.json" for task in TASKS]
        return statistics.fmean(json.loads(file.read_text())["validation"] for file in files)

    return max(tried, key=lambda rate: (mean(rate), -rate))


def slug(name: str) -> str:
    """A file name."""
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in name)


def main() -> None:
    """Run the cells of one table that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=("rates", "few", "places"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", default="0/1", help="which share of the cells, as 0/2")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    part, parts = (int(number) for number in asked.part.split("/"))
    table = {"rates": rates, "few": few, "places": places}[asked.table]
    for number, (name, make) in enumerate(table(asked.data, asked.out)):
        file = asked.out / f"{slug(name)}.json"
        if number % parts != part or file.is_file():
            continue
        found = make()
        file.write_text(json.dumps({"cell": name, **found}, indent=1))
        print(f"{name}: {found['accuracy']:.3f} in {found['cpu_seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
