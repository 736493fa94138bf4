"""What tuning shares, whatever the model does with sound: a method, and batches held out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musictune.methods.adapter import save_adapter
from musictune.methods.base import TuningMethod
from musictune.models.base import TunableModel
from musictune.training.settings import TrainingSettings
from musictune.training.stepped import Stepped


class Adapting(Stepped):
    """Lowers a model's own loss through the weights that ``method`` trains.

    Args:
        model: a base with ``method`` attached.
        method: what is trained and saved.
        settings: the run's numbers.
        held_out: batches that are never trained on, the same each time.
        start, optimizer_state: of a run that goes on.
    """

    def __init__(
        self,
        model: TunableModel,
        method: TuningMethod,
        settings: TrainingSettings,
        held_out: Sequence[Any] = (),
        start: int = 0,
        optimizer_state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(settings, start, optimizer_state)
        self.model = model
        self.method = method
        self.held_out = list(held_out)
        self.half = any(p.dtype == torch.bfloat16 for p in model.backbone.parameters())

    @abstractmethod
    def each(self, batch: Any) -> Tensor:
        """``(clips,)`` losses of a batch as the stream gives it."""

    def loss(self, batch: Any) -> Tensor:
        """Mean over clips, and the method's penalty."""
        loss = self.each(batch).mean()
        penalty = self.method.penalty(self.model)
        return loss if penalty is None else loss + penalty

    def before_step(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """The method's own."""
        self.method.before_step(self.model, optimizer, step, self.settings.steps)

    def after_step(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """The method's own."""
        self.method.after_step(self.model, optimizer, step, self.settings.steps)

    def held_out_loss(self) -> float | None:
        """Mean over the held-out clips, without dropout."""
        if not self.held_out:
            return None
        with self.still():
            losses = [self.each(batch) for batch in self.held_out]
        return float(torch.cat(losses).mean())

    @contextmanager
    def still(self) -> Iterator[None]:
        """Inside, the model listens as it will when it is used, in the run's precision."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                yield
        finally:
            self.model.train(training)

    def write(self, folder: Path) -> None:
        """A whole adapter: a checkpoint can be listened to."""
        save_adapter(self.model, self.method, folder / "adapter")
