"""An audio transformer that names what it hears: AST and the wav2vec 2.0 family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musictune.audio import Clip
from musictune.console import quiet_transformers
from musictune.errors import InputError
from musictune.files import system_errors
from musictune.models.base import TunableModel
from musictune.models.devices import find_device
from musictune.models.front import Front

_SEVERAL = "multi_label_classification"
_AUDIOSET = 527  # labels
_AT_ONCE = 16  # windows per pass where nothing is trained


@dataclass(frozen=True)
class LabelledBatch:
    """Clips as the network reads them, with what they are.

    Attributes:
        inputs: ``(clips, steps, bands)`` or ``(clips, steps)`` float32, padded.
        lengths: ``(clips,)`` int64, steps of each row that are no padding.
        targets: ``(clips, classes)`` float32: one 1 in each row, or several where labels do not
            exclude each other, or shares of two rows where clips were mixed.
    """

    inputs: Tensor
    lengths: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device | str) -> LabelledBatch:
        """The same batch on ``device``."""
        return replace(
            self, inputs=self.inputs.to(device), lengths=self.lengths.to(device),
            targets=self.targets.to(device),
        )  # fmt: skip


def mean_tokens(states: Tensor, heard: Tensor | None = None) -> Tensor:
    """``(clips, tokens, width)`` to ``(clips, width)``: the mean over tokens.

    Args:
        heard: ``(clips, tokens)`` bool, tokens that are no padding; all by default.
    """
    if heard is None:
        return states.mean(1)
    mask = heard[..., None].to(states.dtype)
    return (states * mask).sum(1) / mask.sum(1).clamp_min(1)


class MeanHead(nn.Module):
    """Layer norm and a linear layer on the mean over a clip's tokens.

    Args:
        width: of the encoder.
        labels: the classes, in the order of the scores.
        multi_label: whether several of them can be true of a clip.
        seed: of the first weights.
    """

    def __init__(
        self, width: int, labels: Sequence[str], multi_label: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        self.labels = tuple(labels)
        self.multi_label = multi_label
        generator = torch.Generator().manual_seed(seed)
        self.norm = nn.LayerNorm(width)
        self.dense = nn.Linear(width, len(self.labels))
        with torch.no_grad():
            self.dense.weight.copy_(
                0.02 * torch.randn(self.dense.weight.shape, generator=generator)
            )
            self.dense.bias.zero_()

    def forward(self, states: Tensor, heard: Tensor | None = None) -> Tensor:
        """``(clips, tokens, width)`` to ``(clips, classes)``.

        Args:
            heard: ``(clips, tokens)`` bool, tokens that are no padding; all by default.
        """
        mean = mean_tokens(states, heard)
        scores: Tensor = self.dense(self.norm(mean.to(self.norm.weight.dtype)))
        return scores


def label_loss(logits: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """``(clips,)`` nats: cross-entropy, or the mean over labels of a yes or no for each.

    Args:
        logits, targets: ``(clips, classes)``; targets can be shares.
    """
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    return -(targets * logits.log_softmax(-1)).sum(1)


class Classifier(TunableModel):
    """An audio encoder with a head: its own, or one for other labels on the mean of its tokens.

    Args:
        network: transformers' model for audio classification, whole.
        front: what it hears.
        base: the name or path it came from.
        seconds: how much it hears at once.
        named: whether the network's own head was trained.

    Attributes:
        head: in place of the network's own head, or None.
        seconds: longest stretch that it hears at once; a longer clip is heard in windows.
    """

    targets = r"attention\.(q|k|v|o|out)_proj$"

    def __init__(
        self, network: Any, front: Front, base: str, seconds: float, named: bool = True
    ) -> None:
        super().__init__()
        self.network = network
        self.front = front
        self.base = base
        self.seconds = seconds
        self.named = named
        self.concepts = []
        self.head: MeanHead | None = None
        self.train(False)

    @classmethod
    def load(
        cls, base: str | Path = "mini", device: str = "cpu", seconds: float | None = None
    ) -> Self:
        """Load a base from safetensors; nothing is unpickled and no code of the base is run.

        Args:
            base: ``mini``, a local transformers folder, or a Hugging Face id, such as
                ``MIT/ast-finetuned-audioset-10-10-0.4593`` or ``facebook/hubert-base-ls960``.
            device: ``cpu``, ``cuda``, or ``auto``: CUDA where there is one.
            seconds: how much to hear at once; as the base was trained if not given. An AST's table
                of positions is cut or stretched to it.

        Raises:
            InputError: unknown base or device, or files that are missing, corrupt or incomplete.
        """
        from musictune.models.encoders import read_encoder

        target = find_device(device)
        read = read_encoder(str(base), seconds)
        # An adapter names its base, and is used from other folders than it was made in.
        place = str(Path(base).resolve()) if Path(base).is_dir() else str(base)
        return cls(read.network, read.front, place, read.seconds, read.named).to(target)

    @classmethod
    def toy(cls, kind: str = "ast") -> Self:
        """A few thousand random weights, always the same ones; ``ast``, ``wav2vec2``, ``hubert``.

        Three labels, 8 or 16 kHz, half a second at once.
        """
        from musictune.models.encoders import toy_encoder

        made = toy_encoder(kind)
        return cls(made.network, made.front, "toy", made.seconds)

    def save(self, folder: Path | str) -> None:
        """Write a folder that plain transformers loads: network with its own head, and extractor.

        Raises:
            InputError: it has a head of ours, which the network's class cannot hold.
        """
        if self.head is not None:
            raise InputError(
                "a classifier with a new head is no plain transformers model; keep its adapter"
            )
        with quiet_transformers(), system_errors():
            self.network.save_pretrained(folder)
            self.front.extractor.save_pretrained(folder)

    @property
    def backbone(self) -> nn.Module:
        """The encoder without a head."""
        encoder: nn.Module = self.network.base_model
        return encoder

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def width(self) -> int:
        """Channels of the encoder."""
        return int(self.network.config.hidden_size)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the scores."""
        if self.head is not None:
            return self.head.labels
        config = self.network.config
        return tuple(str(config.id2label[i]) for i in range(config.num_labels))

    @property
    def multi_label(self) -> bool:
        """Whether several labels can be true of a clip; AudioSet's can."""
        if self.head is not None:
            return self.head.multi_label
        config = self.network.config
        # Those taught AudioSet do not all say that its 527 labels can be true together.
        return config.problem_type == _SEVERAL or (
            config.problem_type is None and config.num_labels == _AUDIOSET
        )

    @property
    def steps(self) -> int:
        """Steps of what is heard at once."""
        return self.front.steps(self.seconds)

    # --- from clips to batches ---

    def batch(self, heard: Sequence[Tensor], targets: Tensor) -> LabelledBatch:
        """Of what ``front.hear`` gave, cropped to at most ``steps``, and ``(clips, classes)``."""
        inputs, lengths = self.front.inputs(heard, self.steps)
        return LabelledBatch(inputs, lengths, targets.float())

    # --- scores and the loss ---

    def states(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """The encoder's last states ``(clips, tokens, width)``, and which tokens are no padding.

        The second is None where all of them are heard, as AST does with padding.
        """
        given, heard = self._given(inputs, lengths)
        found = self.backbone(**given).last_hidden_state
        if heard is None:
            return found, None
        kept = self.network._get_feat_extract_output_lengths(lengths.to(found.device))
        return found, torch.arange(found.shape[1], device=found.device) < kept[:, None]

    def logits(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """``(clips, classes)`` float32 scores before softmax or sigmoid."""
        if self.head is not None:
            return self.head(*self.states(inputs, lengths)).float()
        given, _ = self._given(inputs, lengths)
        scores: Tensor = self.network(**given).logits
        return scores.float()

    def nll(self, batch: LabelledBatch) -> Tensor:
        """``(clips,)`` nats: cross-entropy, or the mean over labels of a yes or no for each."""
        batch = batch.to(self.device)
        logits = self.logits(batch.inputs, batch.lengths)
        return label_loss(logits, batch.targets, self.multi_label)

    @torch.inference_mode()
    def probabilities(self, heard: Sequence[Tensor]) -> Tensor:
        """``(clips, classes)`` on the CPU, of stretches that are at most ``steps`` long.

        Raises:
            InputError: the base came without a head, and none was learned.
        """
        if self.head is None and not self.named:
            raise InputError(
                f"base {self.base} is an encoder that knows no labels; teach it some: musictune "
                "tune --task classify"
            )
        training, rows = self.training, []
        self.train(False)
        try:
            for together in self._batches(heard):
                inputs, lengths = self.front.inputs(together, self.steps)
                logits = self.logits(inputs.to(self.device), lengths.to(self.device))
                rows.append(logits.sigmoid() if self.multi_label else logits.softmax(-1))
        finally:
            self.train(training)
        return torch.cat(rows).cpu()

    def classify(self, clip: Clip) -> Tensor:
        """``(windows, classes)`` probabilities of consecutive stretches of a clip of any length."""
        return self.probabilities(list(self.windows(self.front.hear(clip))))

    def windows(self, heard: Tensor) -> Iterator[Tensor]:
        """Stretches of ``steps``; a rest below half of that is left out where it is not all."""
        size = self.steps
        for start in range(0, len(heard), size):
            part = heard[start : start + size]
            if start == 0 or len(part) >= max(size / 2, self.front.least):
                yield part

    @property
    def _masks(self) -> bool:
        """Whether padding can be hidden from the network.

        Models with a group norm over time were trained without a mask, on zeros. data2vec has no
        choice of norms: it has a layer norm.
        """
        return getattr(self.network.config, "feat_extract_norm", "layer") == "layer"

    def _batches(self, heard: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
        """A few at a time; only equally long ones where padding would change the answer."""
        # data2vec's several convolutions for positions reach over the edge of the mask.
        blurred = self.network.config.model_type == "data2vec-audio"
        mixed = bool(self.front.bands) or (self._masks and not blurred)
        first = 0
        for place in range(1, len(heard) + 1):
            if (
                place == len(heard)
                or place - first == _AT_ONCE
                or not (mixed or len(heard[place]) == len(heard[first]))
            ):
                yield heard[first:place]
                first = place

    def _given(self, inputs: Tensor, lengths: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """What the network is called with, and the mask over its samples where it reads waves."""
        dtype = next(self.network.parameters()).dtype
        given = {"input_values": inputs.to(self.device, dtype)}
        if self.front.bands:
            return given, None
        heard = torch.arange(inputs.shape[1], device=self.device) < lengths.to(self.device)[:, None]
        if self._masks:
            given["attention_mask"] = heard.long()
        return given, heard
