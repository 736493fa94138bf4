"""A trained term of relative position in every self-attention block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.kernels.relative_attention import relative_attention, t5_buckets
from musictune.methods.attention_function import RELATIVE, attention_blocks, follow
from musictune.methods.inserted import Inserted, InsertedModule, require_count
from musictune.models.base import TunableModel

MUSIC_TRANSFORMER, T5 = "music_transformer", "t5"


class RelativeTerm(InsertedModule):
    """What one self-attention block adds to its scores; zero at first, with a gradient at once.

    Args:
        attention: the block.
        distances: keys that far back or farther share a row of the table, or the last bucket.
        buckets: None for Music Transformer's table ``embeddings`` (heads, distances, head size),
            else the width of T5's ``buckets`` (heads, buckets).
    """

    def __init__(self, attention: Any, distances: int, buckets: int | None) -> None:
        super().__init__()
        heads, size = attention.num_heads, attention.head_dim
        self.scaling: float = attention.scaling
        self.distances = distances
        self.embeddings = self.buckets = self._bucket = None
        if buckets is None:
            self.embeddings = nn.Parameter(torch.zeros(heads, distances, size))
        else:
            self.buckets = nn.Parameter(torch.zeros(heads, buckets))
            self._bucket = t5_buckets(torch.arange(distances + 1), buckets, distances)

    def bias(self, query: Tensor, positions: Tensor, length: int) -> Tensor:
        """What is added to the scaled scores; meaningless for keys after a query's position.

        Nothing here waits for the device or takes a shape from data.

        Args:
            query: ``(rows, heads, queries, head size)`` as projected, not scaled.
            positions: of the queries, int64 ``(rows,)`` or ``(rows, queries)``.
            length: keys, at positions 0 to ``length - 1``.

        Returns:
            ``(rows, heads, queries, length)`` in the dtype of ``query``.
        """
        keys = torch.arange(length, device=query.device)
        apart = positions.view(len(positions), -1, 1) - keys
        if self.embeddings is not None:
            table = self.embeddings.to(query.dtype).transpose(1, 2)
            terms = (query * (self.scale * self.scaling)) @ table
            index = apart.clamp(0, self.distances - 1)[:, None]
            return terms.gather(-1, index.expand(len(query), query.shape[1], -1, -1))
        index = apart.clamp(0, self.distances)
        found = (self._line() * self.scale).to(query.dtype)[:, index].transpose(0, 1)
        return found.expand(len(query), -1, -1, -1)

    def attend(
        self,
        plain: Callable[..., tuple[Tensor, Tensor | None]],
        attention: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention with this term, as transformers calls an attention function.

        Whole sequences without a mask go through the fused kernel. What it cannot do (padding,
        dropout, a single new position of a cache) is ``plain`` with the term in its mask.
        """
        queries = query.shape[2]
        if mask is None and queries > 1:
            # Keys after the queries, if any, are places of a cache that are still empty.
            key, value = key[:, :, :queries], value[:, :, :queries]
            if not options.get("dropout"):
                tables = self._scaled()
                output = relative_attention(query, key, value, scale=self.scaling, **tables)
                return output.transpose(1, 2).contiguous(), None
            square = torch.ones(queries, queries, dtype=torch.bool, device=query.device)
            mask = square.tril()[None, None]
        added = self.bias(query, _positions(mask, key), key.shape[2])
        if mask is not None:
            none = torch.finfo(added.dtype).min
            added = torch.where(mask, added, none) if mask.dtype == torch.bool else added + mask
        return plain(attention, query, key, value, added, **options)

    def _scaled(self) -> dict[str, Any]:
        if self.embeddings is not None:
            return {"embeddings": self.embeddings * self.scale}
        assert self.buckets is not None
        return {"bias": self.buckets * self.scale, "max_distance": self.distances}

    def _line(self) -> Tensor:
        """``(heads, distances + 1)`` of the buckets."""
        assert self.buckets is not None and self._bucket is not None
        self._bucket = self._bucket.to(self.buckets.device)
        return self.buckets.index_select(1, self._bucket)


