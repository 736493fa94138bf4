"""Trained vectors that pass through an audio encoder beside its tokens."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.methods.attention_function import heads_of
from musictune.methods.attention_memory import Memory, Remembering, projected
from musictune.methods.deep_prompt import layer_inputs, layers_of, norm_before, normed
from musictune.methods.inserted import InsertedModule
from musictune.methods.prefix import SELF_ATTENTION
from musictune.models.base import TunableModel


class PassingPrompts(Memory):
    """What one layer does with prompts that came in behind its tokens.

    The layer's own forward pass sees the tokens alone, so that it computes what the base does to
    the bit; its attention hears the prompts through the gate. A second pass of the layer, on the
    prompts alone, brings them to the next layer; there, keys and values are those of tokens and
    prompts.

    Args:
        attention: the block it is for.
        vectors: ``(entries, width)``, those that go into the first layer; shared by all.
        norm: name in the layer of the norm between residual stream and attention, "" for none.
        first, last: whether the prompts enter before this layer, or are dropped after it.
    """

    def __init__(
        self, attention: Any, vectors: nn.Parameter, norm: str, *, first: bool, last: bool
    ) -> None:
        super().__init__(heads_of(attention))
        self.vectors = vectors
        self._norm = norm
        self._first, self._last = first, last
        # Only inside a layer's pass: prompts (clips, entries, width) as attention reads them, and
        # keys, values and mask of the tokens.
        self._read: Tensor | None = None
        self._tokens: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._passing = False

    def pairs(self, attention: Any) -> tuple[Tensor, Tensor]:
        """The block's own projections of the prompts that came in, split into heads."""
        assert self._read is not None
        return projected(self._read, attention)

    def around(
        self, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Remember those of the tokens, and give the prompts theirs with the tokens' before."""
        if not self._passing:
            self._tokens = key, value, mask
            return key, value, mask
        assert self._tokens is not None
        keys, values, heard = self._tokens
        if heard is not None:
            # All queries of an encoder hear the same keys: those that are no padding.
            heard = heard[:, :, :1]
            ours = torch.ones if heard.dtype == torch.bool else torch.zeros
            shape = (*heard.shape[:3], key.shape[2])
            heard = torch.cat([heard, ours(shape, dtype=heard.dtype, device=heard.device)], -1)
            heard = heard.expand(-1, -1, key.shape[2], -1)
        return torch.cat([keys, key], 2), torch.cat([values, value], 2), heard

    def answer(self, attention: Any, query: Tensor, mask: Tensor | None) -> Tensor | None:
        """As any memory's to the tokens; the prompts hear each other in the common softmax."""
        return None if self._passing else super().answer(attention, query, mask)

    def through(self, layer: Any, states: Tensor, *given: Any, **named: Any) -> Tensor:
        """In place of the layer's forward pass: of tokens, with the prompts behind them.

        Args:
            layer: the layer.
            states: ``(clips, tokens, width)``, with ``entries`` more behind the first layer.
            given, named: what else the layer is called with.

        Returns:
            The same, without prompts behind the last layer.
        """
        if self.scale == 0:
            whole: Tensor = type(layer).forward(layer, states, *given, **named)
            return whole
        # transformers recomputes a layer's own forward pass; what is around it has to go along.
        if getattr(layer, "gradient_checkpointing", False) and layer.training:
            both = partial(self._both, layer, **named)
            found: Tensor = layer._gradient_checkpointing_func(both, states, *given)
            return found
        return self._both(layer, states, *given, **named)

    def _both(self, layer: Any, states: Tensor, *given: Any, **named: Any) -> Tensor:
        count = len(self.vectors)
        if self._first:
            prompts = self.vectors.to(states.dtype).expand(len(states), -1, -1)
        else:
            prompts, states = states[:, -count:], states[:, :-count].contiguous()
        plain = partial(inspect.unwrap(type(layer).forward), layer)
        try:
            self._read = normed(prompts, layer, self._norm)
            tokens: Tensor = plain(states, *given, **named)
            if self._last:
                return tokens
            self._passing = True
            return torch.cat([tokens, plain(prompts, *given, **named)], 1)
        finally:
            self._passing, self._read, self._tokens = False, None, None


class ShallowPrompt(Remembering):
    """Shallow visual prompts (VPT-shallow, Jia et al. 2022, arXiv 2203.12119).

    Vectors join the tokens before an encoder's first layer, pass through all layers as tokens do
    and are dropped at the end. Ours: tokens hear them through a softmax of their own behind a gate
    per head and layer, as in ``prefix``, so that training starts at the base exactly; prompts hear
    everything in a common softmax, as in the paper. They begin as states that go into the first
    layer.

    The 300 of the study of adapters for AST (Cappellazzo et al. 2023, arXiv 2312.03694) are 230K
    weights on AST-base.

    Args:
        length: vectors; each has the encoder's width.
        seed: of the draw of what they begin as.
    """

    name: ClassVar[str] = "shallow_prompt"
    mergeable: ClassVar[bool] = False
    learning_rate = 1e-2
    encoder_learning_rate = 1e-2  # the study's

    def __init__(self, length: int = 300, seed: int = 0) -> None:
        super().__init__(length, SELF_ATTENTION, seed)

    def options(self) -> dict[str, Any]:
        """The arguments that build this method again."""
        return {"length": self.length, "seed": self.seed}

    def check(self, model: TunableModel) -> None:
        """Refuse a model whose steps hear only those before them, or of an unknown layout.

        Raises:
            InputError: one of the two.
        """
        if model.causal:
            raise InputError(
                f"method {self.name} is for audio encoders, such as an AST, wav2vec 2.0 or HuBERT, "
                f"and {model.base!r} makes music step by step; choose deep_prompt or prefix"
            )
        layers_of(model, self._blocks(model), self.targets)

    def _look(self, model: TunableModel, batch: Any) -> dict[str, Tensor]:
        first = layers_of(model, self._blocks(model), self.targets)[:1]
        seen = layer_inputs(model, batch, first, self.draw)
        return {"": next(iter(seen.values()))}

    def _memories(self, model: TunableModel, blocks: dict[str, Any]) -> dict[str, Memory]:
        layers = layers_of(model, blocks, self.targets)
        vectors = nn.Parameter(self.start("", layers[0].width))
        memories: dict[str, Memory] = {}
        for place in layers:
            norm = norm_before(model.backbone.get_submodule(place.name), place)
            memories[place.attention] = PassingPrompts(
                blocks[place.attention], vectors, norm,
                first=place == layers[0], last=place == layers[-1],
            )  # fmt: skip
        return memories

    def _insert(self, model: TunableModel) -> dict[str, InsertedModule]:
        self.check(model)
        memories = super()._insert(model)
        for place in layers_of(model, memories, self.targets):
            layer, memory = model.backbone.get_submodule(place.name), memories[place.attention]
            assert isinstance(memory, PassingPrompts)
            layer.forward = partial(memory.through, layer)  # type: ignore[method-assign]
        return memories

    def _remove(self, model: TunableModel) -> None:
        for place in layers_of(model, self._attached(), self.targets):
            del model.backbone.get_submodule(place.name).forward
        super()._remove(model)

    @classmethod
    def toy(cls) -> Self:
        """Small enough for a test."""
        return cls(length=3)
