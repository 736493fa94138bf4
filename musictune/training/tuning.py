"""Tuning a music model on clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musictune.data.tokens import Collated
from musictune.methods.adapter import save_adapter
from musictune.methods.base import TuningMethod
from musictune.models.base import MusicModel
from musictune.training.settings import TrainingSettings
from musictune.training.stepped import Stepped
from musictune.training.stream import as_batch


class Tuning(Stepped):
    """Lowers the model's own loss on the clips, through the weights that ``method`` trains.

    Args:
        model: a base with ``method`` attached.
        method: what is trained and saved.
        settings: the run's numbers.
        held_out: batches with fixed crops that are never trained on.
        start, optimizer_state: of a run that goes on.
    """

    def __init__(
        self,
        model: MusicModel,
        method: TuningMethod,
        settings: TrainingSettings,
        held_out: Sequence[Collated] = (),
        start: int = 0,
        optimizer_state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(settings, start, optimizer_state)
        self.model = model
        self.method = method
        self.held_out = list(held_out)

    def loss(self, batch: Collated) -> Tensor:
        """Mean over clips of the loss per token, and the method's penalty."""
        loss = self.model.nll(as_batch(batch)).mean()
        penalty = self.method.penalty(self.model)
        return loss if penalty is None else loss + penalty

    @torch.no_grad()
    def held_out_loss(self) -> float | None:
        """Mean over the held-out clips, without dropout."""
        if not self.held_out:
            return None
        training = self.model.training
        self.model.eval()
        try:
            with self.trainer.precision_plugin.forward_context():
                losses = [self.model.nll(as_batch(batch)) for batch in self.held_out]
        finally:
            self.model.train(training)
        return float(torch.cat(losses).mean())

    def rates(self) -> dict[str, tuple[float, list[nn.Parameter]]]:
        """The backbone's weights at ``lr``, new words at ``token_lr``, each sorted by name."""
        words = {id(p) for p in self.model.text_encoder.parameters()}
        trained = sorted((n, p) for n, p in self.named_parameters() if p.requires_grad)
        backbone = [p for _, p in trained if id(p) not in words]
        tokens = [p for _, p in trained if id(p) in words]
        rate = self.settings.lr or self.method.learning_rate
        if not backbone:
            return {"tokens": (self.settings.lr or self.settings.token_lr, tokens)}
        return {"backbone": (rate, backbone), "tokens": (self.settings.token_lr, tokens)}

    def write(self, folder: Path) -> None:
        """A whole adapter: a checkpoint can be listened to."""
        save_adapter(self.model, self.method, folder / "adapter")
