"""What a step of each method costs in seconds and memory, each in a process of its own.

    python benchmarks/classify/cost.py --out CELLS                 # the bundled AST
    python benchmarks/classify/cost.py --shape base --out CELLS    # the shape of AST-base, random

Batch 8 of 35 classes; at the shape of AST-base spectrograms of 1.28 s, where the study had 1 s.
Peak memory is that of the process less what it had with the model loaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from arms import ARMS, changes

from musictune.methods.base import trained_parameters
from musictune.models.classifier import Classifier, LabelledBatch
from musictune.training.classify_recipe import load_classify_recipe

CLASSES, BATCH, STEPS = 35, 8, 4
# The paper's own sizes at the paper's own shape.
BASE_SIZES: dict[str, dict[str, object]] = {
    "shallow prompt": {"length": 300}, "deep prompt": {"length": 25}, "prefix": {"length": 12},
    "lora": {"options": {"r": 6, "lora_alpha": 12}, "targets": "query,value"},
    "bottleneck": {"width": 12}, "bottleneck houlsby": {"width": 12, "configuration": "houlsby"},
    "convolution": {"width": 8}, "convolution houlsby": {"width": 8, "configuration": "houlsby"},
    "pivotal": {"count": 221_000, "selection": "magnitude"},
}  # fmt: skip


def encoder(shape: str) -> Classifier:
    """The bundled AST, or random weights in the shape of AST-base."""
    if shape == "mini":
        return Classifier.load("mini", seconds=2.56)
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    from musictune.models.front import Spectrogram

    network = ASTForAudioClassification(ASTConfig(max_length=128))
    return Classifier(network, Spectrogram(ASTFeatureExtractor(max_length=128)), "base", 1.28)


def measure(shape: str, name: str) -> dict[str, Any]:
    """Median seconds of a step and bytes at its peak."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    arm = ARMS[name]
    options = BASE_SIZES.get(name, {}) if shape == "base" else arm.options
    recipe = load_classify_recipe(sets=changes(options), method=arm.method)
    model = encoder(shape)
    batch = LabelledBatch(
        torch.randn(BATCH, model.steps, model.front.bands), torch.full((BATCH,), model.steps),
        torch.eye(CLASSES)[torch.arange(BATCH)],
    )  # fmt: skip
    labels = [str(number) for number in range(CLASSES)]
    method = recipe.with_head(labels, False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    method.prepare(model, iter([batch] * 1000))
    method.attach(model)
    model.train()
    trained = list(trained_parameters(model).values())
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    seconds = []
    for _ in range(STEPS):
        began = time.process_time()
        optimizer.zero_grad()
        model.nll(batch).mean().backward()
        optimizer.step()
        seconds.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    head = int(method.describe()["head_parameters"])
    return {
        "method": name, "shape": shape, "seconds": statistics.median(seconds[1:]),
        "bytes": (peak - before) * 1024, "head": head,
        "parameters": sum(p.numel() for p in trained) - head,
    }  # fmt: skip


def main() -> None:
    """Each method in a process, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=("mini", "base"), default="mini")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=ARMS, help="measure this one here")
    asked = parser.parse_args()
    if asked.only:
        print(json.dumps(measure(asked.shape, asked.only)))
        return
    rows = []
    for name in ARMS:
        command = [sys.executable, __file__, "--shape", asked.shape, "--out", str(asked.out)]
        done = subprocess.run(
            [*command, "--only", name], check=True, capture_output=True, text=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(
            f"{name}: {rows[-1]['parameters']:,} weights, {rows[-1]['seconds']:.2f} s, "
            f"{rows[-1]['bytes'] / 1e6:.0f} MB",
            flush=True,
        )
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / f"cost_{asked.shape}.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
