"""Conditions before the music: texts and melodies of a decoder without cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from musictune.generation.cache import Cache
from musictune.generation.decoder import Changes, Decoder, Heard
from musictune.generation.request import Request

if TYPE_CHECKING:
    from musictune.generation.engine import Engine


class Prefixes:
    """As :class:`musictune.generation.listening.Listening`, in the first positions of the cache.

    Each clip's prefix is as long as it would be alone, so none is padded.
    """

    def __init__(self, engine: Engine, decoder: Decoder, batch: int, halves: int) -> None:
        self.model: Any = engine.model
        self.decoder, self.halves = decoder, halves
        self.prefix: int = self.model.chroma_length + self.model.tokenizer.model_max_length
        self.adapters = engine.adapters
        self._before: list[Tensor | None] = [None] * batch
        self._names: list[str | None] = [None] * batch

    def join(self, first: int, requests: Sequence[Request], cache: Cache) -> list[int]:
        """Clips take the places from ``first`` on; returns where the music of each begins."""
        starts = []
        for place, request in enumerate(requests, first):
            melodies = None if request.melody is None else [request.melody]
            with self.adapters.speaking(request.adapter):
                rows, _ = self.model.prefix([request.prompt], melodies, guided=self.halves > 1)
            positions = torch.arange(rows.shape[1], device=rows.device)
            before = rows.to(self.decoder.state) + self.decoder.place(positions)
            self._before[place], self._names[place] = before, request.adapter
            self._fill(place, before, cache)
            starts.append(rows.shape[1])
        return starts

    def heard(self, clips: int) -> Heard | None:
        """Nothing more."""
        return None

    def changes(self, clips: int) -> Changes | None:
        """What adapters of single clips add."""
        return self.adapters.mix(self._names[:clips], self.decoder)

    def fill(self, place: int, hidden: Tensor, cache: Cache, start: int) -> None:
        """Play the prefix and ``hidden`` ``(positions, width)`` after it into the cache."""
        before = self._before[place]
        assert before is not None
        rows = torch.cat([before, hidden.expand(self.halves, -1, -1)], 1)
        self._fill(place, rows, cache)

    def move(self, source: int, target: int) -> None:
        """The clip of one place is also that of another."""
        self._before[target], self._names[target] = self._before[source], self._names[source]

    def leave(self, place: int) -> None:
        """A place is free."""
        self._before[place] = self._names[place] = None

    def _fill(self, place: int, rows: Tensor, cache: Cache) -> None:
        changes = self.adapters.mix(self._names[place : place + 1], self.decoder)
        self.decoder.prefill(rows, cache, place * self.halves, None, changes)
