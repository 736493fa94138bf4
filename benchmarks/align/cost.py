"""What alignment costs: rollouts per second, and memory with one model or two.

    OMP_NUM_THREADS=1 python benchmarks/align/cost.py [--shape small] [--clips 16] [--seconds 3]

Rollouts are those of the engine beside transformers' own ``generate``, each in turn, medians of
three. Memory is the peak of a process of its own for one REINFORCE step, above that of the same
process with the model loaded, with the reference by switching the adapter off, and with a second
copy of the model for it.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psutil
import torch
from rules import TRAIN

from musictune.bench.decode_models import build_model, find_shape
from musictune.generation import Engine, Sampling
from musictune.methods.peft import Peft
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen
from musictune.training.policy import Reference, likelihood


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="mini")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--memory", choices=("one", "two"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.memory:
        print(_memory(_model(asked.shape), asked.clips, asked.seconds, asked.memory == "two"))
        return
    _speed(_model(asked.shape), asked.clips, asked.seconds)
    peaks = {}
    for way in ("one", "two"):
        command = [sys.executable, __file__, *sys.argv[1:], "--memory", way]
        peaks[way] = float(subprocess.run(command, check=True, capture_output=True).stdout)
        print(f"| step with {way} model(s) | {peaks[way]:.0f} MB above the loaded model |")
    print(
        f"| saved | {peaks['two'] - peaks['one']:.0f} MB, {peaks['one'] / peaks['two']:.2f} of it |"
    )


def _model(shape: str) -> MusicGen:
    return build_model(find_shape(shape), torch.device("cpu"))


def _speed(model: MusicGen, clips: int, seconds: float) -> None:
    prompts = [TRAIN[i % len(TRAIN)] for i in range(clips)]
    policy = Sampling(top_k=0, guidance=1.0)
    ways: dict[str, Callable[[], object]] = {
        "engine, the policy itself": lambda: Engine(model).rollout(
            prompts, seconds, 0, policy, batch=clips
        ),
        "engine, guidance 3": lambda: Engine(model).rollout(prompts, seconds, 0, batch=clips),
        "transformers, guidance 3": lambda: model.rollout(prompts, seconds, 0),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - began)
    for name, seconds_each in taken.items():
        speed = clips / statistics.median(seconds_each)
        print(f"| {name} | {speed:.2f} rollouts of {seconds:g} s per second |")


def _memory(model: MusicGen, clips: int, seconds: float, second: bool) -> float:
    """MB that a step of likelihood, divergence and gradients takes at its peak."""
    method = Peft(kind="lora")
    method.attach(model)
    frames = model.frames(seconds)
    codes = torch.randint(model.vocabulary, (clips, model.codebooks, frames))
    batch = Batch(codes, torch.full((clips,), frames), tuple(TRAIN[:1]) * clips)
    process = psutil.Process()
    before, peak, done = process.memory_info().rss, 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    # A copy of the decoder is the least that a second model needs; its step is the same.
    copied = copy.deepcopy(model.backbone) if second else None
    found = likelihood(model, batch, Reference(model, method))
    (found.kl.mean() - found.tokens.mean()).backward()
    done.set()
    watcher.join()
    del copied
    return (peak - before) / 1e6


if __name__ == "__main__":
    main()
