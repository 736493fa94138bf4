"""Convolution adapters: a small trained network that also mixes neighbouring tokens."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musictune.methods.inserted import require_count
from musictune.methods.placement import (
    Adapted,
    Configuration,
    Form,
    Part,
    Place,
    Placed,
    Placement,
    Position,
    refuse_causal,
)
from musictune.models.base import TunableModel

_MOMENTUM = 0.1
_EPS = 1e-5


class ConvolutionAdapter(Adapted):
    """Layer norm, wider by a gated layer, a convolution per channel, batch norm, Swish, back.

    Args:
        base: the layer that it is at.
        features: channels of the residual stream.
        width: channels between the two ends.
        kernel: tokens that one output hears; of an even number, one more of those to come.
        generator: draws all but ``up``, which starts at zero.
        place: as of :class:`Adapted`.

    Attributes:
        mean, variance: ``(width,)``, running, of the batch norm. They move in training only.
    """

    mean: Tensor
    variance: Tensor

    def __init__(
        self,
        base: nn.Module,
        features: int,
        width: int,
        kernel: int,
        generator: torch.Generator,
        place: Place,
    ) -> None:
        super().__init__(base, place)
        widen = torch.randn(2 * width, features, generator=generator) / math.sqrt(features)
        depth = torch.randn(width, 1, kernel, generator=generator) / math.sqrt(kernel)
        self.norm_gain = nn.Parameter(torch.ones(features))
        self.norm_shift = nn.Parameter(torch.zeros(features))
        self.widen = nn.Parameter(widen)
        self.widen_bias = nn.Parameter(torch.zeros(2 * width))
        self.depth = nn.Parameter(depth)
        self.depth_bias = nn.Parameter(torch.zeros(width))
        self.batch_gain = nn.Parameter(torch.ones(width))
        self.batch_shift = nn.Parameter(torch.zeros(width))
        self.up = nn.Parameter(torch.zeros(features, width))
        self.up_bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def change(self, x: Tensor) -> Tensor:
        """``(..., tokens, features)`` to the same."""
        kind = x.dtype
        normed = F.layer_norm(
            x, x.shape[-1:], self.norm_gain.to(kind), self.norm_shift.to(kind), _EPS
        )
        wide = F.glu(F.linear(normed, self.widen.to(kind), self.widen_bias.to(kind)))
        # To (clips, channels, tokens), whatever stands before the tokens.
        rows = wide.reshape(-1, *wide.shape[-2:]).transpose(1, 2)
        size = self.depth.shape[-1]
        rows = F.pad(rows, ((size - 1) // 2, size // 2))
        depth, bias = self.depth.to(rows.dtype), self.depth_bias.to(rows.dtype)
        mixed = F.conv1d(rows, depth, bias, groups=rows.shape[1])
        # In fp32 also where the model is not: the running statistics add up small differences.
        settled = F.silu(self._batch_norm(mixed.float())).to(wide.dtype)
        narrow = settled.transpose(1, 2).reshape(wide.shape)
        return F.linear(narrow, self.up.to(narrow.dtype), self.up_bias.to(narrow.dtype)).to(kind)

    def _batch_norm(self, x: Tensor) -> Tensor:
        # One value has no variance; the running statistics serve then too.
        learns = self.training and x.shape[0] * x.shape[2] > 1
        return F.batch_norm(
            x, self.mean, self.variance, self.batch_gain, self.batch_shift, learns, _MOMENTUM, _EPS
        )


class Convolution(Placed):
    """The "conformer" adapters of the study of adapters for AST (Cappellazzo et al. 2023, arXiv
    2312.03694), after the convolution module of the Conformer (Gulati et al. 2020, 2005.08100).

    ``pfeiffer`` and ``parallel`` with a width of 8 has 271K weights on AST-base. Ours: its layer
    norm is used, where the study's code computes and drops it; a batch of one value per channel is
    normed with the running statistics. It hears tokens in their order in the encoder, an AST's two
    class tokens among them, and knows nothing of padding: clips of unequal length in a batch of a
    wave encoder see zeros behind their end.

    Args:
        width: channels of the convolution.
        kernel: tokens that it reaches over; the study has 8, and 31 for speech.
        seed: of the draw of the first weights.
        configuration: ``pfeiffer``, one adapter per layer, or ``houlsby``, two.
        block: the one that ``pfeiffer`` takes, ``feed_forward`` or ``attention``.
        form: ``parallel`` to the block, or in ``series`` with it.
        position: of ``series``: ``after`` the block or ``before`` it.
        norms: train the layer norms of those blocks and the encoder's outer one too.
    """

    name: ClassVar[str] = "convolution"
    mergeable: ClassVar[bool] = False
    learning_rate = 5e-3

    def __init__(
        self,
        width: int = 8,
        kernel: int = 8,
        seed: int = 0,
        configuration: Configuration | None = None,
        block: Part | None = None,
        form: Form | None = None,
        position: Position | None = None,
        norms: bool | None = None,
    ) -> None:
        super().__init__(Placement(configuration, block, form, position, norms), seed)
        self.width = require_count("width", width)
        self.kernel = require_count("kernel", kernel)

    def options(self) -> dict[str, Any]:
        """The arguments that build this method again."""
        return {"width": self.width, "kernel": self.kernel} | super().options()

    def check(self, model: TunableModel) -> None:
        """Refuse a model that may not hear what comes later."""
        refuse_causal(self.name, model)
        super().check(model)

    def _adapter(
        self, base: nn.Module, width: int, place: Place, generator: torch.Generator
    ) -> Adapted:
        return ConvolutionAdapter(base, width, self.width, self.kernel, generator, place)

    @classmethod
    def toy(cls) -> Self:
        """Small enough for a test."""
        return cls(width=4, kernel=3)
