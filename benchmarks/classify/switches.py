"""What mask fine-tuning and self-distillation are worth: accuracy with and without, three seeds.

    OMP_NUM_THREADS=1 python benchmarks/classify/switches.py DATA/families --out FILE.json

The clips are split and drawn as ``musictune tune --task classify --seed`` does. Self-distillation
hears all training clips without their labels, those of few shots included, and no other; its
student is then tuned on the few. All else, rates too, is the same in every arm and not searched.
An interrupted table goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from musictune.data.heard import hear_all
from musictune.data.labelled import LabelledClips, read_labelled
from musictune.data.splits import split
from musictune.models.classifier import Classifier
from musictune.training.classify import Sounds, tune_classifier
from musictune.training.classify_recipe import load_classify_recipe
from musictune.training.masking import SHARE
from musictune.training.settings import TrainingSettings
from musictune.training.unfused import UnfusedSettings, warm_up

EPOCHS = {1: 40, 2: 30, 4: 20, 8: 15, 16: 10}
"""Of tuning, by clips of each class."""
ARMS = ("plain", "masked patches", "warm-up, random", "warm-up, base", "random weights")
"""The last, an encoder without any training, is what a warm-up from random weights must beat."""


def student(
    arm: str, clips: LabelledClips, asked: argparse.Namespace, seed: int, heard: Sounds, out: Path
) -> dict[str, Any]:
    """Write the encoder that ``arm`` is tuned from to ``out``; what is known of its making."""
    model = Classifier.load(asked.base, "cpu", asked.seconds)
    if arm == "random weights":
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            Classifier(
                type(model.network)(model.network.config), model.front, "", model.seconds
            ).save(out)
        return {}
    examples = split(clips, asked.validation, asked.test, seed).train
    missing = [example for example in examples if example not in heard]
    heard.update(zip(missing, hear_all(missing, model.front.hear), strict=True))
    settings = UnfusedSettings(epochs=asked.warm_epochs, start=arm.split()[-1], seed=seed)  # type: ignore[arg-type]
    training = TrainingSettings(batch=16, seed=seed, precision="fp32", weight_decay=0.1)
    sounds = [heard[example] for example in examples]
    facts = warm_up(model, sounds, settings, training, out.with_name(f"{out.name}-warm"))
    model.save(out)
    return facts


def run(
    arm: str, base: Path | str, clips: LabelledClips, asked: argparse.Namespace, shots: int,
    seed: int, heard: Sounds,
) -> float:  # fmt: skip
    """Accuracy on test clips."""
    values: dict[str, object] = {
        "run.clips": str(asked.data), "run.base": str(base), "run.seconds": asked.seconds,
        "run.shots": shots, "run.epochs": EPOCHS[shots], "run.validation": asked.validation,
        "run.test": asked.test, "run.mask_patches": SHARE if arm == "masked patches" else 0.0,
        "training.batch": 16, "training.seed": seed, "training.warmup": 5,
        "training.lr": asked.lr, "augment.time_mask": 40,
    }  # fmt: skip
    recipe = load_classify_recipe(overrides=values, method=asked.method)
    with tempfile.TemporaryDirectory() as folder:
        found = tune_classifier(
            recipe, Path(folder) / "run", device="cpu", clips=clips, sounds=heard, report=False
        )
    return float(found.facts["test"]["accuracy"]["value"])


def measured(
    arm: str, clips: LabelledClips, asked: argparse.Namespace, shots: list[int], seed: int,
    heard: Sounds,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A row for each number of shots, all tuned from one encoder."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        base, facts = asked.base, {}
        if arm not in ("plain", "masked patches"):
            base = Path(folder) / "student"
            facts = student(arm, clips, asked, seed, heard, base)
        warm = time.process_time() - began
        for number in shots:
            began = time.process_time()
            accuracy = run(arm, base, clips, asked, number, seed, heard)
            yield {
                "arm": arm, "shots": number, "seed": seed, "accuracy": accuracy,
                "warm_up_seconds": warm, "cpu_seconds": time.process_time() - began,
                "warm_up": facts,
            }  # fmt: skip


def main() -> None:
    """Run every arm and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="labelled clips")
    parser.add_argument("--out", type=Path, required=True, help="JSON with every figure")
    parser.add_argument("--base", default="mini")
    parser.add_argument("--method", default="full")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seconds", type=float, default=2.56)
    parser.add_argument("--shots", type=int, nargs="+", choices=EPOCHS, default=[4, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--warm-epochs", type=int, default=10)
    parser.add_argument("--validation", type=float, default=0.2)
    parser.add_argument("--test", type=float, default=0.2)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    clips, heard = read_labelled(asked.data), Sounds()
    rows: list[dict[str, Any]] = json.loads(asked.out.read_text()) if asked.out.is_file() else []
    for seed in asked.seeds:
        for arm in asked.arms:
            known = {row["shots"] for row in rows if (row["arm"], row["seed"]) == (arm, seed)}
            left = [shots for shots in asked.shots if shots not in known]
            if left:
                for row in measured(arm, clips, asked, left, seed, heard):
                    rows.append(row)
                    asked.out.write_text(json.dumps(rows, indent=1) + "\n")
                    print(f"{arm}, {row['shots']} shots, seed {seed}: {row['accuracy']:.3f}")
    print(table(rows, asked))


def table(rows: list[dict[str, Any]], asked: argparse.Namespace) -> str:
    """Means and deviations over seeds, and the mean difference from plain seed by seed."""
    lines = ["| arm | " + " | ".join(f"{n} shots | against plain" for n in asked.shots) + " |"]
    lines.append("|---" * (1 + 2 * len(asked.shots)) + "|")
    found = {(row["arm"], row["shots"], row["seed"]): row["accuracy"] for row in rows}
    for arm in asked.arms:
        cells = []
        for shots in asked.shots:
            values = [found[arm, shots, seed] for seed in asked.seeds]
            cells.append(spread(values))
            plain = [found.get(("plain", shots, seed)) for seed in asked.seeds]
            gains = [v - p for v, p in zip(values, plain, strict=True) if p is not None]
            cells.append(spread(gains, "+") if gains and arm != "plain" else "")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float], sign: str = "") -> str:
    """In percent."""
    each = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.fmean(values):{sign}.1f} ± {100 * each:.1f}"


if __name__ == "__main__":
    main()
