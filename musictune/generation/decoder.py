"""MusicGen's decoder for one new column at a time, its weights packed as they are now.

What transformers' own step spends its time on is left out: the cache grows in place, the text's
keys and values are made once and not at all for the null prompt (whose states are zero, so that
attention to them adds nothing), queries, keys and values are one product, and guidance mixes the
last hidden states before the heads, which are linear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musictune.generation.attend import DevicePlaces, Places, attend
from musictune.generation.cache import Cache
from musictune.generation.packing import Apart, Live, Packer, Plain, Product, dtype_of
from musictune.generation.precision import Precision, has_amx
from musictune.kernels import attention as kernels

HALVES = 2
"""Rows of a guided clip: with its prompt, then without."""


class Changes(Protocol):
    """What adapters of single clips add to the products of all."""

    def add(self, layer: int, name: str, x: Tensor, made: Tensor) -> Tensor: ...


@dataclass(eq=False)
class Heard:
    """What rows listen to: those of clips with their prompts, or all.

    Attributes:
        keys, values: per layer ``(rows, heads, tokens, size)``.
        mask: ``(rows, 1, 1, tokens)``, 0 where there is a token and -inf elsewhere; a row
            without a text has one open place, whose value is zero.
        said: ``(rows, 1, 1, 1)`` whether there is a text.
        last: ``(rows,)`` the last open place.
    """

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor
    said: Tensor
    last: Tensor

    def attend(self, block: Block, query: Tensor, layer: int) -> Tensor:
        """``(rows, heads, size)`` to ``(rows, width)``."""
        keys, values = self.keys[layer], self.values[layer]
        if query.is_cuda and not (block.memories or block.relative):
            scale = 1.0 if block.folded else block.scale
            return kernels.attend(query, keys, values, self.last, scale).flatten(1)
        return attend(block, query, keys, values, self.mask, said=self.said)

    def __getitem__(self, rows: slice) -> Heard:
        """Some of the rows, seen in place."""
        keys, values = ([part[rows] for part in held] for held in (self.keys, self.values))
        return Heard(keys, values, self.mask[rows], self.said[rows], self.last[rows])


class Block:
    """One attention block's products, and what tuning methods added to it."""

    def __init__(self, attention: Any, packer: Packer, crossed: bool) -> None:
        self.module = attention
        self.heads: int = attention.num_heads
        self.memories = list(getattr(attention, "memories", {}).values())
        self.relative = list(getattr(attention, "relative", {}).values())
        self.scale: float = attention.scaling
        # Memories and relative terms read the query as it is.
        self.folded = not (self.memories or self.relative)
        parts = [attention.q_proj] if crossed else [attention.q_proj, attention.k_proj]
        parts = parts if crossed else [*parts, attention.v_proj]
        scale = self.scale if self.folded else 1.0
        self.project: Product = packer.pack(parts, scale) or Apart(parts, scale)
        self.out: Product = _packed(attention.out_proj, packer)


class Layer:
    """One decoder layer."""

    def __init__(self, layer: Any, packer: Packer, crossed: bool, state: torch.dtype) -> None:
        self.norm = _norm(layer.self_attn_layer_norm, state)
        self.final_norm = _norm(layer.final_layer_norm, state)
        self.attention = Block(layer.self_attn, packer, crossed=False)
        self.cross: Block | None = None
        if crossed:
            self.cross_norm = _norm(layer.encoder_attn_layer_norm, state)
            self.cross = Block(layer.encoder_attn, packer, crossed=True)
        self.up = _packed(layer.fc1, packer)
        self.down = _packed(layer.fc2, packer)
        self.activation: Callable[[Tensor], Tensor] = layer.activation_fn


