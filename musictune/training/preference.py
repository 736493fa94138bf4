"""Tuning towards what was preferred, from pairs that are there already (DPO and its kin)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from musictune import console
from musictune.methods.base import TuningMethod
from musictune.models.musicgen import MusicGen
from musictune.training.objectives import Compared, PairObjective
from musictune.training.pairs import Pairs
from musictune.training.policy import Reference, clip_likelihood
from musictune.training.settings import TrainingSettings
from musictune.training.tuning import Tuning


class Preference(Tuning):
    """Lowers a pair objective, dropout off, through the weights that ``method`` trains.

    The reference is asked once for each pair, before training: a step then costs what plain tuning
    on the two clips would.

    Args:
        model: a base with ``method`` attached.
        method: what is trained and saved.
        objective: what is lowered.
        pairs: what to train on.
        held: pairs that are never trained on.
        reference: the policy as it was.
        settings: the run's numbers.
        start, optimizer_state: of a run that goes on.
    """

    def __init__(
        self,
        model: MusicGen,
        method: TuningMethod,
        objective: PairObjective,
        pairs: Pairs,
        held: Pairs,
        reference: Reference,
        settings: TrainingSettings,
        start: int = 0,
        optimizer_state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(model, method, settings, (), start, optimizer_state)
        self.objective = objective
        self.pairs, self.held, self.reference = pairs, held, reference
        words = objective.marks
        self.marks = (words[0].trigger, words[1].trigger) if words else ("", "")
        self.columns = ("margin", "accuracy", "drift", "held_out_accuracy")
        self._before = self._asked(pairs, "asking the reference")
        self._held_before = self._asked(held, "")

    @property
    def music(self) -> MusicGen:
        """The model."""
        return cast(MusicGen, self.model)

    def loss(self, batch: Any) -> Tensor:
        """Mean over pairs of the objective, and the method's penalty."""
        self.model.eval()  # dropout would make policy and reference differ by chance
        compared = self._compared(self.pairs, batch, self._before)
        loss = self.objective.loss(compared).mean()
        penalty = self.method.penalty(self.model)
        self.parts = {"loss": float(loss.detach()), **_told(compared)}
        return loss if penalty is None else loss + penalty

    @torch.no_grad()
    def held_out_loss(self) -> float | None:
        """Mean of the objective over held-out pairs."""
        if not len(self.held):
            return None
        self.model.eval()
        losses, right, size = [], [], self.settings.batch
        for at in range(0, len(self.held), size):
            places = list(range(at, min(at + size, len(self.held))))
            compared = self._compared(self.held, places, self._held_before)
            losses.append(self.objective.loss(compared))
            right.append(_right(compared))
        self.figures["held_out_accuracy"] = float(torch.cat(right).mean())
        return float(torch.cat(losses).mean())

    def _compared(self, pairs: Pairs, places: Sequence[int], before: Tensor) -> Compared:
        found, tokens = clip_likelihood(self.music, pairs.batch(places, self.marks))
        reference = before[list(places)].to(found.device)
        chosen, rejected = found.chunk(2)
        long, short = tokens.chunk(2)
        return Compared(
            chosen, rejected, reference[:, 0], reference[:, 1], long, short,
            self._mismatched(pairs, places) if self.objective.needs_mismatched else None,
        )  # fmt: skip

    @torch.no_grad()
    def _mismatched(self, pairs: Pairs, places: Sequence[int]) -> Tensor:
        """Log-ratios of clips under the prompts of the pairs after them."""
        count = len(pairs)
        others = [(place + 1) % count for place in places]
        batch = pairs.batch(places, self.marks)
        texts = pairs.batch(others, self.marks).texts
        strange = type(batch)(batch.codes, batch.lengths, texts)
        with self.reference():
            before, _ = clip_likelihood(self.music, strange)
        now, _ = clip_likelihood(self.music, strange)
        return now - before

    @torch.no_grad()
    def _asked(self, pairs: Pairs, title: str) -> Tensor:
        """``(pairs, 2)`` log-likelihoods of chosen and rejected clips under the reference."""
        if not self.objective.needs_reference or not len(pairs):
            return torch.zeros(len(pairs), 2)
        self.model.eval()
        rows, size = [], self.settings.batch
        starts: Any = range(0, len(pairs), size)
        with self.reference():
            for at in console.track(starts, title) if title else starts:
                places = range(at, min(at + size, len(pairs)))
                found, _ = clip_likelihood(self.music, pairs.batch(places, self.marks))
                rows.append(torch.stack(found.chunk(2), 1).cpu())
        return torch.cat(rows)

    def write(self, folder: Path) -> None:
        """The adapter, and the reference where it is not the base."""
        super().write(folder)
        self.reference.save(folder)


def _margin(pairs: Compared) -> Tensor:
    """How much more the policy prefers the chosen clips than the reference does, in nats."""
    chosen = pairs.chosen - pairs.chosen_reference
    return (chosen - (pairs.rejected - pairs.rejected_reference)).detach()


def _right(pairs: Compared) -> Tensor:
    """1 where the policy leans the right way, a half where it does not lean, else 0."""
    return (_margin(pairs).sign() + 1) / 2


def _told(pairs: Compared) -> dict[str, float]:
    """Figures of a batch: ``drift`` is nats per token that chosen clips became likelier."""
    margin = _margin(pairs)
    drift = (pairs.chosen.detach() - pairs.chosen_reference) / pairs.chosen_tokens
    return {
        "margin": float(margin.mean()),
        "accuracy": float(_right(pairs).mean()),
        "drift": float(drift.mean()),
    }