class RelativeBias(Inserted):
    """Relative positions for a base that has only absolute ones: how far back a key is.

    ``music_transformer`` adds the relative logits of Music Transformer (Huang et al. 2018, arXiv
    1809.04281), whose table says for each head what a query looks for at each distance back: beats
    and repeats lie at distances, not at positions. ``t5`` adds T5's bias (Raffel et al. 2020,
    arXiv 1910.10683), a number per head and bucket of distances, whatever the query.

    Ours: they are trained beside a pretrained model's own positions, from zero, each block with a
    table of its own; the last row or bucket stands for all that is farther back.

    Args:
        kind: ``music_transformer`` or ``t5``.
        distances: rows of the table, in frames of the codec; for ``t5`` where its last bucket
            begins. Each row costs the width of the backbone in every block.
        buckets: of ``t5``; the first half hold one distance each.
        targets: regular expression over names of self-attention blocks.
    """

    name: ClassVar[str] = "relative_bias"
    mergeable: ClassVar[bool] = False
    # mini, koto, 100 steps of 5 s, nats on held-out clips: base 4.122; music_transformer 3e-3
    # 4.102, 1e-2 4.102, 3e-2 4.111; t5 3e-2 4.103, 1e-1 4.111. A prefix at 3e-2 reached 4.021:
    # alone, relative terms learn little of a sound.
    learning_rate = 1e-2

    def __init__(
        self,
        kind: str = MUSIC_TRANSFORMER,
        distances: int = 128,
        buckets: int = 32,
        targets: str = r"self_attn$",
    ) -> None:
        super().__init__()
        if kind not in (MUSIC_TRANSFORMER, T5):
            raise InputError(f"kind {kind!r} is unknown; choose {MUSIC_TRANSFORMER} or {T5}")
        self.kind = kind
        self.distances = require_count("distances", distances)
        self.buckets = require_count("buckets", buckets)
        self.targets = targets
        if kind == T5:
            t5_buckets(torch.arange(1), self.buckets, self.distances)  # refuses what cannot be

    def options(self) -> dict[str, Any]:
        """The arguments that build this method again."""
        return {
            "kind": self.kind,
            "distances": self.distances,
            "buckets": self.buckets,
            "targets": self.targets,
        }

    def check(self, model: TunableModel) -> None:
        """Refuse targets that match no self-attention block, or one with such a term already."""
        self._blocks(model)

    def _insert(self, model: TunableModel) -> dict[str, InsertedModule]:
        buckets = self.buckets if self.kind == T5 else None
        terms: dict[str, InsertedModule] = {}
        for name, block in self._blocks(model).items():
            terms[name] = RelativeTerm(block, self.distances, buckets)
            block.relative = nn.ModuleDict({self.name: terms[name]})
        follow(model.backbone)
        return terms

    def _remove(self, model: TunableModel) -> None:
        for name in self._attached():
            del model.backbone.get_submodule(name).relative
        follow(model.backbone)

    def _blocks(self, model: TunableModel) -> dict[str, Any]:
        blocks = attention_blocks(model, self.targets, self.name)
        for name, block in blocks.items():
            if not getattr(block, "is_causal", False):
                raise InputError(
                    f"targets {self.targets!r} matched {name}, whose keys are no earlier positions "
                    "of the music; name self-attention blocks such as self_attn"
                )
            if hasattr(block, RELATIVE):
                raise InputError(
                    f"block {name} has a term of relative position already; use one adapter of "
                    f"method {self.name} at a time"
                )
        return blocks

    @classmethod
    def toy(cls) -> Self:
        """Small enough for a test, with distances beyond the table."""
        return cls(distances=5)


def _positions(mask: Tensor | None, key: Tensor) -> Tensor:
    """Positions of queries, ``(rows or 1, queries)``: the last key that each may hear."""
    if mask is None:
        return torch.full((1, 1), key.shape[2] - 1, device=key.device)
    heard = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    places = torch.arange(mask.shape[-1], device=mask.device)
    return (heard[:, 0] * places).amax(-1)
