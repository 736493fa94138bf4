"""Folders of music that a reward chose: best of N, or guided piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musictune import console
from musictune.audio import Clip
from musictune.errors import InputError
from musictune.generation.best_of import Chosen, best_of, divergence_bound
from musictune.generation.continuing import continued
from musictune.generation.engine import Engine, OnStep
from musictune.generation.folder import write_played
from musictune.generation.guided import Guided, check_guidance, guided, guided_steps
from musictune.generation.request import Request
from musictune.generation.writing import Recording, after_given, given_codes
from musictune.metrics.base import Reward


@dataclass(frozen=True)
class Choosing:
    """How clips are chosen; checked when built.

    Attributes:
        names: of the rewards, for the manifest.
        best_of: whole clips to choose one from; None to be guided instead.
        guided: continuations to choose one from, again and again.
        every: seconds of music between two choices of a guided clip.
        strength: how strictly it is guided, see :func:`musictune.generation.guided.guided`.

    Raises:
        InputError: no way of choosing or two, no reward, or a number out of its range.
    """

    names: tuple[str, ...]
    best_of: int | None = None
    guided: int | None = None
    every: float = 1.0
    strength: float = 2.0

    def __post_init__(self) -> None:
        if self.best_of is not None and self.guided is not None:
            raise InputError("--best-of and --guided are two ways to choose; give one of them")
        if not self.names:
            way = "--guided" if self.best_of is None else "--best-of"
            raise InputError(f"{way} needs a --reward to choose by, such as text_alignment")
        if self.best_of is None and self.guided is None:
            raise InputError(
                f"--reward {self.names[0]} has nothing to choose from; give --best-of 8 or "
                "--guided 4 too"
            )
        if self.best_of is not None and self.best_of < 1:
            raise InputError(f"best-of {self.best_of} must be at least 1")
        if self.guided is not None:
            check_guidance(self.guided, self.every, self.strength)

    def check(self, recording: Recording | None) -> None:
        """Refuse a gap to be filled, for which likelihood already chooses.

        Raises:
            InputError: the recording has one.
        """
        if recording is not None and recording.candidates:
            raise InputError(
                "--infill chooses by what follows the gap; leave out --best-of and --guided"
            )

    @property
    def candidates(self) -> int:
        """Clips or continuations that are made to choose from."""
        return self.best_of or self.guided or 1


def write_chosen(
    engine: Engine,
    requests: Sequence[Request],
    out: Path,
    choosing: Choosing,
    reward: Reward,
    *,
    facts: Sequence[Mapping[str, object]],
    recording: Recording | None = None,
    batch: int = 8,
    suffix: str = "wav",
    overwrite: bool = False,
) -> tuple[list[Path], str]:
    """Make music, choose by a reward and write it, as ``folder.write_played`` does.

    A line of the manifest also has ``best_of`` or ``guided``: the rewards of all candidates and how
    far in nats the choice leads from plain music at most. Best-of clips have the seed with which
    they are made again without choosing.

    Args:
        engine: what plays.
        requests: with the length of the new music.
        out: the folder to make.
        choosing: how.
        reward: by what; it hears what was given too.
        facts: for each request, what its line in the manifest says besides.
        recording: what to go on from.
        batch: clips made at once.
        suffix: ``wav`` or ``flac``.
        overwrite: replace ``out`` if it is there.

    Returns:
        The sound files, in order, and what to say of their rewards.

    Raises:
        AudioError: a recording that cannot be read.
        InputError: a clip longer than the model's window, a gap to be filled, or a folder that
            cannot be written; a reward that fails after clips were done, which are kept.
        CheckFailed: a reward that fails before.
    """
    lines = [{**each, "precision": engine.precision} for each in facts]
    choosing.check(recording)
    if recording is not None:
        given = given_codes(engine.model, recording)
        requests = [continued(engine.model, given, request) for request in requests]
        for line in lines:
            line["recording"] = str(recording.path)
            line["given_seconds"] = given.shape[1] / engine.model.frame_rate
            line |= {"only_new": True} if recording.only_new else {}
    _check_lengths(engine, requests)
    rewards: list[float] = []
    all_rewards: list[float] = []

    def played(advance: OnStep) -> Iterator[tuple[int, Clip]]:
        for made in _made(engine, requests, choosing, reward, batch, advance):
            lines[made.index] |= _told(choosing, requests[made.index], made)
            rewards.append(made.reward)
            all_rewards.extend(made.rewards if isinstance(made, Chosen) else [])
            clip, known = made.clip, requests[made.index].given
            if known is not None and recording is not None and recording.only_new:
                clip = after_given(clip, known.shape[1] / engine.model.frame_rate)
            yield made.index, clip

    every = math.inf if choosing.guided is None else choosing.every
    steps = guided_steps(engine, requests, choosing.candidates, every)
    with console.progress("making music to choose from", steps) as advance:
        files = write_played(
            engine.model, requests, played(advance), out,
            facts=lines, suffix=suffix, overwrite=overwrite,
        )  # fmt: skip
    said = f"mean reward {_mean(rewards):.4g}"
    return files, f"{said}, of all candidates {_mean(all_rewards):.4g}" if all_rewards else said


def _made(
    engine: Engine,
    requests: Sequence[Request],
    choosing: Choosing,
    reward: Reward,
    batch: int,
    on_step: OnStep,
) -> Iterator[Chosen] | Iterator[Guided]:
    if choosing.best_of is not None:
        return best_of(engine, requests, reward, choosing.best_of, batch, on_step)
    return guided(
        engine, requests, reward, choosing.candidates, choosing.every, choosing.strength,
        batch, on_step,
    )  # fmt: skip


def _check_lengths(engine: Engine, requests: Sequence[Request]) -> None:
    longest = max(request.seconds for request in requests)
    if longest > engine.model.max_seconds:
        raise InputError(
            f"{longest:g} seconds, what is continued included, is too long to choose by a reward; "
            f"with this base at most {engine.model.max_seconds:g} can be"
        )


def _told(choosing: Choosing, request: Request, made: Chosen | Guided) -> dict[str, Any]:
    """What the manifest says of a choice."""
    told: dict[str, Any] = {"reward": list(choosing.names), "value": _finite(made.reward)}
    if isinstance(made, Chosen):
        told |= {
            "count": len(made.rewards),
            "first_seed": request.seed,
            "rewards": [_finite(value) for value in made.rewards],
            "divergence_at_most": round(divergence_bound(len(made.rewards)), 4),
        }
        return {"seed": made.seed, "best_of": told}
    told |= {
        "candidates": choosing.candidates,
        "every": choosing.every,
        "strength": "inf" if math.isinf(choosing.strength) else choosing.strength,
        "rewards": [[_finite(value) for value in each] for each in made.rewards],
        "choices": list(made.choices),
        "divergence_at_most": round(made.divergence, 4),
    }
    return {"guided": told}


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None  # JSON has no infinity


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
