"""Trained vectors beside the tokens of every transformer layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.methods.attention_function import heads_of
from musictune.methods.attention_memory import Memory, Remembering, projected
from musictune.methods.prefix import SELF_ATTENTION
from musictune.models.base import TunableModel
from musictune.models.blocks import Block, blocks


class LayerPrompts(Memory):
    """Vectors that one layer's self-attention reads as it reads tokens.

    Args:
        attention: the block it is for.
        layer: what the block is in; it stays no part of this module.
        norm: name in ``layer`` of the norm between residual stream and attention, "" for none.
        vectors: ``(entries, width)`` of the residual stream.
    """

    def __init__(self, attention: Any, layer: nn.Module, norm: str, vectors: Tensor) -> None:
        super().__init__(heads_of(attention))
        self.vectors = nn.Parameter(vectors)
        self._layer = (layer,)  # in a tuple, torch does not count it among this module's parts
        self._norm = norm

    def pairs(self, attention: Any) -> tuple[Tensor, Tensor]:
        """The block's own projections of the vectors, normed as tokens are, split into heads."""
        vectors = self.vectors.to(attention.k_proj.weight.dtype)
        return projected(normed(vectors, self._layer[0], self._norm), attention)


class DeepPrompt(Remembering):
    """Deep visual prompts (VPT-deep, Jia et al. 2022, arXiv 2203.12119): each layer has its own.

    There, prompts stand among a layer's tokens and are replaced at the next layer, so that their
    outputs count for nothing: what tokens hear of them are the layer's own keys and values of
    them. That is what is computed here. Ours: the prompts have a softmax of their own behind a gate
    per head, as in ``prefix``, so that training starts at the base exactly, and they begin as
    states that the base has on the clips.

    The 25 per layer of the study of adapters for AST (Cappellazzo et al. 2023, arXiv 2312.03694)
    are 230K weights on AST-base.

    Args:
        length: vectors per layer; each has the backbone's width.
        targets: regular expression over names of self-attention blocks.
        seed: of the draw of what the vectors begin as.
    """

    name: ClassVar[str] = "deep_prompt"
    mergeable: ClassVar[bool] = False
    # mini, koto, 60 steps of 5 s, nats on held-out clips: base 4.099; length 16 at 1e-2 4.068, 3e-2
    # 4.059, 1e-1 4.060; a prefix of 16 at 3e-2 4.054.
    learning_rate = 3e-2
    encoder_learning_rate = 1e-2  # the study's

    def __init__(self, length: int = 25, targets: str = SELF_ATTENTION, seed: int = 0) -> None:
        super().__init__(length, targets, seed)

    def check(self, model: TunableModel) -> None:
        """Refuse targets that match no self-attention block of a layer of a known layout."""
        layers_of(model, self._blocks(model), self.targets)

    def _look(self, model: TunableModel, batch: Any) -> dict[str, Tensor]:
        found = layers_of(model, self._blocks(model), self.targets)
        return layer_inputs(model, batch, found, self.draw)

    def _memories(self, model: TunableModel, blocks: dict[str, Any]) -> dict[str, Memory]:
        memories: dict[str, Memory] = {}
        for place in layers_of(model, blocks, self.targets):
            name, layer = place.attention, model.backbone.get_submodule(place.name)
            vectors = self.start(name, place.width)
            memories[name] = LayerPrompts(blocks[name], layer, norm_before(layer, place), vectors)
        return memories

    @classmethod
    def toy(cls) -> Self:
        """Small enough for a test."""
        return cls(length=3)


def layers_of(model: TunableModel, attention: Iterable[str], targets: str) -> list[Block]:
    """The layers that the named attention blocks are the self-attention of.

    Raises:
        InputError: one of them is no layer's self-attention.
    """
    wanted = list(attention)
    found = [block for block in blocks(model.backbone) if block.attention in wanted]
    other = next((n for n in wanted if n not in {block.attention for block in found}), None)
    if other is not None:
        raise InputError(
            f"targets {targets!r} matched {other}, which is no layer's self-attention; leave "
            "targets out"
        )
    return found


def norm_before(layer: nn.Module, block: Block) -> str:
    """Name in ``layer`` of the norm that its attention reads through; "" where that norm follows.

    The wav2vec 2.0 family has both orders under the same names; the class tells them apart.
    """
    norm = block.attention_norm.removeprefix(f"{block.name}.")
    follows = norm == "layer_norm" and "StableLayerNorm" not in type(layer).__name__
    return "" if follows else norm


def normed(states: Tensor, layer: nn.Module, norm: str) -> Tensor:
    """``states`` as the attention of ``layer`` is given them."""
    found: Tensor = layer.get_submodule(norm)(states) if norm else states
    return found


def layer_inputs(
    model: TunableModel, batch: Any, layers: Iterable[Block], draw: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """What ``draw`` takes of the states ``(tokens, width)`` that go into each layer.

    Returns:
        By the names of the layers' attention blocks.
    """
    seen: dict[str, Tensor] = {}

    def note(name: str, layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        states = given[0] if given else named["hidden_states"]
        seen[name] = draw(states.flatten(0, 1))

    with contextlib.ExitStack() as stack, torch.no_grad():
        for block in layers:
            layer = model.backbone.get_submodule(block.name)
            hook = partial(note, block.attention)
            stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        model.nll(batch)
    return seen