class Decoder:
    """A packed copy of a backbone; what happens to the backbone later is not seen.

    Args:
        backbone: transformers' ``MusicgenForCausalLM`` or its melody twin, adapters and all.
        packer: that packs its weights.

    Attributes:
        crossed: whether texts are heard by cross-attention; else they stand before the music.
        null_is_silent: whether listening to no text adds exactly nothing; then rows without one
            need not listen.
    """

    @torch.no_grad()
    def __init__(self, backbone: Any, packer: Packer) -> None:
        config, decoder = backbone.config, backbone.model.decoder
        precision = packer.precision
        self.codebooks: int = config.num_codebooks
        self.width: int = config.hidden_size
        self.heads: int = config.num_attention_heads
        self.device = next(decoder.parameters()).device
        on_cpu = self.device.type == "cpu"
        self.state = torch.float32 if on_cpu else dtype_of(precision)
        # Where bf16 has no tiles, batched products of it are far slower than those of fp32.
        half = precision == "bfloat16" and (not on_cpu or has_amx())
        self.kept = torch.bfloat16 if half else self.state
        self.crossed = hasattr(decoder.layers[0], "encoder_attn")
        with packer.one_model():
            self.layers = [Layer(each, packer, self.crossed, self.state) for each in decoder.layers]
            # int8 heads would blur the scores themselves.
            careful: Precision = "float16" if precision == "int8" else precision
            heads = list(backbone.lm_heads)
            self._heads = packer.pack(heads, precision=careful) or Apart(heads, 1.0)
        self.last_norm = _norm(decoder.layer_norm, self.state)
        tables = [table.weight.detach().to(self.state) for table in decoder.embed_tokens]
        self._table = torch.cat(tables)
        starts = torch.tensor([0, *(len(table) for table in tables[:-1])])
        self._starts = starts.cumsum(0).to(self.device)
        self._embed_positions = decoder.embed_positions
        self._positions = self._positions_to(config.max_position_embeddings)
        self.null_is_silent = self.crossed and self._silent()

    def cache(self, rows: int, capacity: int) -> Cache:
        """An empty cache for ``rows`` sequences of up to ``capacity`` positions."""
        if capacity > len(self._positions):
            self._positions = self._positions_to(capacity)
        size = self.width // self.heads
        return Cache(len(self.layers), rows, self.heads, capacity, size, self.kept, self.device)

    def cache_bytes(self, rows: int, capacity: int) -> int:
        """Bytes of a full :meth:`cache`."""
        size = self.width // self.heads
        return Cache.nbytes(len(self.layers), rows, self.heads, capacity, size, self.kept)

    @torch.no_grad()
    def hear(self, states: Tensor, heard: Tensor) -> Heard:
        """Keys and values of texts, made once per clip.

        Args:
            states: ``(clips, tokens, width)``; zero where ``heard`` is.
            heard: ``(clips, tokens)``, 1 where there is a token.
        """
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for layer in self.layers:
            assert layer.cross is not None
            module = layer.cross.module
            given = states.to(next(module.parameters()).dtype)
            for held, projection in ((keys, module.k_proj), (values, module.v_proj)):
                made = projection(given).to(self.kept).unflatten(-1, (self.heads, -1))
                held.append(made.transpose(1, 2).contiguous())
        open_ = heard.bool()
        said = open_.any(1)
        open_[:, 0] |= ~said
        mask = torch.zeros(open_.shape, dtype=self.state, device=self.device)
        mask.masked_fill_(~open_, -torch.inf)
        last = open_.sum(1) - 1
        return Heard(keys, values, mask[:, None, None], said[:, None, None, None], last)

    def embed(self, columns: Tensor, positions: Tensor | int) -> Tensor:
        """Token columns ``(..., codebooks)`` at their positions to ``(..., width)``."""
        return F.embedding(columns + self._starts, self._table).sum(-2) + self.place(positions)

    def place(self, positions: Tensor | int) -> Tensor:
        """The sinusoids of positions, ``(..., width)``."""
        return self._positions[positions]

    def step(
        self,
        hidden: Tensor,
        cache: Cache,
        places: Places | DevicePlaces,
        heard: Heard | None,
        halves: int,
        changes: Changes | None = None,
    ) -> Tensor:
        """One new position of every row.

        Args:
            hidden: ``(rows, width)`` embedded; changed in place.
            cache: its first rows grow by one position.
            places: which position that is.
            heard: by each row, or by the first of each clip's; None without cross-attention.
            halves: rows of a clip: 2 with guidance, as prompted and then without.
            changes: of single clips.

        Returns:
            ``(rows, width)`` after the last norm.
        """

        def apply(name: str, multiply: Product, x: Tensor, norm: Product | None = None) -> Tensor:
            if changes is None:
                return normed(norm, multiply, x) if norm is not None else multiply(x)
            x = norm(x) if norm is not None else x
            return changes.add(index, name, x, multiply(x))

        for index, layer in enumerate(self.layers):
            block, keys, values = layer.attention, cache.keys[index], cache.values[index]
            made = apply("qkv", block.project, hidden, layer.norm)
            query, key, value = made.view(len(made), 3, self.heads, -1).unbind(1)
            found = places.attend(block, query, key, value, keys, values)
            hidden += apply("out", block.out, found)
            if heard is not None and layer.cross is not None:
                block, clips = layer.cross, len(heard.said)
                rows = hidden if clips == len(hidden) else hidden[::halves]
                query = apply("cross_query", block.project, rows, layer.cross_norm)
                query = query.view(clips, self.heads, -1)
                found = heard.attend(block, query, index)
                rows += apply("cross_out", block.out, found)
            wide = layer.activation(apply("up", layer.up, hidden, layer.final_norm))
            hidden += apply("down", layer.down, wide)
        return self.last_norm(hidden)

    def scores(self, hidden: Tensor, guidance: Tensor | None) -> Tensor:
        """Scores of the next tokens, fp32 ``(clips, codebooks, vocabulary)``.

        Args:
            hidden: ``(rows, width)`` after the last norm.
            guidance: ``(clips, 1)`` where rows come in pairs, else None.
        """
        return (
            self._heads(self.guided(hidden, guidance)).float().unflatten(-1, (self.codebooks, -1))
        )

    @property
    def head_weights(self) -> Tensor | None:
        """``(codebooks, vocabulary, width)``, where the heads are one plain product."""
        heads = self._heads
        if not isinstance(heads, Plain) or heads.bias is not None:
            return None
        return heads.weight.view(self.codebooks, -1, self.width)

    def guided(self, hidden: Tensor, guidance: Tensor | None) -> Tensor:
        """The hidden states whose scores are the guided ones, ``(clips, width)``."""
        if guidance is None:
            return hidden
        prompted, null = hidden.unflatten(0, (-1, HALVES)).unbind(1)
        return torch.lerp(null, prompted, guidance)

    def prefill(
        self,
        hidden: Tensor,
        cache: Cache,
        first: int,
        heard: Heard | None,
        changes: Changes | None = None,
    ) -> None:
        """The first positions of some rows at once.

        Args:
            hidden: ``(rows, positions, width)`` embedded.
            cache: its rows from ``first`` on get these positions, from 0 on.
            heard: by these rows' clips.
            changes: of these rows' clips.
        """
        rows, count, _ = hidden.shape
        halves = 1 if heard is None else rows // len(heard.said)
        span = slice(first, first + rows)
        if any(layer.attention.relative for layer in self.layers):
            part = cache.rows(span)
            for position in range(count):
                at = Places([position] * rows, 1)
                self.step(hidden[:, position].clone(), part, at, heard, halves, changes)
            return

        def apply(name: str, multiply: Product) -> Product:
            if changes is None:
                return multiply
            return lambda x: changes.add(index, name, x, multiply(x))

        hidden = hidden.clone()
        for index, layer in enumerate(self.layers):
            block = layer.attention
            project, out = apply("qkv", block.project), apply("out", block.out)
            made = project(layer.norm(hidden).flatten(0, 1)).to(self.kept)
            query, key, value = made.view(rows, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            cache.keys[index][span, :, :count] = key
            cache.values[index][span, :, :count] = value
            hidden += self._together(block, out, query, key, value, None, True, None)
            if heard is not None and layer.cross is not None:
                block = layer.cross
                listeners = hidden if len(heard.said) == rows else hidden[::halves]
                project = apply("cross_query", block.project)
                out = apply("cross_out", block.out)
                query = project(layer.cross_norm(listeners).flatten(0, 1)).to(self.kept)
                query = query.view(len(listeners), count, self.heads, -1).transpose(1, 2)
                listeners += self._together(
                    block, out, query, heard.keys[index], heard.values[index],
                    heard.mask.to(self.kept), False, heard.said,
                )  # fmt: skip
            up, down = apply("up", layer.up), apply("down", layer.down)
            wide = layer.activation(up(layer.final_norm(hidden).flatten(0, 1)))
            hidden += down(wide).view_as(hidden)

    def _together(
        self,
        block: Block,
        out: Product,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        causal: bool,
        said: Tensor | None,
    ) -> Tensor:
        """Attention of many positions, ``(rows, positions, width)``."""
        scale = 1.0 if block.folded else block.scale
        found = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scale
        ).transpose(1, 2)
        for memory in block.memories:
            if memory.scale != 0:
                found = found + memory.answer(block.module, query, said)
        made = out(found.flatten(2).flatten(0, 1).to(self.state))
        return made.view(len(query), -1, self.width)

    def _silent(self) -> bool:
        """Whether attention to zero states adds nothing, whatever methods are attached."""
        nothing = torch.zeros(1, self.width, dtype=self.state, device=self.device)
        for layer in self.layers:
            assert layer.cross is not None
            module = layer.cross.module
            value = module.v_proj(nothing.to(next(module.parameters()).dtype))
            if bool(value.any()) or bool(layer.cross.out(nothing).any()):
                return False
        return True

    def _positions_to(self, count: int) -> Tensor:
        table = self._embed_positions.weights
        if count > len(table):
            table = self._embed_positions.get_embedding(count, self.width)
        return table.to(self.device, self.state)


def _packed(module: Any, packer: Packer) -> Product:
    on_cpu = next(module.parameters()).device.type == "cpu"
    state = torch.float32 if on_cpu else dtype_of(packer.precision)
    return packer.pack([module]) or Live(module, state)


class _Norm:
    """A layer norm in the dtype of the states."""

    def __init__(self, module: Any, state: torch.dtype) -> None:
        self.shape, self.eps = module.normalized_shape, module.eps
        self.weight, self.bias = (part.detach().to(state) for part in (module.weight, module.bias))

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


def _norm(module: Any, state: torch.dtype) -> Product:
    if type(module) is not nn.LayerNorm or module._forward_hooks or module._forward_pre_hooks:
        return Live(module, state)
    return _Norm(module, state)


def normed(norm: Product, multiply: Product, x: Tensor) -> Tensor:
    """``multiply(norm(x))``, in one kernel where a GPU has both plain."""
    if x.is_cuda and isinstance(norm, _Norm) and isinstance(multiply, Plain):
        return kernels.norm_linear(
            x, norm.weight, norm.bias, multiply.weight, multiply.bias, norm.eps
        )
    return multiply(norm(x))
