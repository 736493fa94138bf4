"""Compacter: bottleneck adapters whose matrices are sums of small Kronecker products."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musictune.errors import InputError
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
)
from musictune.models.base import TunableModel
from musictune.models.blocks import blocks


class CompacterAdapter(Adapted):
    """An adapter ``up(gelu(down(x)))`` with ``down`` and ``up`` as Kronecker products.

    Each matrix is the sum over ``i`` of ``rules[i]`` (x) ``left[i] @ right[i]``.

    Args:
        base: the layer that it is at.
        features: channels of the residual stream.
        width: of the bottleneck.
        rules: ``(n, n, n)``, the same tensor for all adapters of a model.
        rank: of what the rules are multiplied with.
        generator: draws the factors; one of the two of ``up`` starts at zero.
        place: as of :class:`Adapted`.
    """

    def __init__(
        self,
        base: nn.Module,
        features: int,
        width: int,
        rules: nn.Parameter,
        rank: int,
        generator: torch.Generator,
        place: Place,
    ) -> None:
        super().__init__(base, place)
        count = len(rules)
        tall, wide = features // count, width // count

        def drawn(*shape: int, variance: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * math.sqrt(variance))

        # With rules of variance 1/n these make entries of ``down`` of variance 1/features.
        self.rules = rules
        self.down_left = drawn(count, wide, rank, variance=1 / rank)
        self.down_right = drawn(count, rank, tall, variance=1 / features)
        self.down_bias = nn.Parameter(torch.zeros(width))
        self.up_left = drawn(count, tall, rank, variance=1 / rank)
        self.up_right = nn.Parameter(torch.zeros(count, rank, wide))
        self.up_bias = nn.Parameter(torch.zeros(features))

    def change(self, x: Tensor) -> Tensor:
        """``(..., features)`` to the same."""
        down = kronecker_sum(self.rules, self.down_left, self.down_right).to(x.dtype)
        up = kronecker_sum(self.rules, self.up_left, self.up_right).to(x.dtype)
        narrow = F.gelu(F.linear(x, down, self.down_bias.to(x.dtype)))
        return F.linear(narrow, up.to(narrow.dtype), self.up_bias.to(narrow.dtype)).to(x.dtype)


def kronecker_sum(rules: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The sum over ``i`` of ``kron(rules[i], left[i] @ right[i])``.

    Args:
        rules: ``(n, a, b)``.
        left: ``(n, rows, rank)``.
        right: ``(n, rank, columns)``.

    Returns:
        ``(a * rows, b * columns)``.
    """
    found = torch.einsum("iab,irc->arbc", rules, left @ right)
    return found.flatten(2).flatten(0, 1)


class Compacter(Placed):
    """Compacter (Karimi Mahabadi et al. 2021, arXiv 2106.04647) on a frozen backbone.

    The ``n`` by ``n`` factors are shared by all layers; each layer has its own factors of low rank.
    On models that make music there is one adapter behind each block, as in the paper, and on
    encoders one beside each feed-forward block with trained layer norms, as ``bottleneck`` has it.
    Ours: one set of shared factors for both matrices of all adapters, all factors drawn so that
    ``down`` begins as large as a bottleneck's, and ``up`` at exactly zero.

    Args:
        width: of the bottleneck; ``products`` must divide it. 24 is AST-base's 768 channels by the
            paper's reduction of 32.
        products: ``n``, Kronecker products in a sum; it must divide the model's channels.
        rank: of each layer's own factors.
        seed: of the draw of the first weights.
        configuration: ``pfeiffer``, one adapter per layer, or ``houlsby``, two.
        block: the one that ``pfeiffer`` takes, ``feed_forward`` or ``attention``.
        form: ``parallel`` to the block, or in ``series`` with it.
        position: of ``series``: ``after`` the block or ``before`` it.
        norms: train the layer norms of those blocks and the outer one too.
    """

    name: ClassVar[str] = "compacter"
    mergeable: ClassVar[bool] = False
    learning_rate = 3e-3  # of models that make music; not searched

    def __init__(
        self,
        width: int = 24,
        products: int = 4,
        rank: int = 1,
        seed: int = 0,
        configuration: Configuration | None = None,
        block: Part | None = None,
        form: Form | None = None,
        position: Position | None = None,
        norms: bool | None = None,
    ) -> None:
        super().__init__(Placement(configuration, block, form, position, norms), seed)
        self.width = require_count("width", width)
        self.products = require_count("products", products)
        self.rank = require_count("rank", rank)
        if width % products:
            raise InputError(
                f"products {products} must divide width {width}; choose another of the two"
            )
        self._rules: nn.Parameter | None = None

    def options(self) -> dict[str, Any]:
        """The arguments that build this method again."""
        own = {"width": self.width, "products": self.products, "rank": self.rank}
        return own | super().options()

    def check(self, model: TunableModel) -> None:
        """Refuse a model whose channels cannot be split.

        Raises:
            InputError: that, or it has no layers of a known layout.
        """
        super().check(model)
        odd = next((b for b in blocks(model.backbone) if b.width % self.products), None)
        if odd is not None:
            raise InputError(
                f"products {self.products} must divide the {odd.width} channels of {odd.name}; "
                "choose another number, such as 2 or 4"
            )

    def _insert(self, model: TunableModel) -> dict[str, InsertedModule]:
        generator = torch.Generator().manual_seed(self.seed)
        count = self.products
        drawn = torch.randn(count, count, count, generator=generator) / math.sqrt(count)
        self._rules = nn.Parameter(drawn)
        return super()._insert(model)

    def _adapter(
        self, base: nn.Module, width: int, place: Place, generator: torch.Generator
    ) -> Adapted:
        assert self._rules is not None
        return CompacterAdapter(base, width, self.width, self._rules, self.rank, generator, place)

    @classmethod
    def toy(cls) -> Self:
        """Small enough for a test."""
        return cls(width=4, products=2)
