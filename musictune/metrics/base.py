"""The shapes of measuring: what listens to a clip, what scores a set, what rewards a clip."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.features import Features

Values = TypeVar("Values", Tensor, np.ndarray)
Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Score:
    """A value with the interval it can be trusted to.

    Attributes:
        value: the point estimate.
        low, high: the 95 % interval; both NaN where none can be given.
        n: how many clips it rests on.
        better: which way is better.
        note: why it should be read with care; empty if it need not.
    """

    value: float
    low: float
    high: float
    n: int
    better: Better
    note: str = ""

    def as_json(self) -> dict[str, float | int | str | None]:
        """A dictionary in which NaN is None, as JSON has no NaN; without an empty note."""
        fields = asdict(self)
        if not self.note:
            del fields["note"]
        return {k: None if isinstance(v, float) and v != v else v for k, v in fields.items()}


def concept_score(audio: Values, text: Values) -> Values:
    """Audio and text alignment in one: each cosine mapped to [0, 1] by ``(1 + cos) / 2``, times.

    A plain product would praise two negative cosines, and one that is cut off at 0 cannot tell bad
    from worse and lets a cosine near 0 decide alone, where it is mostly noise. Mapped, the product
    rises with either cosine everywhere, and is 1 only if both are.

    Args:
        audio, text: ``(clips,)`` cosines.

    Returns:
        ``(clips,)`` from 0 to 1.
    """
    return (1 + audio) / 2 * (1 + text) / 2


@dataclass(frozen=True)
class NotComputed:
    """Why there is no score: what was found, what is needed."""

    reason: str


@dataclass(frozen=True)
class About:
    """What people read beside a score.

    Attributes:
        title: a few words.
        meaning: one sentence: what a high or low value tells.
        better: which way is better; ``neither`` for a value to compare.
        least, most: what a value can be; intervals end there.
    """

    title: str
    meaning: str
    better: Better
    least: float = -math.inf
    most: float = math.inf


class Listener(ABC):
    """Turns a clip into rows of numbers, the same for the same clip whatever is heard beside it.

    It must survive pickling, as other processes listen too.

    Attributes:
        key: names what is computed, with hashes of the weights and all settings that change the
            rows: under equal keys equal audio has equal rows. Rows are cached under it.
        whole: whether it must hear a recording in one piece; else a long one comes in blocks.
    """

    key: str
    whole: ClassVar[bool] = False

    @abstractmethod
    def hear(self, clip: Clip) -> np.ndarray:
        """``(rows, width)`` of a clip of any rate, layout and length; the width never changes.

        Raises:
            InputError: the clip cannot be heard, or the answer is not finite.
        """


class SetMetric(ABC):
    """Scores of a set of made music against a reference, from what one listener heard in both.

    Every subclass in ``musictune.metrics`` is found and run by `evaluate`; it is built without
    arguments.

    Attributes:
        scores: what it can give, by name as in ``metrics.json``.
        needs_reference: whether the reference's rows matter; else any may be given.
    """

    scores: ClassVar[Mapping[str, About]]
    needs_reference: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, made: Features, reference: Features) -> dict[str, Score | NotComputed]:
        """The scores; one that cannot be computed says why.

        Raises:
            InputError: none of them can be computed.
        """


class ClipMetric(Listener):
    """Values of one clip, from its sound alone.

    Every subclass in ``musictune.metrics`` is found and run by `evaluate`; it is built without
    arguments. Its values become columns of ``clips.csv`` and their means scores.

    Attributes:
        values: what `hear` gives in its one row, in that order, by name as in ``metrics.json``;
            NaN where a value is not known.
    """

    values: ClassVar[Mapping[str, About]]

    def reward(self, name: str) -> Reward:
        """One of the values as a reward: negated where lower is better.

        Raises:
            InputError: there is no such value, or neither way of it is better.
        """
        known = [value for value, about in self.values.items() if about.better != "neither"]
        if name not in known:
            raise InputError(f"value {name!r} is no reward; choose from {', '.join(known)}")
        return _OneValue(self, name)

    @classmethod
    def toy(cls) -> Self:
        """One that is quick, for tests."""
        return cls()


class Reward(Protocol):
    """A score per clip."""

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)`` float32, higher is better."""


@dataclass(frozen=True)
class _OneValue:
    metric: ClipMetric
    name: str

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        column = list(self.metric.values).index(self.name)
        sign = 1.0 if self.metric.values[self.name].better == "higher" else -1.0
        found = [sign * float(self.metric.hear(clip)[0, column]) for clip in clips]
        # What is not known is no reason for praise.
        return torch.tensor([-math.inf if math.isnan(v) else v for v in found])
