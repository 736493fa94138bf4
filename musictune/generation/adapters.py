"""Adapters of single clips: each prompt of a batch has its own, beside the base or another.

The idea is that of S-LoRA (Sheng et al. 2023, arXiv 2311.03285): all clips share the products with
the base's matrices, and what an adapter changes is multiplied apart, for the rows of its clips.
Ours: besides two factors, a change may be single weights, whole rows or whole columns.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from musictune.data.concepts import Concept
from musictune.errors import InputError
from musictune.generation.adapter_reading import Adapter, Product, Words, read_adapter
from musictune.generation.deltas import Delta, together
from musictune.models.musicgen import MusicGen

if TYPE_CHECKING:
    from musictune.generation.decoder import Decoder, Heard


class AdapterSet:
    """Adapters that clips of one batch may have, each its own; the model stays as it is.

    :meth:`add` reads one once and keeps its changes only: 8 bytes per single weight. A request that
    names it is played, and its prompt read, as with that adapter alone merged into the base: words
    of other adapters are unknown to it, so that two may teach the same.

    Args:
        model: what the engine plays. Do not change it afterwards.
    """

    def __init__(self, model: MusicGen) -> None:
        self.model = model
        self._known: dict[str, Adapter] = {}
        self._last: tuple[list[str | None], weakref.ref[Decoder], Mix] | None = None

    @property
    def names(self) -> list[str]:
        """Of all that were added."""
        return list(self._known)

    @property
    def nbytes(self) -> int:
        """Memory that the changes take."""
        return sum(adapter.nbytes for adapter in self._known.values())

    def add(self, name: str, folder: Path | str, weight: float = 1.0) -> list[Concept]:
        """Read an adapter, so that requests can name it.

        Args:
            name: any that is not taken.
            folder: an adapter folder, or a run with one in it.
            weight: 1 for all of it.

        Returns:
            The concepts that it teaches.

        Raises:
            InputError: the name is taken, or as :func:`read_adapter`.
        """
        if name in self._known:
            raise InputError(
                f"adapter name {name!r} is taken by {self._known[name].folder}; choose another"
            )
        if not math.isfinite(weight):
            raise InputError(f"weight {weight} of adapter {name!r} must be a number, as 0.7")
        adapter = read_adapter(self.model, Path(folder), weight)
        self._known[name] = adapter
        return adapter.taught

    def check(self, name: str) -> None:
        """Refuse a name that none was added under.

        Raises:
            InputError: it is unknown.
        """
        if name not in self._known:
            known = ", ".join(self._known) or "none"
            raise InputError(f"no adapter was added as {name!r}; known are: {known}")

    def concepts(self, name: str) -> list[Concept]:
        """What an adapter teaches."""
        return list(self._known[name].taught)

    @contextlib.contextmanager
    def speaking(self, name: str | None) -> Iterator[None]:
        """Inside, the model reads prompts with this adapter's words."""
        words = None if name is None else self._known[name].words
        if words is None:
            yield
            return
        model, encoder = self.model, self.model.text_encoder
        before = Words(model.tokenizer, model.concepts, encoder.get_input_embeddings())
        try:
            _speak(model, words)
            yield
        finally:
            _speak(model, before)

    @torch.no_grad()
    def hear(self, name: str, heard: Heard, states: Tensor) -> None:
        """Add to a text's keys and values what this adapter changes of them, in place.

        Args:
            name: of the adapter.
            heard: made of ``states`` by the base.
            states: ``(rows, tokens, width)``.
        """
        given = states.float()
        for (layer, product), each in self._known[name].deltas.items():
            held = {"cross_key": heard.keys, "cross_value": heard.values}.get(product)
            if held is None:
                continue
            rows, heads, tokens, size = held[layer].shape
            made = given.new_zeros((rows, tokens, heads * size))
            for delta in each:
                delta.add(given, made)
            held[layer] += made.unflatten(2, (heads, size)).transpose(1, 2)

    def mix(self, names: Sequence[str | None], decoder: Decoder) -> Mix | None:
        """What a step of these clips adds to the products with ``decoder``'s matrices.

        Args:
            names: the adapter of each clip, None for the base alone.
            decoder: of the base.

        Returns:
            None if no clip has an adapter.
        """
        if not any(names):
            return None
        if self._last is not None and self._last[0] == names and self._last[1]() is decoder:
            return self._last[2]
        places: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            if name is not None:
                places.setdefault(name, []).append(place)
        groups = [(where, self._known[name].deltas) for name, where in places.items()]
        mix = Mix(len(names), groups, decoder)
        self._last = list(names), weakref.ref(decoder), mix
        return mix


