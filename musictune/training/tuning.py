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
from musictune.training.stream import Mixed, as_batch


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
        self.half = any(p.dtype == torch.bfloat16 for p in model.backbone.parameters())
        self.columns = ("prior_loss",) if settings.prior else ()

    def loss(self, batch: Mixed) -> Tensor:
        """Mean over clips of the loss per token, the method's penalty, and the prior's share."""
        each = self.model.nll(as_batch(batch))
        own = len(each) - batch.get("prior", 0)
        loss = each[:own].mean()
        penalty = self.method.penalty(self.model)
        loss = loss if penalty is None else loss + penalty
        if own == len(each):
            return loss
        prior = each[own:].mean()
        self.parts = {"loss": float(loss.detach()), "prior_loss": float(prior.detach())}
        return loss + self.settings.prior_weight * prior

    def before_step(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """The method's own."""
        self.method.before_step(self.model, optimizer, step, self.settings.steps)

    def after_step(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """The method's own."""
        self.method.after_step(self.model, optimizer, step, self.settings.steps)

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

    def decay(self, group: str) -> float:
        """None for new words: their rows are no change of anything, and zero is no start."""
        return 0.0 if group == "tokens" else self.settings.weight_decay

    def write(self, folder: Path) -> None:
        """A whole adapter: a checkpoint can be listened to."""
        save_adapter(self.model, self.method, folder / "adapter")
