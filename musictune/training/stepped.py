"""What all training modules share: optimiser, schedule, chance, and stopping at nonsense."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from musictune.errors import CheckFailed
from musictune.training.optimizer import SparseAdamW
from musictune.training.settings import TrainingSettings


class Stepped(pl.LightningModule, ABC):
    """AdamW with linear warm-up and a cosine to zero, resumable to the bit.

    The rate, the batches and the seed of dropout depend on the step alone, so a resumed run needs
    nothing but the weights, the optimiser's moments and the number of steps done.

    Args:
        settings: the run's numbers.
        start: steps done before this process.
        optimizer_state: what AdamW held then.

    Attributes:
        last_checkpoint: the newest one that is known to be good.
        columns: of ``metrics.csv`` that ``parts`` fills.
        passes: of the current step: the loss of each, and other columns that ``loss`` reports.
        parts: set by ``loss``: what to report of its value, by column; a ``loss`` there is reported
            in place of the value.
        figures: what callbacks add to the current step's row of ``metrics.csv``.
        half: whether its frozen weights are bf16 themselves, so that none need be cast.
        stopped: why the run ends before its last step; empty if it does not.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        start: int = 0,
        optimizer_state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.strict_loading = False
        self.settings = settings
        self.start = start
        self.last_checkpoint: Path | None = None
        self.columns: tuple[str, ...] = ()
        self.passes: list[dict[str, float]] = []
        self.parts: dict[str, float] = {}
        self.figures: dict[str, float] = {}
        self.half = False
        self.stopped = ""
        self._optimizer_state = optimizer_state

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The training loss, a scalar."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write what has been learned so far, for a checkpoint."""

    def before_step(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Called before the first pass of each optimiser step; ``step`` are done."""

    def after_step(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Called after the optimiser moved, with the same ``step``; checkpoints come later."""

    def held_out_loss(self) -> float | None:
        """The loss on what is held out, the same crops each time; None if nothing is."""
        return None

    def rates(self) -> dict[str, tuple[float, list[nn.Parameter]]]:
        """Groups of trained parameters with their peak rates. Their order must not change."""
        trained = sorted((n, p) for n, p in self.named_parameters() if p.requires_grad)
        return {"all": (self.settings.lr or 1e-3, [p for _, p in trained])}

    @property
    def step(self) -> int:
        """Optimiser steps done, over all processes of this run."""
        return self.start + self.trainer.global_step

    @property
    def rate(self) -> float:
        """The first group's current learning rate."""
        peak = next(iter(self.rates().values()))[0]
        return peak * self.settings.rate_at(self.step)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One forward pass; a loss that is no number stops the run."""
        place = self.start * self.settings.accumulate + batch_idx
        if place % self.settings.accumulate == 0:
            self.before_step(self.trainer.optimizers[0], self.step)
        torch.manual_seed(seed_at(self.settings.seed, place))
        self.parts = {}
        loss = self.loss(batch)
        self._check(loss, "loss")
        self.passes.append({"loss": float(loss.detach())} | self.parts)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the trained parameters, as it was left if this run goes on."""
        optimizer = SparseAdamW(self.groups(), self)
        if self._optimizer_state is not None:
            optimizer.load_state_dict(self._optimizer_state)
            self._optimizer_state = None
        return optimizer

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's own, and :meth:`after_step`."""
        step = self.step
        super().optimizer_step(*args, **kwargs)
        self.after_step(self.trainer.optimizers[0], step)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient, refuse one that is no number, set this step's rate."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)
        self._check(norm, "gradient")
        self.set_rate(optimizer)

    def set_rate(self, optimizer: torch.optim.Optimizer) -> None:
        """Each group's rate for the step that is being made."""
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * self.settings.rate_at(self.step)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Only what is trained: Lightning's own checkpoints stay as small as the adapter."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        full = super().state_dict(*args, **kwargs)
        return {name: value for name, value in full.items() if name in trained}

    def groups(self) -> list[dict[str, Any]]:
        """What an optimiser trains: parameters with their rate, peak rate and weight decay."""
        return [
            {"params": group, "lr": peak, "peak": peak, "weight_decay": self.decay(name)}
            for name, (peak, group) in self.rates().items()
            if group
        ]

    def decay(self, group: str) -> float:
        """Weight decay of one of the groups of ``rates``."""
        return self.settings.weight_decay

    def _check(self, value: Tensor, what: str) -> None:
        if torch.isfinite(value).all():
            return
        good = (
            f"the last good checkpoint is {self.last_checkpoint}"
            if self.last_checkpoint
            else ("there is no checkpoint yet")
        )
        raise CheckFailed(
            f"the {what} became {float(value)} at step {self.step + 1}; {good}; "
            f"lower the learning rate (now {self.rate:.3g}) or use precision fp32"
        )


def seed_at(seed: int, place: int) -> int:
    """A seed for the ``place``-th pass of a run with ``seed``."""
    digest = hashlib.sha256(f"{seed}:{place}".encode()).digest()
    return int.from_bytes(digest[:7])
