"""How far a tuned model moved by a rule's own measure, and what that cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rules import HELD_OUT, RULES
from torch import Tensor

from musictune.audio import Clip
from musictune.bench.judged import JudgedText
from musictune.generation import Engine, Sampling
from musictune.methods import attach_adapter
from musictune.metrics.alignment import TextAlignment
from musictune.metrics.diversity import prompt_diversity
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.quality import SignalQuality
from musictune.models import load_model
from musictune.models.base import Batch
from musictune.training.policy import Reference, likelihood, part_of

SECONDS, SEEDS, FIRST = 3.0, 6, 900_000
Measure = Callable[[Sequence[Clip]], Tensor]


def measures() -> dict[str, Measure]:
    """By name: the rules, CLAP's text alignment, another judge's, and signal quality."""
    clap = ClapEmbedder.load(None)
    return {
        **RULES,
        "text_alignment": TextAlignment(clap),
        "judged_text": JudgedText(),
        "quality": SignalQuality(),
    }


def evaluate(adapter: Path | None, seeds: int = SEEDS, prefix: str = "") -> dict[str, float]:
    """Means over held-out prompts, played as a listener would ask for them.

    Args:
        adapter: of the model; None for the base.
        seeds: clips of each prompt, the same ones for all models.
        prefix: put before every prompt, but not read by judges.
    """
    model = load_model("mini", "cpu")
    method = attach_adapter(model, adapter) if adapter else None
    prompts = [prompt for prompt in HELD_OUT for _ in range(seeds)]
    groups = [place for place in range(len(HELD_OUT)) for _ in range(seeds)]
    made, _ = Engine(model).rollout(
        [prefix + prompt for prompt in prompts], SECONDS, FIRST, Sampling(), batch=16
    )
    clips = model.decode(replace(made, texts=tuple(prompts)))
    found: dict[str, float] = {}
    for name, measure in measures().items():
        values = measure(clips).double()
        found[name] = float(values.mean())
        found[f"{name}_sd"] = float(values.std())
    clap = ClapEmbedder.load(None)
    found["diversity"] = prompt_diversity(clap.audio(clips), groups)
    found["kl"] = divergence(model, method, made) if method else 0.0
    return found


@torch.no_grad()
def divergence(model: object, method: object, made: Batch) -> float:
    """Nats per clip of the model from its base over ``made``, without guidance."""
    reference = Reference(model, method)  # type: ignore[arg-type]
    total = 0.0
    for at in range(0, len(made), 12):
        part = part_of(made, range(at, min(at + 12, len(made))))
        total += float(likelihood(model, part, reference).kl.sum())  # type: ignore[arg-type]
    return total / len(made)


def best_of(values: np.ndarray, count: int) -> tuple[float, float]:
    """Expected best of ``count`` of the values in each row, mean over rows; nats at most.

    Args:
        values: ``(prompts, clips)``, more clips than ``count``.
        count: how many are drawn.
    """
    ranked = np.sort(values, 1)
    clips = values.shape[1]
    # Chance that the i-th smallest is the largest of those drawn.
    chance = [math.comb(i, count - 1) / math.comb(clips, count) for i in range(clips)]
    return float((ranked * chance).sum(1).mean()), math.log(count) - (count - 1) / count