class Mix:
    """What the adapters of some clips add to the products of all of them.

    Args:
        clips: whose rows follow each other.
        groups: places of clips, and the changes of the adapter that they have.
        decoder: whose products they are.
    """

    def __init__(
        self,
        clips: int,
        groups: Sequence[tuple[list[int], Mapping[Product, list[Delta]]]],
        decoder: Decoder,
    ) -> None:
        self._clips, self._width = clips, decoder.width
        self._unscale = _unscale(decoder)
        self._device, self._groups = decoder.device, groups
        self._deltas: dict[Product, list[tuple[slice | Tensor, list[Delta]]]] = {}

    def add(self, layer: int, name: str, x: Tensor, made: Tensor) -> Tensor:
        """``made`` ``(rows, out)`` with what adapters make of ``x`` ``(rows, in)``; changes it.

        Args:
            layer: counted from 0.
            name: ``qkv``, ``out``, ``cross_query``, ``cross_out``, ``up`` or ``down``.
            x: an equal number of rows of each clip.
            made: by the base.
        """
        key = layer, name
        groups = self._deltas.get(key)
        if groups is None:
            groups = self._deltas[key] = self._grouped(key)
        if not groups:
            return made
        states = x.float().view(self._clips, -1, x.shape[1])
        total = made.float().view(self._clips, -1, made.shape[1])
        unscale = self._unscale.get(key)
        for places, deltas in groups:
            part = total[places]
            added = part if unscale is None else torch.zeros_like(part)
            for delta in deltas:
                delta.add(states[places], added)
            if unscale is not None:
                added[..., : self._width] *= unscale
                part += added
            if not isinstance(places, slice):
                total[places] = part
        return total.view_as(made).to(made.dtype)

    def _grouped(self, key: Product) -> list[tuple[slice | Tensor, list[Delta]]]:
        """By adapter; or all together where that is faster."""
        held = [(places, changes[key]) for places, changes in self._groups if key in changes]
        if len(held) > 1 and all(len(deltas) == 1 for _, deltas in held):
            each = sorted(
                ((place, deltas[0]) for places, deltas in held for place in places),
                key=lambda pair: pair[0],
            )
            if (one := together([delta for _, delta in each])) is not None:
                return [(_span([place for place, _ in each], self._device), [one])]
        return [(_span(places, self._device), deltas) for places, deltas in held]


def _span(places: list[int], device: torch.device) -> slice | Tensor:
    """Neighbours are seen in place."""
    if places[-1] - places[0] + 1 == len(places):
        return slice(places[0], places[-1] + 1)
    return torch.tensor(places, device=device)


def _unscale(decoder: Decoder) -> dict[Product, float]:
    """What changed queries are multiplied with where a block does not fold its scale in."""
    found = {}
    for index, layer in enumerate(decoder.layers):
        for name, block in (("qkv", layer.attention), ("cross_query", layer.cross)):
            if block is not None and not block.folded:
                found[index, name] = 1 / block.scale
    return found


def _speak(model: MusicGen, words: Words) -> None:
    model.tokenizer, model.concepts = words.tokenizer, words.concepts
    model.text_encoder.set_input_embeddings(words.table)
