"""Trained keys and values beside an attention block's own, behind a gate that starts shut.

A memory is asked by :mod:`musictune.methods.attention_function`, beside the block's own attention.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musictune.methods.attention_function import MEMORIES, attention_blocks, follow, heads_of
from musictune.methods.inserted import Inserted, InsertedModule, require_count, require_seed
from musictune.models.base import TunableModel


class Memory(InsertedModule):
    """What one attention block remembers: its answer to queries, through ``tanh(gate)`` per head.

    The gate is that of LLaMA-Adapter (Zhang et al. 2023, arXiv 2303.16199): the memory has a
    softmax of its own, and a gate at zero makes it exactly nothing, with a gradient at once.

    Args:
        heads: of the attention block.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(heads))

    @abstractmethod
    def pairs(self, attention: Any) -> tuple[Tensor, Tensor]:
        """Keys and values for ``attention``, each ``(heads, entries, head size)``, or with clips
        before that."""

    def around(
        self, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the block itself is given; as it is, unless a memory has reason to change it."""
        return key, value, mask

    def heard(self, mask: Tensor | None) -> Tensor | None:
        """Where this memory may be heard, to be multiplied with ``(clips, heads, steps, size)``."""
        return None

    def answer(self, attention: Any, query: Tensor, mask: Tensor | None) -> Tensor | None:
        """What is added to the block's output, before its output projection.

        Args:
            attention: the block.
            query: ``(clips, heads, steps, head size)``.
            mask: the block's own, as its attention function gets it.

        Returns:
            ``(clips, steps, heads, head size)``, or None for nothing.
        """
        keys, values = (
            part.to(query.dtype).expand(len(query), -1, -1, -1) for part in self.pairs(attention)
        )
        found = F.scaled_dot_product_attention(query, keys, values, scale=attention.scaling)
        gate = self.scale * self.gate.tanh().to(query.dtype)
        found = found * gate[:, None, None]
        heard = self.heard(mask)
        if heard is not None:
            found = found * heard.to(found.dtype)
        return found.transpose(1, 2)


class Remembering(Inserted):
    """A method that gives attention blocks memories of ``length`` entries.

    Args:
        length: entries per block.
        targets: regular expression over names of attention blocks.
        seed: of the draw of what the memories begin as.
    """

    def __init__(self, length: int, targets: str, seed: int) -> None:
        super().__init__()
        self.length = require_count("length", length)
        self.targets = targets
        self.seed = require_seed(seed)
        self._start: dict[str, Tensor] = {}

    def options(self) -> dict[str, Any]:
        """The arguments that build this method again."""
        return {"length": self.length, "targets": self.targets, "seed": self.seed}

    def check(self, model: TunableModel) -> None:
        """Refuse targets that match no attention block, or one that cannot have a memory."""
        self._blocks(model)

    @torch.no_grad()
    def prepare(self, model: TunableModel, batches: Iterator[Any]) -> None:
        """Begin with states that the base itself has on the first batch, drawn with ``seed``."""
        self._start = self._look(model, next(batches))

    @abstractmethod
    def _look(self, model: TunableModel, batch: Any) -> dict[str, Tensor]:
        """``(length, width)`` states to begin with, by names of blocks."""

    @abstractmethod
    def _memories(self, model: TunableModel, blocks: dict[str, Any]) -> dict[str, Memory]:
        """A memory per block of ``model``."""

    def draw(self, states: Tensor) -> Tensor:
        """``length`` rows of ``states``, with ``seed``."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randint(len(states), (self.length,), generator=generator)
        return states[rows.to(states.device)].float()

    def start(self, block: str, width: int) -> Tensor:
        """``(length, width)`` fp32 states that a block's memory begins as."""
        if block in self._start:
            return self._start[block]
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.length, width, generator=generator)

    def _insert(self, model: TunableModel) -> dict[str, InsertedModule]:
        blocks = self._blocks(model)
        memories = self._memories(model, blocks)
        for name, block in blocks.items():
            if not hasattr(block, MEMORIES):
                setattr(block, MEMORIES, nn.ModuleDict())
            getattr(block, MEMORIES)[self.name] = memories[name]
        follow(model.backbone)
        return dict(memories)

    def _remove(self, model: TunableModel) -> None:
        for name in self._attached():
            block: Any = model.backbone.get_submodule(name)
            del block.memories[self.name]
            if not block.memories:
                del block.memories
        follow(model.backbone)

    def _blocks(self, model: TunableModel) -> dict[str, Any]:
        return attention_blocks(model, self.targets, self.name)


def split_heads(rows: Tensor, attention: Any) -> Tensor:
    """``(..., entries, width)`` to ``(..., heads, entries, head size)``."""
    return rows.unflatten(-1, (heads_of(attention), -1)).transpose(-3, -2)


def projected(states: Tensor, attention: Any) -> tuple[Tensor, Tensor]:
    """The block's own keys and values of ``(..., entries, width)`` states, split into heads."""
    key, value = attention.k_proj, attention.v_proj
    return split_heads(key(states), attention), split_heads(value(states), attention)
