"""What every base model offers, so that methods, training and generation need to know only this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from musictune.audio import Clip
from musictune.data.concepts import Concept


@dataclass(frozen=True)
class Batch:
    """Music as codec tokens with the texts that describe it.

    Attributes:
        codes: ``(clips, codebooks, frames)`` int64 codec tokens, not delayed.
        lengths: ``(clips,)`` int64, valid frames of each clip; the rest is padding.
        texts: one caption or prompt per clip; an empty text means unconditional.
    """

    codes: Tensor
    lengths: Tensor
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        return replace(self, codes=self.codes.to(device), lengths=self.lengths.to(device))


class TunableModel(nn.Module, ABC):
    """What tuning methods need to know of a model, whatever it does with sound.

    Attributes:
        base: the name or path it was loaded from, as the user gave it.
        targets: regular expression over names of modules in ``backbone`` worth adapting.
        causal: whether a step may see only those before it; what mixes steps is then refused.
        concepts: learned concepts that its tokenizer knows, if it has one.
    """

    base: str
    targets: str
    causal: bool = False
    concepts: list[Concept]

    @property
    @abstractmethod
    def backbone(self) -> nn.Module:
        """The part that methods may wrap or change."""

    @property
    def text_encoder(self) -> nn.Module | None:
        """The part that reads a text; None where there is none."""
        return None

    @abstractmethod
    def nll(self, batch: Any) -> Tensor:
        """The native training loss, ``(clips,)`` in nats, one per clip."""

    def half_backbone(self) -> None:
        """Hold the backbone's weights in bfloat16, once, and compute with them as they are.

        For before a method is attached: what it trains is then fp32 beside them. Text encoder and
        codec stay as they are, so tokens and what an adapter is recognised by do not change.
        """
        self.backbone.to(torch.bfloat16)

    @classmethod
    @abstractmethod
    def toy(cls) -> Self:
        """A random model of a few thousand weights, built offline, for tests."""


class MusicModel(TunableModel):
    """A text-to-music model that can be tuned.

    Attributes:
        sample_rate: Hz of the audio it reads and makes.
        max_seconds: longest music it was trained on.
        tokenizer: transformers tokenizer of the texts.
    """

    sample_rate: int
    max_seconds: float
    causal = True
    tokenizer: Any

    @property
    @abstractmethod
    def codec_key(self) -> str:
        """Short hash of the codec: tokens cached under equal keys are equal."""

    @property
    @abstractmethod
    def text_encoder(self) -> nn.Module:
        """The part that reads the text; concept tokens become rows of its embedding."""

    @abstractmethod
    def encode(self, clips: Sequence[Clip]) -> Batch:
        """Resample and tokenise clips of any rate and channel count."""

    @abstractmethod
    def nll(self, batch: Batch) -> Tensor:
        """The native training loss, ``(clips,)`` in nats per token, one per clip."""

    @abstractmethod
    def rollout(
        self, prompts: Sequence[str], seconds: float, seed: int
    ) -> tuple[Batch, list[Clip]]:
        """Sample music by the library's own plain path: the codes with the audio they became."""

    @abstractmethod
    def decode(self, batch: Batch) -> list[Clip]:
        """Codec tokens to audio."""
