"""New words for the text encoder: one or more embedding rows per concept, the rest frozen."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musictune.data.concepts import Concept
from musictune.errors import InputError
from musictune.methods.base import TuningMethod, music_model
from musictune.methods.storage import load_json, load_tensors, save_json, save_tensors
from musictune.models.base import TunableModel

_NOISE = 0.1  # of the table's spread, so that several tokens of one concept can part
_SEED = 0


class ConceptEmbedding(nn.Module):
    """``base`` with ``rows`` for the ids from ``first`` on.

    The new rows are a parameter of their own, so the table itself gets no gradient.

    Args:
        base: the text encoder's embedding; kept, frozen and never written to.
        first: the first new id; the table may have spare rows there.
        start: ``(new ids, width)`` what the new rows begin as.
    """

    def __init__(self, base: nn.Embedding, first: int, start: Tensor) -> None:
        super().__init__()
        self.base = base
        self.first = first
        self.rows = nn.Parameter(start.float().clone())

    @property
    def weight(self) -> Tensor:
        """``(ids, width)``, the whole table."""
        return torch.cat([self.base.weight[: self.first], self.rows.to(self.base.weight.dtype)])

    def forward(self, ids: Tensor) -> Tensor:
        """``(..., tokens)`` ids to ``(..., tokens, width)``."""
        new = ids >= self.first
        known = self.base(ids.masked_fill(new, 0))
        rows = F.embedding((ids - self.first).clamp_min(0), self.rows).to(known.dtype)
        return torch.where(new[..., None], rows, known)


class ConceptTokens(TuningMethod):
    """Learns what new words mean, as textual inversion (Gal et al. 2022, arXiv 2208.01618) does.

    Each token of a concept starts as the mean of its class word's tokens; from the second on with
    a little noise. Combines with every other method in ``Combined``.

    Args:
        concepts: the words to learn.
    """

    name: ClassVar[str] = "concept_tokens"
    learning_rate = 1e-2

    def __init__(self, concepts: Sequence[Concept] = ()) -> None:
        self.concepts = list(concepts)
        self._embedding: ConceptEmbedding | None = None
        self._start: Tensor | None = None
        self._tokenizer: Any = None
        self._before: list[Concept] = []

    def check(self, model: TunableModel) -> None:
        """Refuse a name that the model knows.

        Raises:
            InputError: no concept was named, or its name is in the vocabulary already.
        """
        if not self.concepts:
            raise InputError("concept tokens need a concept; pass --concept NAME --class-word WORD")
        for concept in self.concepts:
            _refuse_known(concept, music_model(model, self.name).tokenizer)

    def attach(self, model: TunableModel) -> None:
        """Add the words to the tokenizer and their rows to the text encoder.

        Raises:
            InputError: as :meth:`check`.
        """
        self.check(model)
        model = music_model(model, self.name)
        encoder: Any = model.text_encoder
        table = encoder.get_input_embeddings()
        self._start = torch.cat([_start(c, model.tokenizer, table) for c in self.concepts])
        self._tokenizer, self._before = model.tokenizer, model.concepts
        model.requires_grad_(False)
        self._embedding = ConceptEmbedding(table, len(model.tokenizer), self._start)
        encoder.set_input_embeddings(self._embedding)
        model.tokenizer = copy.deepcopy(model.tokenizer)
        model.tokenizer.add_tokens([t for c in self.concepts for t in c.token_names])
        model.concepts = [*model.concepts, *self.concepts]

    @contextlib.contextmanager
    def disabled(self, model: TunableModel) -> Iterator[None]:
        """The base itself inside: it reads a concept's name as any unknown word."""
        model = music_model(model, self.name)
        tokenizer, concepts = model.tokenizer, model.concepts
        model.tokenizer, model.concepts = self._tokenizer, self._before
        try:
            yield
        finally:
            model.tokenizer, model.concepts = tokenizer, concepts

    @contextlib.contextmanager
    def unlearned(self) -> Iterator[None]:
        """Inside, the new words are known, but mean what they began as."""
        rows = self._attached().rows
        learned = rows.detach().clone()
        assert self._start is not None
        rows.data.copy_(self._start)
        try:
            yield
        finally:
            rows.data.copy_(learned)

    @torch.no_grad()
    def weigh(self, learned: Tensor, weight: float) -> None:
        """Let the words mean ``weight`` of the way from where they began to ``learned``.

        Args:
            learned: ``(tokens, width)``, what they mean at weight 1.
            weight: 0 for the class word's own meaning.
        """
        rows, start = self._attached().rows, self._start
        assert start is not None
        rows.copy_(start + weight * (learned - start))

    @property
    def rows(self) -> Tensor:
        """``(tokens, width)``, a copy of what the words mean now."""
        return self._attached().rows.detach().clone()

    def save(self, model: TunableModel, folder: Path) -> None:
        """``concept_tokens.safetensors`` with ``rows``, and ``concept_tokens.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors({"rows": self._attached().rows}, folder / "concept_tokens.safetensors")
        concepts = {"concepts": [asdict(c) for c in self.concepts]}
        save_json(concepts, folder / "concept_tokens.json")

    @classmethod
    def load(cls, model: TunableModel, folder: Path) -> Self:
        """Attach what :meth:`save` wrote.

        Raises:
            InputError: a file is missing or corrupt, made for another base, or the model already
                knows a word of that name.
        """
        config = load_json(folder / "concept_tokens.json")
        rows = load_tensors(folder / "concept_tokens.safetensors").get("rows")
        try:
            method = cls([Concept(**fields) for fields in config["concepts"]])
        except (KeyError, TypeError) as error:
            raise InputError(f"adapter {folder} is damaged: bad concepts ({error})") from error
        encoder: Any = music_model(model, cls.name).text_encoder
        width = encoder.get_input_embeddings().weight.shape[1]
        count = sum(concept.tokens for concept in method.concepts)
        if rows is None or list(rows.shape) != [count, width]:
            raise InputError(
                f"adapter {folder} was made for another base: its concept tokens are "
                f"{None if rows is None else list(rows.shape)}, this base needs {[count, width]}"
            )
        method.attach(model)
        with torch.no_grad():
            method._attached().rows.copy_(rows)
        return method

    @torch.no_grad()
    def merge(self, model: TunableModel, weight: float = 1.0) -> None:
        """Make the rows part of the table, ``weight`` of the way from where they began."""
        embedding, start = self._attached(), self._start
        assert start is not None
        rows = start + weight * (embedding.rows - start)
        encoder: Any = model.text_encoder
        encoder.set_input_embeddings(embedding.base)
        total = embedding.first + len(rows)
        if total > embedding.base.num_embeddings:
            encoder.resize_token_embeddings(total, mean_resizing=False)
        table = encoder.get_input_embeddings().weight
        table[embedding.first : total] = rows.to(table.dtype)
        self._embedding = None

    def detach(self, model: TunableModel) -> None:
        """Put the plain table and tokenizer back."""
        model = music_model(model, self.name)
        encoder: Any = model.text_encoder
        encoder.set_input_embeddings(self._attached().base)
        model.tokenizer, model.concepts = self._tokenizer, self._before
        self._embedding = None

    def describe(self) -> dict[str, int | float | str]:
        """The words and how many weights they are."""
        rows = self._attached().rows
        return {
            "method": self.name,
            "concepts": ", ".join(concept.trigger for concept in self.concepts),
            "concept_tokens": len(rows),
            "trained_parameters": rows.numel(),
        }

    @classmethod
    def toy(cls) -> Self:
        """One concept of two tokens, in words that every toy model knows."""
        return cls([Concept("zorblax", "piano", tokens=2)])

    def _attached(self) -> ConceptEmbedding:
        if self._embedding is None:
            raise InputError("concept tokens are not attached to a model")
        return self._embedding


def _refuse_known(concept: Concept, tokenizer: Any) -> None:
    known = tokenizer.get_vocab()
    # Word-initial marks of SentencePiece and of byte-level BPE, and the word-final one of BPE.
    bare = concept.name
    spellings = (bare, f"▁{bare}", f"Ġ{bare}", f"{bare}</w>", concept.trigger)
    taken = next((word for word in (*spellings, *concept.token_names) if word in known), None)
    if taken is not None:
        raise InputError(
            f"concept name {concept.name!r} is already in the model's vocabulary (as "
            f"{json.dumps(taken, ensure_ascii=False)}); choose a word that means nothing yet"
        )


@torch.no_grad()
def _start(concept: Concept, tokenizer: Any, table: Any) -> Tensor:
    """``(tokens, width)`` fp32 rows that a concept begins as: a function of the base alone."""
    ids = tokenizer(concept.class_word, add_special_tokens=False)["input_ids"]
    weight = table.weight
    mean = weight[torch.tensor(ids, device=weight.device)].float().mean(0)
    rows = mean.repeat(concept.tokens, 1)
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(_SEED))
    noise[0] = 0
    return rows + _NOISE * weight.float().std() * noise.to(rows.device)
