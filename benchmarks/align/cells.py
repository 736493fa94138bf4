"""Runs on `mini`, each a file of figures, so that an interrupted table goes on where it was.

    python benchmarks/align/pool.py --out POOL
    OMP_NUM_THREADS=1 python benchmarks/align/cells.py known --pool POOL --out CELLS
    OMP_NUM_THREADS=1 python benchmarks/align/cells.py as_played --pool POOL --out CELLS
    OMP_NUM_THREADS=1 python benchmarks/align/cells.py other_judge --pool POOL --out CELLS
    OMP_NUM_THREADS=1 python benchmarks/align/cells.py staged --pool POOL --out CELLS
    OMP_NUM_THREADS=1 python benchmarks/align/cells.py noise --pool POOL --out CELLS
    python benchmarks/align/tables.py --pool POOL --cells CELLS --out benchmarks/align

``--part 0/2`` and ``--part 1/2`` share the runs between two processes, one per core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from measure import SECONDS, evaluate
from pool import PROMPTS, Pool, pool_features
from rules import RULES
from torch import Tensor

from musictune.audio import Clip
from musictune.metrics.alignment import TextAlignment
from musictune.metrics.base import Reward
from musictune.metrics.combined import Weighted
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.quality import SignalQuality
from musictune.models import load_model
from musictune.training.align import Towards, align
from musictune.training.align_recipe import load_align_recipe
from musictune.training.feature_reward import RewardSettings, train_reward
from musictune.training.objectives import PairObjective
from musictune.training.objectives.registry import find_objective

PAIRS = 800
RATES = {"dpo": 1e-3, "kto": 1e-3, "rloo": 1e-3, "grpo": 1e-3}
STEPS = {"dpo": 200, "kto": 100, "rloo": 36, "grpo": 36}
COUNTS = (50, 200, 950)
"""Pairs a reward learns from; four fifths of the pool have no more."""
Cell = tuple[str, Callable[[], dict[str, Any]]]


def run(
    objective: str, towards: Towards, seed: int, steps: int, lr: float, **changes: object
) -> dict[str, Any]:
    """Align `mini` and measure what became of it."""
    paired = issubclass(find_objective(objective), PairObjective)
    values: dict[str, object] = {
        "training.steps": steps, "training.lr": lr, "training.seconds": SECONDS,
        "training.batch": 4 if paired else 8, "training.seed": seed, "training.keep": "last",
        "training.warmup": 5, "training.score_every": steps, "training.score_seeds": 1,
        "training.checkpoint_every": 0, "align.held_out_prompts": 0.15,
        "align.least_diversity": 0.0,
    }  # fmt: skip
    recipe = load_align_recipe(overrides=values | changes, method="lora", objective=objective)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        found = align(load_model("mini", "cpu"), recipe, towards, out, report=False)
        cpu = time.process_time() - began
        facts = {k: v for k, v in found.facts.items() if k.startswith("held_out_accuracy")}
        prefix = f"{recipe.concepts[0].trigger} " if recipe.concepts else ""
        return {**evaluate(out / "adapter", prefix=prefix), **facts, "cpu_seconds": cpu}


def known(pool: Pool, seeds: Sequence[int]) -> Iterator[Cell]:
    """Each rule by each objective: pairs labelled by it, or the rule as reward."""
    yield "base", lambda: evaluate(None)
    for seed in seeds:
        for rule, reward in RULES.items():
            for objective, rate in RATES.items():
                paired = issubclass(find_objective(objective), PairObjective)

                def cell(
                    rule: str = rule, reward: Reward = reward, objective: str = objective,
                    rate: float = rate, paired: bool = paired, seed: int = seed,
                ) -> dict[str, Any]:  # fmt: skip
                    if paired:
                        pairs = pool.pairs(pool.labelled(rule, PAIRS, seed, clear=2 / 3))
                        towards = Towards(pairs=pairs)
                    else:
                        towards = Towards(PROMPTS, rewards=[reward])
                    return run(objective, towards, seed, STEPS[objective], rate)

                yield f"{rule}-{objective}-{seed}", cell


def other_judge(pool: Pool, seeds: Sequence[int]) -> Iterator[Cell]:
    """CLAP's text alignment as reward, for longer and longer; the other judge is not asked."""
    for seed in seeds:
        for steps in (10, 30, 60):
            yield (
                f"clap-rloo-{steps}-{seed}",
                lambda steps=steps, seed=seed: run(  # type: ignore[misc]
                    "rloo", Towards(PROMPTS, rewards=[_clap()]), seed, steps, RATES["rloo"],
                    **{"objective.beta": 0.0},
                ),
            )  # fmt: skip


