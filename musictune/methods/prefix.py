"""A trained prefix of keys and values for every self-attention block."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from musictune.methods.attention_function import heads_of
from musictune.methods.attention_memory import Memory, Remembering, split_heads
from musictune.models.base import TunableModel

SELF_ATTENTION = r"(^|\.)(self_attn|attention)$"
"""Names of self-attention blocks: MusicGen's, then those of audio encoders."""


class PrefixMemory(Memory):
    """Keys and values of its own.

    Args:
        attention: the block it is for.
        states: ``(entries, width)`` inputs of that block, whose keys and values it begins as.
    """

    @torch.no_grad()
    def __init__(self, attention: Any, states: Tensor) -> None:
        super().__init__(heads_of(attention))
        states = states.to(attention.k_proj.weight)
        self.keys = nn.Parameter(attention.k_proj(states).float())
        self.values = nn.Parameter(attention.v_proj(states).float())

    def pairs(self, attention: Any) -> tuple[Tensor, Tensor]:
        """As trained, split into heads."""
        return split_heads(self.keys, attention), split_heads(self.values, attention)


class Prefix(Remembering):
    """Prefix tuning (Li and Liang 2021, arXiv 2101.00190): keys and values that are always there.

    It is also what a trained initial state (Lina-Speech, arXiv 2410.23320) becomes where attention
    is a softmax instead of a recurrence: something that was heard before the first step.

    Ours: the prefix has a softmax of its own behind LLaMA-Adapter's gate, so that training starts
    at the base exactly (an entry in the common softmax takes weight from the others even if it is
    zero); it begins as the keys and values of states that the base has on the clips; and there is
    no network that generates it. It acts with and without a text, so on both halves of guidance.

    The study of adapters for AST (Cappellazzo et al. 2023, arXiv 2312.03694) counts keys and values
    apart: its prefix of 24 tokens, 221K weights on AST-base, is ``length=12`` here.

    Args:
        length: entries per block, each a key and a value: ``2 * width`` weights.
        targets: regular expression over names of attention blocks.
        seed: of the draw of what the prefix begins as.
    """

    name: ClassVar[str] = "prefix"
    mergeable: ClassVar[bool] = False
    # mini, one concept, 100 steps, nats on held-out clips: base 4.241, 3e-2 4.071, 1e-1 4.103.
    learning_rate = 3e-2
    encoder_learning_rate = 1e-2  # the study's for prompts

    def __init__(self, length: int = 16, targets: str = SELF_ATTENTION, seed: int = 0) -> None:
        super().__init__(length, targets, seed)

    def _look(self, model: TunableModel, batch: Any) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def note(name: str, projection: nn.Module, given: tuple[Tensor, ...]) -> None:
            # Prompts of another method go through the same projection, after the block's input.
            if name not in seen:
                seen[name] = self.draw(given[0].flatten(0, 1))

        with contextlib.ExitStack() as stack:
            for name, block in self._blocks(model).items():
                hook = block.k_proj.register_forward_pre_hook(partial(note, name))
                stack.callback(hook.remove)
            model.nll(batch)
        return seen

    def _memories(self, model: TunableModel, blocks: dict[str, Any]) -> dict[str, Memory]:
        return {
            name: PrefixMemory(block, self.start(name, block.k_proj.in_features))
            for name, block in blocks.items()
        }

    @classmethod
    def toy(cls) -> Self:
        """Small enough for a test."""
        return cls(length=3)
