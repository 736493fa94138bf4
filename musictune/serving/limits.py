"""What one server takes on, so that nobody can fill its memory or its day."""

from __future__ import annotations

from dataclasses import dataclass

from musictune.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Checked when built.

    Attributes:
        seconds: of the longest clip.
        batch: clips that play at once.
        waiting: clips that may wait for a place.
        prompt: characters of a prompt.
        body: bytes of a request.
        kept: clips that are over and still to be had.
        minutes: for how long they are.

    Raises:
        InputError: a number that leaves nothing to do.
    """

    seconds: float
    batch: int = 8
    waiting: int = 64
    prompt: int = 2_000
    body: int = 32 * 1024  # a prompt of the longest, each letter escaped as two surrogates
    kept: int = 256
    minutes: float = 30.0

    def __post_init__(self) -> None:
        for name in ("batch", "waiting", "prompt", "body", "kept"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("seconds", "minutes"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} {getattr(self, name):g} must be above 0")
