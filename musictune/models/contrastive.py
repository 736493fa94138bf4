"""CLAP as a model that can be tuned: which caption belongs to which clip (arXiv 2211.06687)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musictune.audio import Clip
from musictune.console import quiet_transformers
from musictune.errors import InputError
from musictune.files import system_errors
from musictune.models.base import TunableModel
from musictune.models.contrastive_reading import read_clap, toy_parts
from musictune.models.devices import find_device

Tower = Literal["both", "audio", "text"]
TOWERS: tuple[Tower, ...] = ("both", "audio", "text")
_STEEPEST = 100.0  # the paper's bound on the factor before the softmax
_AT_ONCE = 16  # windows per pass where nothing is trained


@dataclass(frozen=True)
class CaptionedBatch:
    """Windows as the audio tower reads them, with what is said of them.

    Attributes:
        features: ``(clips, frames, bands)`` float32 log-mels in decibels.
        texts: the caption of each clip in order, then wrong ones, true of none or of some.
        meanings: of each text, equal where two say the same in other words; the texts if empty.
    """

    features: Tensor
    texts: tuple[str, ...]
    meanings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: torch.device | str) -> CaptionedBatch:
        """The same batch on ``device``."""
        return replace(self, features=self.features.to(device))


class Contrastive(TunableModel):
    """A ``ClapModel`` of transformers: two towers whose answers are points on one sphere.

    Windows are cut here, one after the other; the feature extractor, which would choose at random
    from longer audio, never sees more than it reads. Batch norm keeps the statistics of the base
    also while training: they are no weights, so no adapter would carry them.

    Args:
        network: the ``ClapModel``.
        tokenizer: of the text tower.
        extractor: ``ClapFeatureExtractor``.
        base: the name or path it came from.
        tower: which of the towers methods may change.

    Attributes:
        seconds: length of a window.
        frames: steps of a window.
        most_tokens: how long a text may be, marks of its ends included.
    """

    targets = r"attention\.(self\.(query|key|value)|output\.dense)$"

    def __init__(
        self, network: Any, tokenizer: Any, extractor: Any, base: str, tower: Tower = "both"
    ) -> None:
        super().__init__()
        if tower not in TOWERS:
            raise InputError(f"tower {tower!r} must be both, audio or text")
        self.network = network
        self.tokenizer = tokenizer
        self.extractor = extractor
        self.base = base
        self.tower = tower
        self.concepts = []
        self.sample_rate = int(extractor.sampling_rate)
        self.seconds = float(extractor.nb_max_samples / extractor.sampling_rate)
        self.frames = int(extractor.nb_max_samples // extractor.hop_length + 1)
        text = network.config.text_config
        # RoBERTa counts positions from the padding id on.
        room = text.max_position_embeddings - text.pad_token_id - 1
        self.most_tokens = int(min(tokenizer.model_max_length, room))
        self.train(False)

    @classmethod
    def load(cls, base: str | Path = "mini", device: str = "cpu", tower: Tower = "both") -> Self:
        """Load a CLAP from safetensors; nothing is unpickled and no code of the base is run.

        Args:
            base: ``mini``, a folder, or a Hugging Face id.
            device: ``cpu``, ``cuda``, or ``auto``: CUDA where there is one.
            tower: which of the towers methods may change.

        Raises:
            InputError: unknown base, device or tower, another kind of model, or damaged files.
        """
        target = find_device(device)
        return cls(*read_clap(str(base)), base=str(base), tower=tower).to(target)

    @classmethod
    def toy(cls) -> Self:
        """A few thousand random weights, always the same ones, with 1 s windows at 8 kHz."""
        return cls(*toy_parts(), base="toy")

    def save(self, folder: Path | str) -> None:
        """Write a folder that plain transformers, and every ``--embedder`` here, loads."""
        with quiet_transformers(), system_errors():
            for part in (self.network, self.tokenizer, self.extractor):
                part.save_pretrained(folder)

    @property
    def backbone(self) -> nn.Module:
        """Both towers with their projections, or the one tower that may change."""
        towers = {"audio": "audio_model", "text": "text_model", "both": ""}
        found: nn.Module = self.network.get_submodule(towers[self.tower])
        return found

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def train(self, mode: bool = True) -> Self:
        """As usual, but for batch norm."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    # --- hearing and reading ---

    def hear(self, clip: Clip) -> Tensor:
        """``(frames, bands)`` float32 decibels of a clip of any rate, no longer than a window.

        What is shorter is filled the way the extractor does it, mostly by repetition.
        """
        wave = clip.mono().resample(self.sample_rate).wave[0].numpy()
        wave = wave[: int(self.extractor.nb_max_samples)]
        found = self.extractor(
            [np.ascontiguousarray(wave)], sampling_rate=self.sample_rate, return_tensors="pt"
        )
        # A fusion extractor gives four equal channels of what is not longer.
        return torch.as_tensor(found["input_features"])[0, 0].float()

    def windows(self, clip: Clip) -> Iterator[Clip]:
        """Consecutive windows; a rest below half a window is left out where it is not all."""
        size = round(self.seconds * clip.sample_rate)
        for start in range(0, max(clip.samples, 1), size):
            wave = clip.wave[:, start : start + size]
            if start == 0 or wave.shape[1] >= size / 2:
                yield Clip(wave, clip.sample_rate, clip.caption, clip.source)

    def tokens(self, text: str) -> int:
        """How long a text is, in tokens, before any is cut."""
        return len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])

    def read(self, texts: Sequence[str]) -> Tensor:
        """``(texts, dim)`` float32 unit rows, with gradients. What is too long is cut."""
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.most_tokens,
            return_tensors="pt",
        )  # fmt: skip
        found = self.network.get_text_features(
            input_ids=tokens["input_ids"].to(self.device),
            attention_mask=tokens["attention_mask"].to(self.device),
        )
        return F.normalize(found.pooler_output.float(), dim=-1)

    def place(self, features: Tensor) -> Tensor:
        """``(clips, frames, bands)`` to ``(clips, dim)`` float32 unit rows, with gradients."""
        dtype = next(self.network.parameters()).dtype
        features = features.to(self.device, dtype)[:, None]
        if self.network.config.audio_config.enable_fusion:
            features = features.expand(-1, 4, -1, -1)
        longer = torch.zeros(len(features), 1, dtype=torch.bool, device=self.device)
        found = self.network.get_audio_features(input_features=features, is_longer=longer)
        return F.normalize(found.pooler_output.float(), dim=-1)

    # --- the loss ---

    def nll(self, batch: CaptionedBatch) -> Tensor:
        """``(clips,)`` nats: the mean of InfoNCE from clip to text and from text to clip.

        Texts of one meaning are equally right, and wrong ones stand only among the answers to
        clips. A batch whose texts all mean the same teaches nothing; its loss is the entropy.

        Raises:
            InputError: fewer texts than clips, or not a meaning for each text.
        """
        batch = batch.to(self.device)
        count = len(batch)
        meanings = batch.meanings or batch.texts
        if len(batch.texts) < count or len(meanings) != len(batch.texts):
            raise InputError(
                f"{count} clips, {len(batch.texts)} texts and {len(meanings)} meanings do not fit; "
                "give a text for each clip and a meaning for each text"
            )
        heard, read = self.place(batch.features), self.read(batch.texts)
        steepness = self.network.logit_scale_a.float().exp().clamp(max=_STEEPEST)
        logits = heard @ read.T * steepness
        # What reads the same is the same, whatever it was meant to say.
        said_as = list(zip(batch.texts, meanings, strict=True))
        same = torch.tensor(
            [
                [float(text == other or meaning == its) for other, its in said_as]
                for text, meaning in said_as[:count]
            ],
            device=logits.device,
        )
        said = F.cross_entropy(logits, _shares(same), reduction="none")
        among = _shares(same[:, :count])
        found = F.cross_entropy(logits[:, :count].T, among, reduction="none")
        return (said + found) / 2

    # --- without training ---

    def audio_points(self, features: Sequence[Tensor]) -> Tensor:
        """``(windows, dim)`` unit rows on the CPU, without dropout."""
        return self._points(features, lambda part: self.place(torch.stack(list(part))))

    def text_points(self, texts: Sequence[str]) -> Tensor:
        """``(texts, dim)`` unit rows on the CPU, without dropout."""
        return self._points(texts, self.read)

    def _points(self, items: Sequence[Any], answer: Callable[[Any], Tensor]) -> Tensor:
        if not items:
            return torch.empty(0, int(self.network.config.projection_dim))
        training = self.training
        self.train(False)
        try:
            with torch.no_grad():
                parts = [answer(items[i : i + _AT_ONCE]) for i in range(0, len(items), _AT_ONCE)]
        finally:
            self.train(training)
        return torch.cat(parts).cpu()


def _shares(same: Tensor) -> Tensor:
    return same / same.sum(1, keepdim=True)
