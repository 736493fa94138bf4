"""What the clips of a session listen to: texts by cross-attention, or states before the music."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.generation.cache import Cache
from musictune.generation.decoder import HALVES, Changes, Decoder, Heard
from musictune.generation.request import Request

if TYPE_CHECKING:
    from musictune.generation.engine import Engine

_ROUND = 64
"""Texts are padded to multiples of this, so that a clip's sums do not depend on its neighbours."""


class Listening:
    """The conditions of up to ``batch`` clips, a place each.

    Attributes:
        prefix: positions in the cache that conditions may take.
    """

    def __init__(self, engine: Engine, decoder: Decoder, batch: int, halves: int) -> None:
        self.model, self.decoder = engine.model, decoder
        self.batch, self.halves = batch, halves
        self.prefix = 0
        # Rows that listen, of each clip.
        self._each = halves if decoder.crossed and not decoder.null_is_silent else 1
        self._heard: Heard | None = None
        self.adapters = engine.adapters
        self._texts: list[str | None] = [None] * batch
        self._names: list[str | None] = [None] * batch

    def join(self, first: int, requests: Sequence[Request], cache: Cache) -> list[int]:
        """Clips take the places from ``first`` on.

        Returns:
            At which position the music of each begins.
        """
        for place, request in enumerate(requests, first):
            read = request.prompt, request.adapter
            others = enumerate(zip(self._texts, self._names, strict=True))
            known = next((p for p, other in others if other == read), None)
            self._texts[place], self._names[place] = read
            if known is not None:
                self.move(known, place)
                continue
            self._put(place * self._each, self._hear(*read))
        return [0] * len(requests)

    def _hear(self, prompt: str, adapter: str | None) -> Heard:
        """One text alone: beside others, padded to their length, its sums would be others'."""
        with self.adapters.speaking(adapter):
            states, mask = self.model.condition([prompt])
        if self._each == HALVES:
            states = torch.cat([states, torch.zeros_like(states)])
            mask = torch.cat([mask, torch.zeros_like(mask)])
        more = -states.shape[1] % _ROUND
        states = F.pad(states, (0, 0, 0, more))
        heard = self.decoder.hear(states, F.pad(mask, (0, more)))
        if adapter is not None:
            self.adapters.hear(adapter, heard, states)
        return heard

    def heard(self, clips: int) -> Heard | None:
        """What the first ``clips`` places listen to at each step."""
        return self._part(slice(0, clips * self._each))

    def changes(self, clips: int) -> Changes | None:
        """What adapters of single clips add."""
        return self.adapters.mix(self._names[:clips], self.decoder)

    def fill(self, place: int, hidden: Tensor, cache: Cache, start: int) -> None:
        """Play ``hidden`` ``(positions, width)``, the first columns of a place, into the cache."""
        heard = self._part(slice(place * self._each, (place + 1) * self._each))
        rows = hidden.expand(self.halves, -1, -1)
        changes = self.adapters.mix(self._names[place : place + 1], self.decoder)
        self.decoder.prefill(rows, cache, place * self.halves, heard, changes)

    def move(self, source: int, target: int) -> None:
        """The clip of one place is also that of another."""
        self._texts[target], self._names[target] = self._texts[source], self._names[source]
        heard, each = self._heard, self._each
        assert heard is not None
        for held in (*heard.keys, *heard.values, heard.mask, heard.said, heard.last):
            held[target * each : (target + 1) * each] = held[source * each : (source + 1) * each]

    def leave(self, place: int) -> None:
        """A place is free."""
        self._texts[place] = self._names[place] = None

    def _part(self, rows: slice) -> Heard | None:
        return None if self._heard is None else self._heard[rows]

    def _put(self, first: int, new: Heard) -> None:
        tokens, rows = new.mask.shape[-1], slice(first, first + len(new.said))
        if self._heard is None or self._heard.mask.shape[-1] < tokens:
            self._grow(new)
        heard = self._heard
        assert heard is not None
        more = heard.mask.shape[-1] - tokens
        for held, part in zip(heard.keys + heard.values, new.keys + new.values, strict=True):
            held[rows] = F.pad(part, (0, 0, 0, more))
        heard.mask[rows] = F.pad(new.mask, (0, more), value=-torch.inf)
        heard.said[rows] = new.said
        heard.last[rows] = new.last

    def _grow(self, new: Heard) -> None:
        tokens, rows = new.mask.shape[-1], self.batch * self._each

        def room(part: Tensor) -> Tensor:
            return part.new_zeros((rows, part.shape[1], tokens, part.shape[3]))

        mask = new.mask.new_zeros((rows, 1, 1, tokens))
        said, last = new.said.new_zeros((rows, 1, 1, 1)), new.last.new_zeros(rows)
        grown = Heard([room(k) for k in new.keys], [room(v) for v in new.values], mask, said, last)
        if (old := self._heard) is not None:
            more = tokens - old.mask.shape[-1]
            for held, part in zip(grown.keys + grown.values, old.keys + old.values, strict=True):
                held.copy_(F.pad(part, (0, 0, 0, more)))
            grown.mask.copy_(F.pad(old.mask, (0, more), value=-torch.inf))
            grown.said.copy_(old.said)
            grown.last.copy_(old.last)
        self._heard = grown