def staged(pool: Pool, seeds: Sequence[int]) -> Iterator[Cell]:
    """MusicRL's R (quality and text), U (a reward learned from votes), R then U, and both mixed.

    The votes are for C major, which R knows nothing of.
    """
    user = _Learned(pool, "c_major")
    first = Weighted({"quality": (SignalQuality(), 1.0), "text": (_clap(), 1.0)})
    mixed = Weighted(
        {"quality": (SignalQuality(), 0.5), "text": (_clap(), 0.5), "user": (user, 1.0)}
    )
    arms = {"R": [first], "U": [user], "RU": [first, user], "mixed": [mixed]}
    for seed in seeds:
        for name, rewards in arms.items():
            yield (
                f"{name}-{seed}",
                lambda rewards=rewards, seed=seed: run(  # type: ignore[misc]
                    "rloo", Towards(PROMPTS, rewards=rewards), seed, 30, RATES["rloo"]
                ),
            )


def noise(pool: Pool, seeds: Sequence[int]) -> Iterator[Cell]:
    """A learned reward's accuracy on unseen prompts, by number of pairs and wrong labels."""
    for rule in RULES:
        for count in COUNTS:
            for share in (0.0, 0.1, 0.3):
                yield (
                    f"reward-{rule}-{count}-{share}",
                    lambda rule=rule, count=count, share=share: {  # type: ignore[misc]
                        "accuracy": [_accuracy(pool, rule, count, share, seed) for seed in range(8)]
                    },
                )


def _accuracy(pool: Pool, rule: str, count: int, share: float, seed: int) -> float:
    """Of a reward learned on four fifths of the prompts, on the others' clear third of pairs."""
    held = {prompt for i, prompt in enumerate(PROMPTS) if i % 5 == seed % 5}
    every = pool.labelled(rule, len(pool.places()), seed, clear=1 / 3)
    unseen = [(i, j) for i, j in every if pool.texts[i] in held]
    noisy = pool.labelled(rule, len(pool.places()), seed, share)
    learned = [(i, j) for i, j in noisy if pool.texts[i] not in held][:count]
    reward, _ = train_reward(
        pool.features[[i for i, _ in learned]], pool.features[[j for _, j in learned]],
        [pool.texts[i] for i, _ in learned], RewardSettings(held_out=0.0, seed=seed),
    )  # fmt: skip
    right = reward(pool.features[[i for i, _ in unseen]]) > reward(
        pool.features[[j for _, j in unseen]]
    )
    return float(right.float().mean())


@cache
def _clap() -> Reward:
    return TextAlignment(ClapEmbedder.load(None))


class _Learned:
    """Reward: Bradley-Terry on the pool's features, from 1,000 pairs that a rule labelled."""

    def __init__(self, pool: Pool, rule: str) -> None:
        places = pool.labelled(rule, 1000, 0)
        self.hears = pool_features()
        self.reward, _ = train_reward(
            pool.features[[i for i, _ in places]], pool.features[[j for _, j in places]],
            [pool.texts[i] for i, _ in places], RewardSettings(held_out=0.0),
        )  # fmt: skip

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        return self.reward(torch.stack([self.hears.hear(clip) for clip in clips])).float()


def as_played(pool: Pool, seeds: Sequence[int]) -> Iterator[Cell]:
    """The policy is the model under guidance 3, as it is played when it is measured."""
    for seed in seeds:
        for rule, reward in RULES.items():
            yield (
                f"{rule}-rloo_guided-{seed}",
                lambda reward=reward, seed=seed: run(  # type: ignore[misc]
                    "rloo", Towards(PROMPTS, rewards=[reward]), seed, STEPS["rloo"], RATES["rloo"],
                    **{"align.guidance": 3.0},
                ),
            )  # fmt: skip


EXPERIMENTS = {
    "known": known,
    "as_played": as_played,
    "other_judge": other_judge,
    "staged": staged,
    "noise": noise,
}


def main() -> None:
    """One experiment, or this process's share of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", default="0/1", help="which of how many processes")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    folder = asked.out / asked.experiment
    folder.mkdir(parents=True, exist_ok=True)
    own, parts = (int(number) for number in asked.part.split("/"))
    cells = list(EXPERIMENTS[asked.experiment](Pool(asked.pool), range(asked.seeds)))
    for number, (name, cell) in enumerate(cells):
        path = folder / f"{name}.json"
        if number % parts != own or path.exists():
            continue
        found = cell()
        path.write_text(json.dumps(found))
        print(name, {k: round(v, 3) for k, v in found.items() if isinstance(v, float)}, flush=True)


if __name__ == "__main__":
    main()
