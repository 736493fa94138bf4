"""Self-distillation from pseudo-labels: an encoder warms up on clips that nobody has labelled.

UnFuSeD (Seth et al. 2023, arXiv 2303.05668): what an encoder hears in the clips is clustered, and
a student learns the clusters' numbers with heads at several depths, of which the last teaches the
others (Zhang et al. 2019, arXiv 1905.08094). The student is then tuned on labels as usual.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.files import system_errors
from musictune.methods.storage import load_tensors, save_tensors
from musictune.models.blocks import blocks
from musictune.models.classifier import Classifier, LabelledBatch, mean_tokens
from musictune.training.checkpoints import load_checkpoint
from musictune.training.labelled_stream import Augment, LabelledStream
from musictune.training.loop import fit
from musictune.training.pseudo_labels import features, pseudo_labels
from musictune.training.settings import TrainingSettings
from musictune.training.stepped import Stepped

Start = Literal["random", "base"]

_DEPTHS = (0.25, 0.5, 0.75)
_LEARNED = "student.safetensors"
_RATES: dict[str, float] = {"random": 1e-3, "base": 1e-4}
_RANGES = {
    "epochs": (0, 100_000), "dims": (1, 100_000), "clusters": (2, 100_000),
    "seed": (0, 2**32 - 1),  # scikit-learn's most
}  # fmt: skip


@dataclass(frozen=True)
class UnfusedSettings:
    """What is clustered and what the student's loss weighs.

    Attributes:
        epochs: how often every clip is heard before it is tuned on labels; 0 switches it off.
        lr: peak learning rate; 1e-3 from random weights and 1e-4 from the base's if not given.
        start: ``random``: the student begins with random weights, as in the paper; ``base``: with
            those of the encoder that was listened to.
        dims: principal components kept, at most.
        clusters: pseudo-labels, at most.
        heads: weight of the cross-entropy of the heads between.
        divergence: weight of their distance from the last head's probabilities.
        features: weight of their features' distance from the last head's.
        seed: of clustering and of the student's first weights.

    Raises:
        InputError: a value out of range.
    """

    epochs: int = 0
    lr: float | None = None
    start: Start = "random"
    dims: int = 128
    clusters: int = 32
    heads: float = 0.7
    divergence: float = 0.3
    features: float = 0.003
    seed: int = 0

    def __post_init__(self) -> None:
        if self.start not in _RATES:
            raise InputError(f"start {self.start!r} must be {' or '.join(_RATES)}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise InputError(f"lr {self.lr} must be a number above 0")
        for name, (least, most) in _RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise InputError(f"{name} {getattr(self, name)} must be from {least} to {most}")
        for name in ("heads", "divergence", "features"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} {value} must be 0 or more")


class Distillation(Stepped):
    """A student with heads at 1/4, 1/2 and 3/4 of its depth and at its end, on pseudo-labels.

    Ours: a head is a layer norm, whose output are its features, and a linear layer, on the mean
    over tokens. The last head is not taught by the others: where they are compared with it, no
    gradient goes into it or into the layers through it.

    Args:
        model: whose encoder is the student; all of it is trained.
        classes: how many pseudo-labels there are.
        weights: of the loss.
        settings: the run's numbers.
        start, optimizer_state: of a run that goes on.

    Raises:
        InputError: an encoder of a single layer, or of unknown layers.
    """

    def __init__(
        self,
        model: Classifier,
        classes: int,
        weights: UnfusedSettings,
        settings: TrainingSettings,
        start: int = 0,
        optimizer_state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(settings, start, optimizer_state)
        layers = blocks(model.backbone)
        depth = len(layers)
        places = [min(max(round(share * depth), 1), depth - 1) for share in _DEPTHS]
        self.between = [layers[place - 1].name for place in dict.fromkeys(places) if place]
        if not self.between:
            raise InputError(
                f"base {model.base} has a single layer, and none between; switch unfused off"
            )
        self.model = model
        self.weights = weights
        self.columns = ("last_head", "heads", "divergence", "features")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(weights.seed)
            self.heads = nn.ModuleList(
                _Head(model.width, classes) for _ in range(len(self.between) + 1)
            )
        self.heads.to(model.device)
        model.requires_grad_(False)
        model.backbone.requires_grad_(True)

    def answers(self, batch: LabelledBatch) -> tuple[list[Tensor], list[Tensor]]:
        """``(clips, classes)`` scores and ``(clips, width)`` features of each head in order."""
        states: list[Tensor] = []

        def keep(module: nn.Module, given: Any, found: Any) -> None:
            states.append(found[0] if isinstance(found, tuple) else found)

        modules = [self.model.backbone.get_submodule(name) for name in self.between]
        hooks = [module.register_forward_hook(keep) for module in modules]
        try:
            last, heard = self.model.states(batch.inputs, batch.lengths)
        finally:
            for hook in hooks:
                hook.remove()
        pairs = [
            head(mean_tokens(state, heard))
            for head, state in zip(self.heads, [*states, last], strict=True)
        ]
        return [scores for scores, _ in pairs], [found for _, found in pairs]

    def loss(self, batch: LabelledBatch) -> Tensor:
        """The four terms, weighted; each is reported without its weight."""
        batch = batch.to(self.model.device)
        found = terms(*self.answers(batch), batch.targets)
        self.parts = {name: float(value.detach()) for name, value in found.items()}
        ours = self.weights
        loss = found["last_head"] + ours.heads * found["heads"]
        return loss + ours.divergence * found["divergence"] + ours.features * found["features"]

    def rates(self) -> dict[str, tuple[float, list[nn.Parameter]]]:
        """All at the weights' own ``lr``, not at that of the method which comes after."""
        rate = self.weights.lr or _RATES[self.weights.start]
        return {"all": (rate, [p for _, p in sorted(self._learned().items())])}

    def write(self, folder: Path) -> None:
        """``student.safetensors``: the encoder and the heads."""
        save_tensors(self._learned(), folder / _LEARNED)

    @torch.no_grad()
    def read(self, folder: Path) -> None:
        """Take over what :meth:`write` wrote.

        Raises:
            InputError: missing, damaged, or of another encoder or number of classes.
        """
        learned, kept = self._learned(), load_tensors(folder / _LEARNED)
        shapes = {name: tensor.shape for name, tensor in kept.items()}
        if shapes != {name: parameter.shape for name, parameter in learned.items()}:
            raise InputError(
                f"checkpoint {folder} is of another encoder or other clips; start again with "
                "--overwrite"
            )
        for name, parameter in learned.items():
            parameter.copy_(kept[name])

    def _learned(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def terms(
    scores: Sequence[Tensor], features: Sequence[Tensor], targets: Tensor
) -> dict[str, Tensor]:
    """The loss of each kind, in nats but for the last, means over clips and sums over heads.

    Args:
        scores: ``(clips, classes)`` of each head, the last last.
        features: ``(clips, width)`` of the same heads.
        targets: ``(clips, classes)`` shares of classes.

    Returns:
        ``last_head`` and ``heads``: cross-entropy; ``divergence``: Kullback-Leibler divergence of
        a head's probabilities from the last head's, ``sum h (log h - log last)``; ``features``:
        mean squared difference. In the latter two the last head is a fixed target, which is ours.
    """
    *logs, last = [one.float().log_softmax(-1) for one in scores]
    *between, final = [one.float() for one in features]
    teacher, goal = last.detach(), final.detach()

    def cross_entropy(log: Tensor) -> Tensor:
        return -(targets * log).sum(1).mean()

    return {
        "last_head": cross_entropy(last),
        "heads": torch.stack([cross_entropy(log) for log in logs]).sum(),
        "divergence": torch.stack(
            [(log.exp() * (log - teacher)).sum(1).mean() for log in logs]
        ).sum(),
        "features": torch.stack([F.mse_loss(one, goal) for one in between]).sum(),
    }


def warm_up(
    model: Classifier,
    heard: Sequence[Tensor],
    settings: UnfusedSettings,
    training: TrainingSettings,
    folder: Path,
    augment: Augment | None = None,
) -> dict[str, int | float | str]:
    """Train the encoder of ``model`` on pseudo-labels, in place; its own head stays as it is.

    Goes on from the newest checkpoint in ``folder``, to the same weights bit for bit. The encoder
    is then as it was loaded before the first call: pseudo-labels are kept, not made again.

    Args:
        model: without a method attached.
        heard: what ``model.front.hear`` gave of each clip; labels are not asked for.
        settings: how long, and what is clustered and weighed.
        training: of batch, warm-up, seed, precision, checkpoints and the like. Steps follow from
            the epochs, and the student of the last step is kept.
        folder: gets ``pseudo_labels.safetensors``, ``metrics.csv`` and ``checkpoints/``.
        augment: of what is heard; the stream's default if not given.

    Returns:
        Facts: clips, clusters, the largest cluster's clips, start, steps, and ``accuracy``, the
        share of clips whose pseudo-label the student's last head now says.

    Raises:
        InputError: no epochs, too few clips, an encoder of a single layer, or files in ``folder``
            that are damaged.
        Interrupted: stopped by Ctrl-C or SIGTERM; a checkpoint was saved.
        CheckFailed: the loss became no number.
    """
    if not settings.epochs:
        raise InputError("unfused epochs 0 are no warm-up; set 1 or more, or leave it out")
    with system_errors():
        folder.mkdir(parents=True, exist_ok=True)
    each = math.ceil(len(heard) / (training.batch * training.accumulate))
    training = replace(training, steps=settings.epochs * each, keep="last", patience=0)
    checkpoint = load_checkpoint(folder / "checkpoints")
    labels = _labels(model, heard, settings, folder / "pseudo_labels.safetensors")
    classes = int(labels.max()) + 1
    if settings.start == "random":
        _forget(model, settings.seed)
    start, state = (checkpoint.step, checkpoint.optimizer) if checkpoint else (0, None)
    module = Distillation(model, classes, settings, training, start, state)
    if checkpoint:
        module.read(checkpoint.folder)
    targets = F.one_hot(labels, classes).float()
    place = start * training.accumulate
    stream = LabelledStream(
        model, heard, targets, training.batch, training.seed, place, augment or Augment()
    )
    model.train(True)
    try:
        fit(module, stream, folder, model.device)
    finally:
        model.train(False)
        model.requires_grad_(False)
    return {
        "clips": len(heard),
        "clusters": classes,
        "largest_cluster": int(labels.bincount().max()),
        "start": settings.start,
        "epochs": settings.epochs,
        "steps": training.steps,
        "accuracy": _accuracy(module, heard, labels),
    }


class _Head(nn.Module):
    """From the mean over tokens to features, and from them to scores."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dense = nn.Linear(width, classes)
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        found = self.norm(mean.to(self.norm.weight.dtype))
        return self.dense(found), found


def _labels(
    model: Classifier, heard: Sequence[Tensor], settings: UnfusedSettings, path: Path
) -> Tensor:
    if path.is_file():
        labels = load_tensors(path).get("labels", torch.empty(0))
        if labels.shape != (len(heard),):
            raise InputError(f"{path} is of other clips; start again with --overwrite")
        return labels
    labels = pseudo_labels(model, heard, settings.dims, settings.clusters, settings.seed)
    save_tensors({"labels": labels}, path)
    return labels


@torch.no_grad()
def _forget(model: Classifier, seed: int) -> None:
    """Random weights in the encoder, as its class begins."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model.network)(model.network.config).base_model
        for name, parameter in fresh.named_parameters():
            # transformers leaves zeros here; the original starts from small numbers.
            if name.endswith(("position_embeddings", "cls_token", "distillation_token")):
                nn.init.trunc_normal_(parameter, std=0.02)
    model.backbone.load_state_dict(fresh.state_dict())


@torch.inference_mode()
def _accuracy(module: Distillation, heard: Sequence[Tensor], labels: Tensor) -> float:
    """Share of clips whose label the last head says of their features."""
    said = module.heads[-1](features(module.model, heard).to(module.model.device))[0].argmax(1)
    return float((said.cpu() == labels).float().mean())
