"""The two shapes of a metric: a score of one set against another, and a reward per clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from torch import Tensor

from musictune.audio import Clip


@dataclass(frozen=True)
class Score:
    """A value with the interval it can be trusted to.

    Attributes:
        value: the point estimate.
        low, high: the 95 % interval; both NaN where none can be given.
        n: how many clips it rests on.
        better: which way is better.
    """

    value: float
    low: float
    high: float
    n: int
    better: Literal["higher", "lower"]

    def as_json(self) -> dict[str, float | int | str | None]:
        """A dictionary in which NaN is None, as JSON has no NaN."""
        return {k: None if isinstance(v, float) and v != v else v for k, v in asdict(self).items()}


class Reward(Protocol):
    """A score per clip."""

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)`` float32, higher is better."""


class Metric(Protocol):
    """Scores of a set of made clips against reference clips."""

    def __call__(self, made: Sequence[Clip], reference: Sequence[Clip]) -> dict[str, Score]: ...
