"""Music of the base that all runs share: many prompts, a few clips each, and what rules say of it.

python benchmarks/align/pool.py --out POOL
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from measure import SECONDS, measures
from safetensors.torch import load_file, save_file

from musictune.console import track
from musictune.generation import Engine
from musictune.metrics.embedders import ClapEmbedder
from musictune.models import load_model
from musictune.training.pairs import Pairs
from musictune.training.reward_features import ClipFeatures, build_features

LEADS = (
    "piano", "acoustic guitar", "electric guitar and drums", "saxophone and double bass", "strings",
    "brass and drums", "flute and harp", "synth lead and drums", "organ", "accordion",
)  # fmt: skip
KINDS = ("jazz", "rock", "slow ballad", "folk song", "funk", "ambient", "march", "waltz")
PROMPTS = tuple(f"{kind} with {lead}" for kind in KINDS for lead in LEADS)
CLIPS = 6


def make(out: Path, clips: int = CLIPS) -> None:
    """Play the pool and measure it; ``pool.safetensors`` and ``pool.json``."""
    model = load_model("mini", "cpu")
    engine = Engine(model)
    heard: dict[str, list[float]] = {}
    rows, features, judges, hears = [], [], measures(), pool_features()
    for number, prompt in enumerate(track(PROMPTS, "pool")):
        made, _ = engine.rollout([prompt] * clips, SECONDS, 1000 * number, batch=clips)
        sound = model.decode(replace(made, texts=(prompt,) * clips))
        rows += list(made.codes)
        for name, judge in judges.items():
            heard.setdefault(name, []).extend(judge(sound).tolist())
        features += [hears.hear(clip) for clip in sound]
    out.mkdir(parents=True, exist_ok=True)
    tensors = {"codes": torch.stack(rows), "features": torch.stack(features).float()}
    save_file(tensors, out / "pool.safetensors")
    texts = [prompt for prompt in PROMPTS for _ in range(clips)]
    (out / "pool.json").write_text(json.dumps({"texts": texts, "values": heard}))


def pool_features() -> ClipFeatures:
    """What learned rewards hear: CLAP and the base's states, by a base of their own."""
    return build_features("both", ClapEmbedder.load(None), load_model("mini", "cpu"))


class Pool:
    """What :func:`make` wrote.

    Attributes:
        texts: the prompt of each clip.
        values: ``(clips,)`` by measure.
        codes: ``(clips, codebooks, frames)``.
        features: ``(clips, width)`` of `pool_features`.
    """

    def __init__(self, folder: Path) -> None:
        facts, tensors = (
            json.loads((folder / "pool.json").read_text()),
            load_file(folder / "pool.safetensors"),
        )
        self.texts: list[str] = facts["texts"]
        self.values = {name: np.array(values) for name, values in facts["values"].items()}
        self.codes, self.features = tensors["codes"].long(), tensors["features"]

    def places(self) -> list[tuple[int, int]]:
        """All pairs of clips of one prompt."""
        found = []
        for prompt in dict.fromkeys(self.texts):
            own = [i for i, text in enumerate(self.texts) if text == prompt]
            found += list(combinations(own, 2))
        return found

    def labelled(
        self, rule: str, count: int, seed: int, noise: float = 0.0, clear: float = 1.0
    ) -> list[tuple[int, int]]:
        """Pairs as (chosen, rejected) by a rule, a share of them turned round.

        Args:
            rule: of the pool's values.
            count: how many, drawn without replacement.
            seed: of the draw.
            noise: share of wrong labels.
            clear: share of all pairs to draw from, those that differ most.
        """
        random = np.random.default_rng(seed)
        values, pairs = self.values[rule], self.places()
        pairs = [(i, j) for i, j in pairs if values[i] != values[j]]
        pairs.sort(key=lambda pair: -abs(values[pair[0]] - values[pair[1]]))
        pairs = pairs[: round(clear * len(pairs))]
        drawn = [pairs[int(k)] for k in random.permutation(len(pairs))[:count]]
        right = [(i, j) if values[i] > values[j] else (j, i) for i, j in drawn]
        turned = set(random.permutation(len(right))[: round(noise * len(right))].tolist())
        return [(j, i) if k in turned else (i, j) for k, (i, j) in enumerate(right)]

    def pairs(self, places: list[tuple[int, int]]) -> Pairs:
        """As tokens."""
        return Pairs(
            tuple(self.texts[i] for i, _ in places),
            tuple(self.codes[i] for i, _ in places),
            tuple(self.codes[j] for _, j in places),
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    torch.set_num_threads(1)
    make(parser.parse_args().out)
