"""Tuning a music model on clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from musictune.data.tokens import Collated
from musictune.methods.base import TuningMethod
from musictune.models.base import MusicModel
from musictune.training.adapting import Adapting
from musictune.training.settings import TrainingSettings
from musictune.training.stream import Mixed, as_batch


class Tuning(Adapting):
    """Lowers the model's own loss on the clips, and keeps it low on the base's own music.

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
        super().__init__(model, method, settings, held_out, start, optimizer_state)
        self.columns = ("prior_loss",) if settings.prior else ()

    def each(self, batch: Mixed) -> Tensor:
        """``(clips,)`` nats per token."""
        return self.model.nll(as_batch(batch))

    def loss(self, batch: Mixed) -> Tensor:
        """Mean over clips of the loss per token, the method's penalty, and the prior's share."""
        each = self.each(batch)
        own = len(each) - batch.get("prior", 0)
        loss = each[:own].mean()
        penalty = self.method.penalty(self.model)
        loss = loss if penalty is None else loss + penalty
        if own == len(each):
            return loss
        prior = each[own:].mean()
        self.parts = {"loss": float(loss.detach()), "prior_loss": float(prior.detach())}
        return loss + self.settings.prior_weight * prior

    def rates(self) -> dict[str, tuple[float, list[nn.Parameter]]]:
        """The backbone's weights at ``lr``, new words at ``token_lr``, each sorted by name."""
        encoder = self.model.text_encoder
        words = {id(p) for p in encoder.parameters()} if encoder else set()
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
