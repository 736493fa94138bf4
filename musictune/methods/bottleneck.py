"""Bottleneck adapters: a narrow trained network at a transformer's attention and feed-forward."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.methods.base import matched_modules
from musictune.methods.budget import target_pattern
from musictune.methods.inserted import InsertedModule, require_count
from musictune.methods.placement import (
    Adapted,
    Configuration,
    Form,
    Part,
    Place,
    Placed,
    Placement,
    Position,
    wrap,
)
from musictune.models.base import MusicModel, TunableModel

_MUSIC_WIDTH = 16
_ENCODER_WIDTH = 12


class BottleneckLinear(Adapted):
    """An adapter ``up(gelu(down(x)))`` at the layer ``base``; see :class:`Adapted` for where.

    Args:
        base: the layer.
        width: of the bottleneck.
        generator: draws ``down``; ``up`` starts at zero, so that the whole starts as ``base``.
        place: what ``x`` is, and what the change is added to.
        features: channels of ``x``; those that ``base`` gives, if not given.
    """

    def __init__(
        self,
        base: nn.Module,
        width: int,
        generator: torch.Generator,
        place: Place = "after",
        features: int | None = None,
    ) -> None:
        super().__init__(base, place)
        if features is None:
            assert isinstance(base, nn.Linear)
            features = base.out_features
        down = torch.randn(width, features, generator=generator) / math.sqrt(features)
        self.down = nn.Parameter(down)
        self.down_bias = nn.Parameter(torch.zeros(width))
        self.up = nn.Parameter(torch.zeros(features, width))
        self.up_bias = nn.Parameter(torch.zeros(features))

    def change(self, x: Tensor) -> Tensor:
        """``(..., features)`` to the same."""
        narrow = F.gelu(F.linear(x, self.down.to(x.dtype), self.down_bias.to(x.dtype)))
        return F.linear(narrow, self.up.to(x.dtype), self.up_bias.to(x.dtype))


class Bottleneck(Placed):
    """Bottleneck adapters on a frozen backbone, at any of the places that papers put them.

    What is not chosen follows from the model. On models that make music: as in Houlsby et al. 2019
    (arXiv 1902.00751) one follows the self-attention block and one the feed-forward block, before
    their outputs join the residual stream, 16 wide; ours: none behind cross-attention, the layer
    norms stay frozen, and ``up`` starts at exactly zero rather than near it. On encoders: as in the
    study of adapters for AST (Cappellazzo et al. 2023, arXiv 2312.03694) one beside each
    feed-forward block, 12 wide, with trained layer norms: 249K weights on AST-base. The network
    between the two ends is not linear, so that it cannot be folded into weights.

    Args:
        width: of the bottleneck; an adapter has ``2 * width * d + width + d`` weights. 16 on models
            that make music and 12 on others if not given.
        targets: in place of a placement, linear layers to put one behind: a regular expression over
            their names, or short names as in ``Pivotal``.
        seed: of the draw of the down-projections.
        configuration: ``pfeiffer``, one adapter per layer, or ``houlsby``, two.
        block: the one that ``pfeiffer`` takes, ``feed_forward`` or ``attention``.
        form: ``parallel`` to the block, or in ``series`` with it.
        position: of ``series``: ``after`` the block or ``before`` it.
        norms: train the layer norms of those blocks and the outer one too.
    """

    name: ClassVar[str] = "bottleneck"
    mergeable: ClassVar[bool] = False
    # mini, one concept, 100 steps, nats on held-out clips: base 4.241, 1e-3 4.060, 3e-3 4.075.
    learning_rate = 1e-3

    def __init__(
        self,
        width: int | None = None,
        targets: str | None = None,
        seed: int = 0,
        configuration: Configuration | None = None,
        block: Part | None = None,
        form: Form | None = None,
        position: Position | None = None,
        norms: bool | None = None,
    ) -> None:
        super().__init__(Placement(configuration, block, form, position, norms), seed)
        self.width = None if width is None else require_count("width", width)
        self.targets = targets
        self._pattern = target_pattern(targets) if targets else None
        if targets and self.placement != Placement():
            raise InputError(
                f"targets {targets!r} name the layers themselves; leave them out or leave out "
                "configuration, block, form, position and norms"
            )

    def options(self) -> dict[str, Any]:
        """The arguments that build this method again."""
        return {"width": self.width, "targets": self.targets} | super().options()

    def check(self, model: TunableModel) -> None:
        """Refuse targets that match nothing, and a model without layers of a known layout."""
        if self._pattern:
            matched_modules(model.backbone, self._pattern)
        else:
            super().check(model)

    def _insert(self, model: TunableModel) -> dict[str, InsertedModule]:
        if self.width is None:
            self.width = _MUSIC_WIDTH if isinstance(model, MusicModel) else _ENCODER_WIDTH
        if not self._pattern:
            return super()._insert(model)
        generator = torch.Generator().manual_seed(self.seed)
        modules: dict[str, InsertedModule] = {}
        for name, layer in matched_modules(model.backbone, self._pattern).items():
            assert isinstance(layer, nn.Linear)
            modules[name] = BottleneckLinear(layer, self.width, generator)
            wrap(model.backbone, name, modules[name])
        return modules

    def _adapter(
        self, base: nn.Module, width: int, place: Place, generator: torch.Generator
    ) -> Adapted:
        assert self.width is not None
        return BottleneckLinear(base, self.width, generator, place, width)

    @classmethod
    def toy(cls) -> Self:
        """Small enough for a test."""
        return cls(width=4)
