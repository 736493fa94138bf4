"""Tuning towards rewards of what the model itself plays (REINFORCE, RLOO, GRPO, imitation)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from musictune.methods.base import TuningMethod
from musictune.methods.storage import load_json, load_tensors, save_json, save_tensors
from musictune.metrics.base import Reward
from musictune.models.musicgen import MusicGen
from musictune.training.objectives import Played, RolloutObjective
from musictune.training.policy import Likelihood, Reference, likelihood, part_of
from musictune.training.rounds import Rollouts, Round
from musictune.training.settings import TrainingSettings
from musictune.training.tuning import Tuning

_VALUE_RATE = 1e-2
_GAIN, _FASTEST = 0.1, 0.2
"""Of the controller of the divergence (Ziegler et al. 2019, arXiv 1909.08593), per step."""


class Reinforce(Tuning):
    """Plays, values, and makes what was worth more likelier, dropout off.

    Args:
        model: a base with ``method`` attached.
        method: what is trained and saved.
        objective: what is lowered.
        rollouts: what plays.
        rewards: one per stage.
        stages: the step each stage begins at, the first at 0; then the reference is marked anew.
        reference: the policy as it was.
        settings: the run's numbers; ``batch`` clips per pass, all of a round in a step.
        updates: steps on the clips of one round.
        target_kl: nats per token to stay at by moving the weight of the divergence; 0 for none.
        start, optimizer_state: of a run that goes on.
        checkpoint: of that run.
    """

    def __init__(
        self,
        model: MusicGen,
        method: TuningMethod,
        objective: RolloutObjective,
        rollouts: Rollouts,
        rewards: Sequence[Reward],
        stages: Sequence[int],
        reference: Reference,
        settings: TrainingSettings,
        updates: int = 1,
        target_kl: float = 0.0,
        start: int = 0,
        optimizer_state: dict[str, Any] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        super().__init__(model, method, settings, (), start, optimizer_state)
        self.objective, self.rollouts, self.reference = objective, rollouts, reference
        self.rewards, self.stages = list(rewards), list(stages)
        self.updates, self.target_kl = updates, target_kl
        self.beta = objective.beta
        self.round: Round | None = None
        self.value_head: nn.Linear | None = None
        if objective.needs_values:
            self.value_head = nn.Linear(model.backbone.config.hidden_size, 1)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
            self.value_head.to(model.device)
        self.columns = ("reward", "reward_spread", "kl", "entropy", "beta", "stage")
        if checkpoint is not None:
            self._restore(checkpoint)

    @property
    def music(self) -> MusicGen:
        """The model."""
        return cast(MusicGen, self.model)

    def stage_at(self, step: int) -> int:
        """The stage that ``step`` belongs to."""
        return max(i for i, first in enumerate(self.stages) if first <= step)

    def before_step(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Play a round if the last one has been learned from."""
        super().before_step(optimizer, step)
        self.model.eval()  # dropout would make the policy another than the one that played
        if step in self.stages[1:]:
            self.reference.mark()
        number = step // self.updates
        if self.round is not None and self.round.number == number:
            return
        played = self.rollouts.play(number, self.rewards[self.stage_at(step)])
        self.round = replace(played, sampled=self._sampled(played)) if self.updates > 1 else played

    def loss(self, batch: Any) -> Tensor:
        """Mean over the clips of a pass of the objective, and the method's penalty."""
        assert self.round is not None
        played, places = self.round, batch
        found = self._likelihood(played, places)
        device = found.tokens.device
        weights = self.objective.advantages(played.rewards, played.groups)
        sampled = found.tokens.detach()
        if played.sampled is not None:
            sampled = played.sampled[places].to(device)
        values = None
        if self.value_head is not None:
            values = self.value_head(found.states)[..., 0]
        seen = Played(
            found.tokens, sampled, found.kl, found.mask, weights[places].to(device), values
        )
        loss = self.objective.loss(seen, self.beta).mean()
        self.parts = {"loss": float(loss.detach()), **self._told(found, played)}
        penalty = self.method.penalty(self.model)
        return loss if penalty is None else loss + penalty

    def after_step(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Move the weight of the divergence towards what keeps it at its target."""
        super().after_step(optimizer, step)
        if not self.target_kl:
            return
        kl = sum(one["kl"] for one in self.passes) / len(self.passes)
        error = max(-_FASTEST, min(_FASTEST, kl / self.target_kl - 1))
        self.beta = max(self.beta, 1e-6) * (1 + _GAIN * error)

    def rates(self) -> dict[str, tuple[float, list[nn.Parameter]]]:
        """Those of tuning, and that of the values."""
        found = super().rates()
        if self.value_head is None:
            return found
        own = list(self.value_head.parameters())
        ids = {id(p) for p in own}
        rest = {
            name: (rate, [p for p in group if id(p) not in ids])
            for name, (rate, group) in found.items()
        }
        return rest | {"values": (_VALUE_RATE, own)}

    def write(self, folder: Path) -> None:
        """The adapter and what a run needs to go on: reference, values, round, weight."""
        super().write(folder)
        self.reference.save(folder)
        save_json({"beta": self.beta}, folder / "reinforce.json")
        if self.value_head is not None:
            save_tensors(dict(self.value_head.state_dict()), folder / "values.safetensors")
        if self.round is not None and self.updates > 1:
            self.round.save(folder)

    def _restore(self, folder: Path) -> None:
        self.reference.load(folder)
        self.beta = float(load_json(folder / "reinforce.json")["beta"])
        if self.value_head is not None:
            self.value_head.load_state_dict(load_tensors(folder / "values.safetensors"))
        self.round = Round.load(folder)

    def _likelihood(self, played: Round, places: Sequence[int]) -> Likelihood:
        guidance = self.rollouts.sampling.guidance
        return likelihood(self.music, part_of(played.batch, places), self.reference, guidance)

    @torch.no_grad()
    def _sampled(self, played: Round) -> Tensor:
        size, rows = self.settings.batch, []
        for at in range(0, len(played.batch), size):
            places = range(at, min(at + size, len(played.batch)))
            part, guidance = part_of(played.batch, places), self.rollouts.sampling.guidance
            rows.append(likelihood(self.music, part, None, guidance).tokens.cpu())
        return torch.cat(rows)

    def _told(self, found: Likelihood, played: Round) -> dict[str, float]:
        tokens = found.mask.sum()
        means = played.rewards.double().reshape(-1, self.rollouts.group)
        return {
            "reward": float(played.rewards.double().mean()),
            "reward_spread": float(means.std(1, correction=0).mean()),
            "kl": float(found.kl.detach().sum() / tokens),
            "entropy": float(found.entropy.sum() / tokens),
            "beta": self.beta,
            "stage": float(self.stage_at(self.step)),
        }
