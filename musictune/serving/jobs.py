"""A clip that somebody asked for, from the waiting line to its end."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from torch import Tensor

from musictune import console
from musictune.generation.request import Request

_SHOWN = 40  # characters of a prompt in the log


class State(StrEnum):
    """Where a job is."""

    waiting = "waiting"
    playing = "playing"
    done = "done"
    failed = "failed"
    cancelled = "cancelled"

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (State.waiting, State.playing)


class LineFullError(Exception):
    """No more jobs can wait; ``seconds`` is when to ask again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many clips are waiting; ask again in {seconds} s")
        self.seconds = seconds


class StoppedError(Exception):
    """Nothing is played any more."""


@dataclass(eq=False)
class Job:
    """Written by :class:`musictune.serving.worker.Worker` alone, under its lock; read by anybody.

    Attributes:
        request: what to make.
        steps: columns that have to be decoded.
        id: hard to guess: who knows it may hear and cancel the job.
        step: columns decoded.
        codes: ``(codebooks, frames)`` so far; while it plays only if somebody listens.
        error: why it failed or was cancelled, one line.
        listeners: clients that hear or await it; when the last one goes, the job is cancelled.
        added, started, ended: seconds of a monotonic clock; 0 before.
        watchers: called, from any thread, whenever something has changed.
    """

    request: Request
    steps: int
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: State = State.waiting
    step: int = 0
    codes: Tensor | None = None
    error: str = ""
    listeners: int = 0
    added: float = field(default_factory=time.monotonic)
    started: float = 0.0
    ended: float = 0.0
    watchers: set[Callable[[], None]] = field(default_factory=set)

    @property
    def share(self) -> float:
        """How much of it is made, from 0 to 1."""
        return 1.0 if self.state is State.done else min(1.0, self.step / self.steps)

    def notify(self) -> None:
        """Call who watches."""
        for watcher in list(self.watchers):
            watcher()

    def end(self, state: State, error: str = "") -> None:
        """It is over; one line of log says so."""
        self.error, self.ended = error, time.monotonic()
        self.state = state  # last: who sees it sees the rest
        waited = (self.started or self.ended) - self.added
        made = self.ended - self.started if self.started else 0.0
        reason = f": {error}" if error else ""
        console.say(
            f"job {self.id} {state}: {self.request.seconds:g} s of "
            f'"{shortened(self.request.prompt)}", waited {waited:.1f} s, played {made:.1f} s'
            f"{reason}"
        )
        self.notify()


def shortened(prompt: str) -> str:
    """The beginning of a prompt as a log may show it: no whole texts, no control characters."""
    text = "".join(letter if letter.isprintable() else " " for letter in prompt[: _SHOWN + 1])
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
