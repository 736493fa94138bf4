"""What is asked of the engine: one clip."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from musictune.audio import Clip
from musictune.generation.sampling import Sampling

UNKNOWN = -1
"""Stands in codes for a token that is not drawn yet."""


@dataclass(frozen=True, eq=False)
class Request:
    """One clip to make.

    Attributes:
        prompt: what to play; empty for unconditional.
        seconds: length of the whole clip, what is given included.
        seed: of everything random about this clip.
        sampling: how its tokens are drawn.
        given: ``(codebooks, frames)`` int64 codes that the music begins with; the rest follows.
            As codebooks are drawn one frame after another, the last frames may have ``UNKNOWN``.
        stop: whole frames after which to leave off, as if interrupted; to the end if None. What
            is known of later frames is in the codes too, beside ``UNKNOWN``: given again, they
            go on as if never interrupted.
        melody: a recording whose tune to follow, for a base that listens to one.
        adapter: the name of one of the engine's adapters, for this clip alone.
    """

    prompt: str
    seconds: float
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    given: Tensor | None = None
    melody: Clip | None = None
    adapter: str | None = None
    stop: int | None = None
