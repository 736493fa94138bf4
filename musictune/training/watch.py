"""What becomes of the model while it is aligned: reward, divergence, variety and what it forgets.

Held-out prompts are played with the same seeds each time, as a listener would ask for them, and
scored by the reward itself and by what it does not reward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import CheckFailed
from musictune.generation import Engine, Sampling
from musictune.metrics.base import Reward
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen
from musictune.training.best import KeepHighest
from musictune.training.callbacks import read_metrics
from musictune.training.policy import Reference, likelihood, part_of

_TOGETHER = 8  # clips whose tokens are weighed at a time

Diversity = Callable[[Sequence[Clip], Sequence[int]], float]
"""How varied clips of one prompt are, mean over prompts, of clips and the prompt each is of."""


class Watch(KeepHighest):
    """Scores held-out prompts, keeps the adapter of the highest reward, and sees a collapse.

    Args:
        model: the policy.
        reference: what the divergence is from.
        prompts: never trained on.
        seeds: clips of each.
        seconds: of each clip.
        seed: of the first; the same at every look.
        rewards: what is kept for, one per stage; another stage starts anew. None: nothing is kept.
        stage_at: the stage of a step.
        beside: what else is measured, by column.
        diversity: how varied the clips of a prompt are; None to leave it out.
        least_diversity: share of the untrained model's below which the run ends; 0 for never.
        folder: gets ``best-NNNNNN``; the run's ``metrics.csv`` is beside it.
        spoken: what rewards read in place of a prompt.
        keeps: whether anything is kept; else all is only measured.
    """

    chosen_by = "held_out_reward"

    def __init__(
        self,
        model: MusicGen,
        reference: Reference,
        prompts: Sequence[str],
        seeds: int,
        seconds: float,
        seed: int,
        rewards: Sequence[Reward],
        stage_at: Callable[[int], int],
        beside: Mapping[str, Reward],
        diversity: Diversity | None,
        least_diversity: float,
        folder: Path,
        spoken: Callable[[str], str] = str,
        keeps: bool = True,
    ) -> None:
        super().__init__(folder)
        self.model, self.reference = model, reference
        self.prompts = [prompt for prompt in prompts for _ in range(seeds)]
        self.groups = [place for place in range(len(prompts)) for _ in range(seeds)]
        self.seconds, self.seed = seconds, seed
        self.rewards, self.stage_at = list(rewards), stage_at
        self.beside, self.diversity = dict(beside), diversity
        self.least_diversity, self.spoken = least_diversity, spoken
        self.keeps = keeps and bool(rewards)
        self.columns = (
            *(["held_out_reward", "held_out_reward_error"] if rewards else []),
            "held_out_kl", "held_out_entropy", "diversity", *self.beside, "stopped",
        )  # fmt: skip
        self._first: float | None = None

    def score(self, step: int) -> dict[str, float]:
        """All columns."""
        made, _ = Engine(self.model).rollout(
            self.prompts, self.seconds, self.seed, Sampling(), batch=_TOGETHER
        )
        read = replace(made, texts=tuple(self.spoken(text) for text in made.texts))
        clips = self.model.decode(read)
        found: dict[str, float] = {}
        if self.rewards:
            stage = self.stage_at(step)
            if self.stage_at(self._kept) != stage:
                self._highest = -math.inf  # another reward's values do not compare
            values = self.rewards[stage](clips).double()
            if not values.isfinite().all():
                raise CheckFailed(f"the reward of held-out clips at step {step} is no number")
            found["held_out_reward"] = float(values.mean())
            if len(values) > 1:
                found["held_out_reward_error"] = float(values.std() / math.sqrt(len(values)))
        for name, judge in self.beside.items():
            found[name] = float(judge(clips).double().mean())
        if self.diversity is not None:
            found["diversity"] = self.diversity(clips, self.groups)
        found |= self._divergence(made)
        return found

    def refuse(self, scores: dict[str, float]) -> str:
        """When the clips of a prompt have become too much alike."""
        if not self.least_diversity or "diversity" not in scores:
            return ""
        first, now = self._before(), scores["diversity"]
        if first is None or now >= self.least_diversity * first:
            return ""
        return (
            f"clips of one prompt differ by {now:.3f} where they differed by {first:.3f} before "
            "training: the music has lost its variety"
        )

    def better(self, scores: dict[str, float]) -> bool:
        """Whether to keep this one."""
        return self.keeps and super().better(scores)

    def _before(self) -> float | None:
        if self._first is None:
            rows = read_metrics(self.folder.parent / "metrics.csv", 0)
            told = [row["diversity"] for row in rows if row.get("diversity")]
            self._first = float(told[0]) if told else None
        return self._first

    @torch.no_grad()
    def _divergence(self, batch: Batch) -> dict[str, float]:
        totals = torch.zeros(3, dtype=torch.float64)
        for at in range(0, len(batch), _TOGETHER):
            part = part_of(batch, range(at, min(at + _TOGETHER, len(batch))))
            found = likelihood(self.model, part, self.reference)
            sums: list[Tensor] = [found.kl.sum(), found.entropy.sum(), found.mask.sum()]
            totals += torch.stack([value.double().cpu() for value in sums])
        kl, entropy, count = totals.tolist()
        return {"held_out_kl": kl / count, "held_out_entropy": entropy / count}
