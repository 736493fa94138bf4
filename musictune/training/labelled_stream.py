"""The endless stream of labelled batches, each a pure function of the seed and its place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from musictune.data.tokens import epoch_order
from musictune.errors import InputError
from musictune.models.classifier import Classifier, LabelledBatch

_WIDEST = 0.5  # of the bands or of the time, that a mask may take


@dataclass(frozen=True)
class Augment:
    """How training clips are changed each time they are heard.

    Attributes:
        gain_db: louder or softer by up to so many decibels.
        crop: hear a random stretch of a clip that is longer than the encoder hears; else its first.
        mixup: the ``a`` of Beta(a, a), from which the share of another clip of the batch is drawn
            (arXiv 1710.09412); 0 for none.
        frequency_mask: the widest band of a spectrogram that is blanked (SpecAugment, arXiv
            1904.08779); 0 for none.
        time_mask: the longest stretch of frames that is blanked; 0 for none.

    Raises:
        InputError: a value out of range.
    """

    gain_db: float = 6.0
    crop: bool = True
    mixup: float = 0.0
    frequency_mask: int = 24
    time_mask: int = 80

    def __post_init__(self) -> None:
        if not 0 <= self.gain_db <= 60:
            raise InputError(f"gain_db {self.gain_db} must be from 0 to 60 decibels")
        if not 0 <= self.mixup <= 100:
            raise InputError(f"mixup {self.mixup} must be 0 (none), or up to 100")
        for name in ("frequency_mask", "time_mask"):
            value = getattr(self, name)
            if not 0 <= value <= 100_000 or value != int(value):
                raise InputError(f"{name} {value} must be a whole number, 0 or more")


@dataclass(frozen=True)
class _Draws:
    """The chance in one hearing of one clip, numbers from 0 to 1 but for the share.

    All are drawn, needed or not, so that to switch one off leaves the others as they are.
    """

    crop: float
    gain: float
    partner: float
    share: float
    bands: tuple[float, float]
    frames: tuple[float, float]


class LabelledStream(IterableDataset[LabelledBatch]):
    """Batches from ``start`` on: a resumed run draws what the interrupted one would have drawn.

    Every clip comes once in an epoch, in another order each time; an epoch may end within a batch.
    Of each clip a stretch is cropped, made louder or softer and mixed with another clip of the
    batch; of spectrograms a band and a stretch of time are set to 0, which is the mean where the
    front end normalises, and never more than half of either (ours).

    Args:
        model: how clips become batches.
        heard: what its front end heard of each.
        targets: ``(clips, classes)``.
        batch: rows of each.
        seed: of the order and of all chance.
        start: place of the first batch.
        augment: how clips are changed.

    Raises:
        InputError: no clips, other numbers of clips and targets, or a batch below 1.
    """

    def __init__(
        self,
        model: Classifier,
        heard: Sequence[Tensor],
        targets: Tensor,
        batch: int,
        seed: int,
        start: int = 0,
        augment: Augment | None = None,
    ) -> None:
        if not len(heard):
            raise InputError("no clips to learn from; give some")
        _check(heard, targets, batch)
        self.model = model
        self.heard = heard
        self.targets = targets
        self.size = batch
        self.seed = seed
        self.start = start
        self.augment = augment or Augment()
        self._order = lru_cache(maxsize=4)(lambda epoch: epoch_order(len(heard), seed, epoch))

    def __iter__(self) -> Iterator[LabelledBatch]:
        place = self.start
        while True:
            yield self.at(place)
            place += 1

    def at(self, place: int) -> LabelledBatch:
        """The batch at ``place``."""
        numbers = range(place * self.size, (place + 1) * self.size)
        draws = [self._draw(number) for number in numbers]
        clips = [self._clip(number) for number in numbers]
        sounds = [self._changed(self.heard[c], d) for c, d in zip(clips, draws, strict=True)]
        targets = self.targets[clips].float()
        if self.augment.mixup and self.size > 1:
            sounds, targets = self._mixed(sounds, targets, draws)
        batch = self.model.batch(sounds, targets)
        if self.model.front.bands:
            for row, length, own in zip(batch.inputs, batch.lengths, draws, strict=True):
                self._mask(row[: int(length)], own)
        return batch

    def _clip(self, number: int) -> int:
        """Which clip is the ``number``-th of all that are ever drawn."""
        epoch, position = divmod(number, len(self.heard))
        return self._order(epoch)[position]

    def _draw(self, number: int) -> _Draws:
        # The last number keeps these apart from the orders of epochs, which are [seed, epoch].
        random = np.random.default_rng([self.seed, number, 1])
        crop, gain, partner, low, wide, early, long = (float(x) for x in random.random(7))
        a = self.augment.mixup
        share = float(random.beta(a, a)) if a else 1.0
        return _Draws(crop, gain, partner, share, (wide, low), (long, early))

    def _changed(self, heard: Tensor, draws: _Draws) -> Tensor:
        front, steps = self.model.front, self.model.steps
        spare = max(len(heard) - steps, 0)
        first = int(draws.crop * (spare + 1)) if self.augment.crop else 0
        sound = front.crop(heard, first, steps)
        if not self.augment.gain_db:
            return sound
        return front.louder(sound, (2 * draws.gain - 1) * self.augment.gain_db)

    def _mixed(
        self, sounds: Sequence[Tensor], targets: Tensor, draws: Sequence[_Draws]
    ) -> tuple[list[Tensor], Tensor]:
        """Each with another row of the batch, as it was before."""
        size = len(sounds)
        others = [(row + 1 + int(d.partner * (size - 1))) % size for row, d in enumerate(draws)]
        mixed = [
            self.model.front.mixed(sound, sounds[other], d.share)
            for sound, other, d in zip(sounds, others, draws, strict=True)
        ]
        shares = torch.tensor([d.share for d in draws])[:, None]
        return mixed, shares * targets + (1 - shares) * targets[others]

    def _mask(self, row: Tensor, draws: _Draws) -> None:
        """Blank a band and a stretch of ``(frames, bands)`` in place."""
        frames, bands = row.shape
        first, last = _stretch(bands, self.augment.frequency_mask, *draws.bands)
        row[:, first:last] = 0
        first, last = _stretch(frames, self.augment.time_mask, *draws.frames)
        row[first:last] = 0


def fixed_batches(
    model: Classifier, heard: Sequence[Tensor], targets: Tensor, batch: int
) -> list[LabelledBatch]:
    """Every clip once and in order, unchanged, the middle of it where it is too long.

    Args:
        model: how clips become batches.
        heard: what its front end heard of each; none gives no batches.
        targets: ``(clips, classes)``.
        batch: rows of each but the last.

    Raises:
        InputError: other numbers of clips and targets, or a batch below 1.
    """
    _check(heard, targets, batch)
    steps = model.steps
    middle = [model.front.crop(x, max(len(x) - steps, 0) // 2, steps) for x in heard]
    return [
        model.batch(middle[first : first + batch], targets[first : first + batch])
        for first in range(0, len(middle), batch)
    ]


def _check(heard: Sequence[Tensor], targets: Tensor, batch: int) -> None:
    if len(heard) != len(targets):
        raise InputError(f"{len(heard)} clips have {len(targets)} targets; give one for each")
    if batch < 1:
        raise InputError(f"batches of {batch} hold nothing; choose 1 or more")


def _stretch(size: int, widest: int, width: float, place: float) -> tuple[int, int]:
    """First and last (exclusive) of up to ``widest`` places out of ``size``, and up to half."""
    most = min(int(widest), math.floor(_WIDEST * size))
    taken = int(width * (most + 1))
    first = int(place * (size - taken + 1))
    return first, first + taken
