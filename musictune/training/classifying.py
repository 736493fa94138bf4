"""Tuning an audio encoder to labels, and keeping what does best on validation clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from musictune.methods.base import TuningMethod
from musictune.methods.linear_probe import LinearProbe
from musictune.metrics.base import NotComputed
from musictune.metrics.classification import classification_scores
from musictune.models.classifier import Classifier, LabelledBatch, label_loss
from musictune.training.adapting import Adapting
from musictune.training.best import KeepHighest
from musictune.training.settings import TrainingSettings

_TIE = 1e-3  # what a nat of loss counts for beside accuracy


class Classifying(Adapting):
    """Cross-entropy of labels through a new head and what ``method`` trains in the encoder.

    Args:
        model: an encoder with ``method`` attached, a head among it.
        method: what is trained and saved.
        settings: the run's numbers.
        held_out: validation batches.
        head_lr: peak learning rate of the head.
        start, optimizer_state: of a run that goes on.
    """

    def __init__(
        self,
        model: Classifier,
        method: TuningMethod,
        settings: TrainingSettings,
        held_out: Sequence[LabelledBatch] = (),
        head_lr: float = LinearProbe.learning_rate,
        start: int = 0,
        optimizer_state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(model, method, settings, held_out, start, optimizer_state)
        self.head_lr = head_lr
        self._heard: tuple[int, Tensor] | None = None

    def each(self, batch: LabelledBatch) -> Tensor:
        """``(clips,)`` nats."""
        return self.model.nll(batch)

    def rates(self) -> dict[str, tuple[float, list[nn.Parameter]]]:
        """The head at a rate of its own, all else at the method's, each sorted by name."""
        trained = sorted((n, p) for n, p in self.named_parameters() if p.requires_grad)
        head = [p for n, p in trained if n.startswith("model.head.")]
        encoder = [p for n, p in trained if not n.startswith("model.head.")]
        rate = self.settings.lr or self.method.encoder_learning_rate
        groups = {"encoder": (rate, encoder), "head": (self.head_lr, head)}
        return {name: group for name, group in groups.items() if group[1]}

    def answers(self) -> tuple[Tensor, Tensor]:
        """``(clips, classes)`` probabilities and targets of the validation clips, on the CPU."""
        logits, targets = self._held_out()
        model: Any = self.model
        return logits.sigmoid() if model.multi_label else logits.softmax(-1), targets

    def held_out_loss(self) -> float | None:
        """Mean over the validation clips in nats, without dropout."""
        if not self.held_out:
            return None
        model: Any = self.model
        return float(label_loss(*self._held_out(), model.multi_label).mean())

    def _held_out(self) -> tuple[Tensor, Tensor]:
        """Scores before softmax, and targets; heard once per step, however many ask."""
        model: Any = self.model
        if self._heard is None or self._heard[0] != self.step:
            with self.still():
                found = [model.logits(b.inputs, b.lengths).cpu() for b in self.held_out]
            self._heard = self.step, torch.cat(found)
        return self._heard[1], torch.cat([batch.targets for batch in self.held_out])


class KeepMostAccurate(KeepHighest):
    """Keeps the step that names most validation clips rightly; of equals that with the lower loss.

    Where several labels can be true of a clip, mean average precision takes accuracy's place.

    Args:
        module: whose answers count.
        folder: gets ``best-NNNNNN``.
    """

    columns = ("validation_accuracy", "validation_score", "stopped")
    chosen_by: ClassVar[str] = "validation_score"

    def __init__(self, module: Classifying, folder: Path) -> None:
        super().__init__(folder)
        self.module = module

    def score(self, step: int) -> dict[str, float]:
        """The figure to choose by, and that with the loss breaking ties."""
        answers, targets = self.module.answers()
        model: Any = self.module.model
        value = figure(answers, targets, model.multi_label)
        loss = self.module.held_out_loss() or 0.0
        return {
            "validation_accuracy": value,
            "validation_score": value - _TIE * min(loss, 10.0),
        }


def figure(answers: Tensor, targets: Tensor, multi_label: bool) -> float:
    """Accuracy, or mean average precision where several labels can be true; 0 if unknown."""
    name = "mean_average_precision" if multi_label else "accuracy"
    score = classification_scores(answers, targets, multi_label, intervals=False)[name]
    return 0.0 if isinstance(score, NotComputed) else score.value
