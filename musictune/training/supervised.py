"""Training a classifier: any module from inputs to scores per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musictune.methods.storage import save_tensors
from musictune.training.settings import TrainingSettings
from musictune.training.stepped import Stepped

Labelled = tuple[Any, Tensor]
"""Inputs of any type the model reads, and ``(clips,)`` int64 classes."""


class Supervised(Stepped):
    """Cross-entropy of ``model(inputs)``, ``(clips, classes)``, against labels.

    Args:
        model: its trainable parameters are trained.
        settings: the run's numbers.
        held_out: labelled batches that are never trained on.
        start, optimizer_state: of a run that goes on.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainingSettings,
        held_out: Sequence[Labelled] = (),
        start: int = 0,
        optimizer_state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(settings, start, optimizer_state)
        self.model = model
        self.held_out = list(held_out)

    def loss(self, batch: Labelled) -> Tensor:
        """Mean cross-entropy in nats."""
        inputs, labels = batch
        return F.cross_entropy(self.model(inputs).float(), labels)

    def held_out_loss(self) -> float | None:
        """Mean cross-entropy over the held-out clips."""
        scores = self._scores()
        return None if scores is None else float(F.cross_entropy(*scores))

    def accuracy(self) -> float | None:
        """Share of held-out clips whose highest score is their label; None if none are held out."""
        scores = self._scores()
        return None if scores is None else float((scores[0].argmax(1) == scores[1]).float().mean())

    def write(self, folder: Path) -> None:
        """``model.safetensors`` with the trained weights."""
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        save_tensors(trained, folder / "model.safetensors")

    @torch.no_grad()
    def _scores(self) -> tuple[Tensor, Tensor] | None:
        if not self.held_out:
            return None
        training = self.model.training
        self.model.eval()
        try:
            scores = torch.cat([self.model(inputs).float() for inputs, _ in self.held_out])
        finally:
            self.model.train(training)
        return scores, torch.cat([labels for _, labels in self.held_out]).to(scores.device)
