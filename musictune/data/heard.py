"""Hearing labelled clips once, before an encoder learns from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from musictune import audio
from musictune.audio import Clip
from musictune.console import track
from musictune.data.labelled_tables import Example
from musictune.errors import InputError


def hear_all(
    examples: Sequence[Example],
    hear: Callable[[Clip], Tensor],
    most_seconds: float | None = None,
) -> list[Tensor]:
    """What ``hear`` makes of each example, in their order, under a progress bar.

    Only the excerpt is kept of a file, and no more than ``most_seconds`` from its beginning; the
    rest of it is not decoded.

    Raises:
        InputError: a file cannot be decoded, or has nothing where the excerpt begins, or
            ``most_seconds`` is not above 0.
    """
    if most_seconds is not None and not most_seconds > 0:
        raise InputError(f"{most_seconds} seconds of each clip cannot be heard; choose more than 0")
    return [
        hear(audio.read(example.path, example.start, _least(example.seconds, most_seconds)))
        for example in track(examples, "clips heard", len(examples))
    ]


def _least(*limits: float | None) -> float | None:
    return min((limit for limit in limits if limit is not None), default=None)
