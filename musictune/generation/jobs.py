"""What to make, line by line: prompts with their own adapter, length, seed and count."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.generation.engine import check_seconds
from musictune.generation.folder import read_prompts, read_text
from musictune.generation.request import Request
from musictune.generation.sampling import Sampling
from musictune.methods.composition import Addition

_EXAMPLE = '{"prompt": "slow piano", "adapter": "runs/piano", "seconds": 8, "seed": 1, "count": 2}'


@dataclass(frozen=True)
class Job:
    """Clips of one prompt; what is None is as for all.

    Attributes:
        prompt: what to play.
        adapter: for these clips alone.
        seconds: length of each.
        seed: of the first.
        count: how many.
    """

    prompt: str
    adapter: Addition | None = None
    seconds: float | None = None
    seed: int | None = None
    count: int | None = None

    @property
    def name(self) -> str | None:
        """What its adapter is called."""
        if self.adapter is None:
            return None
        return f"{self.adapter.folder}={self.adapter.weight:g}"

    def requests(
        self, seconds: float, seed: int, count: int, sampling: Sampling, melody: Clip | None
    ) -> list[Request]:
        """What is asked of the engine, where the others have ``seconds``, ``seed``, ``count``."""
        first = seed if self.seed is None else self.seed
        length = seconds if self.seconds is None else self.seconds
        return [
            Request(self.prompt, length, first + i, sampling, melody=melody, adapter=self.name)
            for i in range(self.count or count)
        ]


def read_jobs(path: Path) -> list[Job]:
    """The prompts of a file: one per line, or JSON objects if it ends in ``.jsonl``.

    Objects have a ``prompt``, and where they differ from the others an ``adapter`` (a run, or
    ``RUN=weight``), ``seconds``, ``seed`` and ``count``.

    Raises:
        InputError: the file cannot be read or is empty; or a line cannot be used: which, and why.
    """
    if path.suffix.lower() != ".jsonl":
        return [Job(prompt) for prompt in read_prompts(path)]
    # Not splitlines, which also splits at characters that JSON allows within a text.
    lines = enumerate(read_text(path).split("\n"), 1)
    return [_read(line, f"line {number} of {path}") for number, line in lines if line.strip()]


def _read(line: str, where: str) -> Job:
    try:
        given = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is no JSON ({error.msg}); write {_EXAMPLE}") from error
    except RecursionError:
        raise InputError(f"{where} is nested too deep; write {_EXAMPLE}") from None
    if not isinstance(given, dict):
        raise InputError(f"{where} is no JSON object; write {_EXAMPLE}")
    unknown = sorted(set(given) - set(Job.__dataclass_fields__))
    if unknown:
        known = ", ".join(Job.__dataclass_fields__)
        raise InputError(f"{where} has {unknown[0]!r}; known are {known}")
    prompt = given.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{where} has no prompt; say what to play, such as {_EXAMPLE}")
    try:
        return Job(
            prompt.strip(),
            _adapter(given.get("adapter")),
            _seconds(given.get("seconds")),
            _whole("seed", given.get("seed"), 0),
            _whole("count", given.get("count"), 1),
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _adapter(given: Any) -> Addition | None:
    if given is None:
        return None
    if not isinstance(given, str) or not given:
        raise InputError(f"adapter {json.dumps(given)} must be a run of tune, such as runs/piano")
    return Addition.read(given)


def _seconds(given: Any) -> float | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise InputError(f"seconds {json.dumps(given)} must be a number above 0, such as 8")
    check_seconds(given)
    return float(given)


def _whole(name: str, given: Any, least: int) -> int | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or not least <= given < 2**62:
        raise InputError(
            f"{name} {json.dumps(given)} must be a whole number from {least} on, below 2^62"
        )
    return given
