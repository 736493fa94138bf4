"""Tuning a CLAP to captioned clips: the batches, the loss, and the step that is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from musictune.data.sequences import BOTH, ONE, THEN, TOGETHER, joined_mels, overlaid_mels, said
from musictune.models.contrastive import CaptionedBatch
from musictune.training.adapting import Adapting
from musictune.training.best import KeepHighest
from musictune.training.stepped import seed_at

STAGES = ("clips", "several", "order")
GROUP = 4  # clips that a stage of sequences makes of each pair

_GAIN = (-6.0, 3.0)  # decibels


@dataclass(frozen=True)
class Sounds:
    """Windows as heard once, with what is said of them.

    Attributes:
        features: ``(frames, bands)`` of each.
        captions: of each, one or more.
    """

    features: Sequence[Tensor]
    captions: Sequence[tuple[str, ...]]

    @property
    def meanings(self) -> list[str]:
        """What tells windows apart: the first caption of each."""
        return [captions[0] for captions in self.captions]


class CaptionStream(IterableDataset[CaptionedBatch]):
    """Endless batches, each a function of seed and place alone.

    Args:
        sounds: with at least two meanings.
        batch: clips in each; stages of sequences make it up from pairs, in fours.
        seed: of all draws.
        start: the first batch.
        stages: names from `STAGES` with the batches of each; the last goes on.
    """

    def __init__(
        self,
        sounds: Sounds,
        batch: int,
        seed: int,
        start: int = 0,
        stages: Sequence[tuple[str, int]] = (("clips", 0),),
    ) -> None:
        super().__init__()
        self.sounds = sounds
        self.batch = batch
        self.seed = seed
        self.start = start
        self.stages = tuple(stages)
        self._meanings = np.array(sounds.meanings, dtype=object)

    def __iter__(self) -> Iterator[CaptionedBatch]:
        place = self.start
        while True:
            yield self.at(place)
            place += 1

    def stage(self, place: int) -> str:
        """The name of the stage that a batch belongs to."""
        for name, count in self.stages[:-1]:
            if place < count:
                return name
            place -= count
        return self.stages[-1][0]

    def at(self, place: int) -> CaptionedBatch:
        """The batch at a place of the whole run."""
        rng = np.random.default_rng(seed_at(self.seed, place))
        stage = self.stage(place)
        if stage == "clips":
            return self._clips(rng)
        rows: list[_Row] = []
        wrong: list[tuple[str, str]] = []
        for _ in range(max(1, self.batch // GROUP)):
            made, more = (self._several if stage == "several" else self._ordered)(rng)
            rows += made
            wrong += more
        features = torch.stack([row.features for row in rows])
        texts = tuple(row.text for row in rows) + tuple(text for text, _ in wrong)
        meanings = tuple(row.meaning for row in rows) + tuple(m for _, m in wrong)
        return CaptionedBatch(features, texts, meanings)

    def _clips(self, rng: np.random.Generator) -> CaptionedBatch:
        count = min(self.batch, len(self.sounds.features))
        chosen = rng.choice(len(self.sounds.features), count, replace=False)
        if len(set(self._meanings[chosen])) < 2:  # else there is nothing to tell apart
            others = np.flatnonzero(self._meanings != self._meanings[chosen[0]])
            chosen[-1] = rng.choice(others)
        features = torch.stack([self._louder(int(i), rng) for i in chosen])
        texts = tuple(self._caption(int(i), rng) for i in chosen)
        return CaptionedBatch(features, texts, tuple(self._meanings[chosen]))

    def _several(self, rng: np.random.Generator) -> tuple[list[_Row], list[tuple[str, str]]]:
        """One, the other, one after the other, both at once; and what names a missing one."""
        i, j = self._pair(rng)
        a, b = self._caption(i, rng), self._caption(j, rng)
        both = _set_of(self._meanings[i], self._meanings[j])
        rows = [
            _Row(self._louder(i, rng), said(_one_of(ONE, rng), a), self._meanings[i]),
            _Row(self._louder(j, rng), said(_one_of(ONE, rng), b), self._meanings[j]),
            _Row(self._joined(i, j, rng), said(_one_of(BOTH, rng), a, b), both),
            _Row(self._overlaid(i, j, rng), said(_one_of(BOTH, rng), b, a), both),
        ]
        missing = int(rng.choice(np.flatnonzero(self._meanings != self._meanings[i])))
        named = said(_one_of(BOTH, rng), a, self._caption(missing, rng))
        return rows, [(named, _set_of(self._meanings[i], self._meanings[missing]))]

    def _ordered(self, rng: np.random.Generator) -> tuple[list[_Row], list[tuple[str, str]]]:
        """One way round, the other, both at once, and one as it is; each order said twice."""
        i, j = self._pair(rng)
        a, b = self._caption(i, rng), self._caption(j, rng)
        one, other = self._meanings[i], self._meanings[j]
        orders = ((a, b, f"{one}\n>\n{other}"), (b, a, f"{other}\n>\n{one}"))
        ways = [rng.permutation(len(THEN))[:2] for _ in orders]
        rows = [
            _Row(self._joined(*places, rng), said(THEN[way[0]], first, second), meaning)
            for places, way, (first, second, meaning) in zip(
                ((i, j), (j, i)), ways, orders, strict=True
            )
        ]
        at_once = f"{_set_of(one, other)}\n="
        rows += [
            _Row(self._overlaid(i, j, rng), said(_one_of(TOGETHER, rng), a, b), at_once),
            _Row(self._louder(i, rng), a, one),
        ]
        again = [
            (said(THEN[way[1]], first, second), meaning)
            for way, (first, second, meaning) in zip(ways, orders, strict=True)
        ]
        return rows, again

    def _pair(self, rng: np.random.Generator) -> tuple[int, int]:
        i = int(rng.integers(len(self._meanings)))
        return i, int(rng.choice(np.flatnonzero(self._meanings != self._meanings[i])))

    def _caption(self, index: int, rng: np.random.Generator) -> str:
        return _one_of(self.sounds.captions[index], rng)

    def _louder(self, index: int, rng: np.random.Generator) -> Tensor:
        return self.sounds.features[index] + float(rng.uniform(*_GAIN))

    def _joined(self, i: int, j: int, rng: np.random.Generator) -> Tensor:
        first, second = self._louder(i, rng), self._louder(j, rng)
        room = len(first) // 2
        starts = int(rng.integers(room)), int(rng.integers(room))
        return joined_mels(first, second, starts)

    def _overlaid(self, i: int, j: int, rng: np.random.Generator) -> Tensor:
        return overlaid_mels(self._louder(i, rng), self._louder(j, rng))


@dataclass(frozen=True)
class _Row:
    features: Tensor
    text: str
    meaning: str


class Contrasting(Adapting):
    """InfoNCE within the batch through what ``method`` trains in either tower or both."""

    def each(self, batch: CaptionedBatch) -> Tensor:
        """``(clips,)`` nats."""
        return self.model.nll(batch)

    def rates(self) -> dict[str, tuple[float, list[nn.Parameter]]]:
        """All at the recipe's rate, or the method's own."""
        trained = sorted((n, p) for n, p in self.named_parameters() if p.requires_grad)
        rate = self.settings.lr or self.method.learning_rate
        return {"towers": (rate, [p for _, p in trained])}


class KeepClosest(KeepHighest):
    """Keeps the step with the lowest loss on held-out clips.

    Args:
        module: whose loss counts.
        folder: gets ``best-NNNNNN``.
    """

    columns = ("held_out_score", "stopped")
    chosen_by: ClassVar[str] = "held_out_score"

    def __init__(self, module: Contrasting, folder: Path) -> None:
        super().__init__(folder)
        self.module = module

    def score(self, step: int) -> dict[str, float]:
        """The held-out loss, negative."""
        loss = self.module.held_out_loss()
        assert loss is not None  # only made where clips are held out
        return {"held_out_score": -loss}


def held_out_batches(
    sounds: Sounds, batch: int, seed: int, stages: Sequence[str]
) -> list[CaptionedBatch]:
    """The same batches each time: of all windows as they are, or some of each kind of sequence."""
    count = max(1, len(sounds.features) // batch)
    found = []
    for name in dict.fromkeys(stages):
        # Other draws than training makes.
        stream = CaptionStream(sounds, batch, seed + 1, 0, [(name, 0)])
        found += [stream.at(place) for place in range(count)]
    return found


def _one_of(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]


def _set_of(one: str, other: str) -> str:
    """The same whichever is named first."""
    return "\n&\n".join(sorted((one, other)))
