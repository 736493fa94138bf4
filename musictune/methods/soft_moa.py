"""Soft mixture of adapters: many tiny adapters, each of which hears a mean of all tokens."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musictune.methods.inserted import require_count
from musictune.methods.placement import Adapted, Place, Placed, Placement, refuse_causal
from musictune.models.base import TunableModel


class MixedAdapters(Adapted):
    """Bottleneck adapters that read slots, which are mixtures of tokens.

    A slot is a mean over all tokens, weighted by a softmax of ``x @ slots`` over them; a token gets
    the mean over all slots' outputs, weighted by a softmax of the same over slots.

    Args:
        base: the layer that it is at.
        features: channels of the residual stream.
        experts: how many adapters.
        slots: that each of them reads.
        width: of each one's bottleneck.
        generator: draws the slots' directions (uniformly, after Glorot and Bengio 2010) and
            ``down``; ``up`` starts at zero.
        place: as of :class:`Adapted`.
    """

    def __init__(
        self,
        base: nn.Module,
        features: int,
        experts: int,
        slots: int,
        width: int,
        generator: torch.Generator,
        place: Place,
    ) -> None:
        super().__init__(base, place)
        reach = math.sqrt(6 / (features + experts * slots))
        drawn = torch.rand(features, experts * slots, generator=generator)
        self.slots = nn.Parameter((2 * drawn - 1) * reach)
        down = torch.randn(experts, features, width, generator=generator) / math.sqrt(features)
        self.down = nn.Parameter(down)
        self.down_bias = nn.Parameter(torch.zeros(experts, 1, width))
        self.up = nn.Parameter(torch.zeros(experts, width, features))
        self.up_bias = nn.Parameter(torch.zeros(experts, 1, features))

    def change(self, x: Tensor) -> Tensor:
        """``(clips, tokens, features)`` to the same."""
        kind = x.dtype
        logits = x @ self.slots.to(kind)
        dispatch, combine = logits.softmax(-2), logits.softmax(-1)
        read = dispatch.transpose(-1, -2).to(kind) @ x
        # To (clips, experts, slots of one, features).
        each = read.unflatten(-2, (len(self.down), -1))
        narrow = F.gelu(each @ self.down.to(kind) + self.down_bias.to(kind))
        made = narrow @ self.up.to(narrow.dtype) + self.up_bias.to(narrow.dtype)
        return (combine.to(made.dtype) @ made.flatten(-3, -2)).to(kind)


class SoftMoa(Placed):
    """Soft mixture of adapters (Cappellazzo et al. 2024, arXiv 2402.00828) on a frozen encoder.

    As there, the mixture stands beside self-attention: it reads what attention reads and adds to
    what attention gives. Every slot hears all tokens, padding of a wave encoder among them. Ours:
    by default the layer norms train too, as in the same authors' study of single adapters.

    Args:
        experts: adapters per layer.
        slots: per adapter.
        width: of each bottleneck; a 128th of the channels, at least 1, if not given.
        seed: of the draw of the first weights.
        norms: train the norms of attention and the encoder's outer one too.
    """

    name: ClassVar[str] = "soft_moa"
    mergeable: ClassVar[bool] = False
    learning_rate = 5e-3

    def __init__(
        self,
        experts: int = 7,
        slots: int = 1,
        width: int | None = None,
        seed: int = 0,
        norms: bool | None = None,
    ) -> None:
        super().__init__(Placement("pfeiffer", "attention", "parallel", norms=norms), seed)
        self.experts = require_count("experts", experts)
        self.slots = require_count("slots", slots)
        self.width = None if width is None else require_count("width", width)

    def options(self) -> dict[str, Any]:
        """The arguments that build this method again."""
        return {
            "experts": self.experts,
            "slots": self.slots,
            "width": self.width,
            "seed": self.seed,
            "norms": self.placement.norms,
        }

    def check(self, model: TunableModel) -> None:
        """Refuse a model that may not hear what comes later."""
        refuse_causal(self.name, model)
        super().check(model)

    def _adapter(
        self, base: nn.Module, width: int, place: Place, generator: torch.Generator
    ) -> Adapted:
        narrow = self.width or max(1, width // 128)
        return MixedAdapters(base, width, self.experts, self.slots, narrow, generator, place)

    @classmethod
    def toy(cls) -> Self:
        """Small enough for a test."""
        return cls(experts=3, width=2)
