"""Pairs that are made while somebody listens: two systems play each prompt with the same seed."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from musictune import console
from musictune.audio import write
from musictune.data.concepts import plain
from musictune.data.kept_tokens import keep_tokens
from musictune.data.preferences import read_pairs, write_pairs
from musictune.data.vote_types import Pair, audio_digest, pair_id
from musictune.errors import InputError, MusictuneError
from musictune.files import publish_file, readable
from musictune.generation.engine import Engine, check_seconds
from musictune.generation.facts import adapter_facts
from musictune.methods import load_adapter
from musictune.methods.composition import Addition, check_together
from musictune.models import load_model

BASE = "base"
"""The system that is the base without an adapter."""

_PLAN, _PAIRS = "plan.json", "pairs.jsonl"


@dataclass(frozen=True)
class Plan:
    """What is made.

    Attributes:
        base: the model of both systems.
        systems: two adapters, each a run or ``RUN=weight``; ``base`` for none.
        prompts: one pair each; the same one again has a seed of its own.
        seconds: length of each clip.
        seed: of both clips of a prompt.

    Raises:
        InputError: not two different systems, an adapter that is none, no prompts, or a length or
            seed that cannot be.
    """

    base: str
    systems: tuple[str, ...]
    prompts: tuple[str, ...]
    seconds: float = 8.0
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.systems) != 2 or len(set(self.systems)) != 2:
            raise InputError(
                f"{len(self.systems)} --adapter given ({', '.join(self.systems) or 'none'}); give "
                f"two different ones, of which one may be {BASE!r}"
            )
        if not self.prompts:
            raise InputError("no prompt to make pairs for; give --prompts a file of them")
        if not 0 <= self.seed < 2**62:
            raise InputError(f"seed {self.seed} must be 0 or a positive number below 2^62")
        check_seconds(self.seconds)
        for system in self.systems:
            if system != BASE:
                check_together([Addition.read(system).folder])

    def facts(self) -> dict[str, object]:
        """What a folder of pairs has to agree on to go on with."""
        return {
            "base": self.base,
            "systems": [_system(each) for each in self.systems],
            "seconds": self.seconds,
            "seed": self.seed,
        }


def load_systems(plan: Plan, device: str = "auto") -> list[Engine]:
    """An engine for each system, with a model of its own: some adapters cannot share one.

    Raises:
        InputError: the base or an adapter cannot be loaded, or the length is too long for it.
    """
    engines = []
    for system in plan.systems:
        model = load_model(plan.base, device)
        check_seconds(plan.seconds, model.max_seconds)
        if system != BASE:
            given = Addition.read(system)
            load_adapter(model, given.folder, given.weight)
        engines.append(Engine(model))
    return engines


class PairMaker:
    """Makes what is planned in a thread of its own; what was made before is taken over.

    Writes the sounds with their tokens and ``pairs.jsonl``, whole after each pair.

    Args:
        plan: what to make.
        engines: of :func:`load_systems`.
        folder: where it goes; made if missing.
        add: takes each pair, also those made before.

    Attributes:
        ready: pairs made.
        planned: pairs there will be.
        trouble: why it ended early; empty if it did not.

    Raises:
        InputError: the folder holds pairs of another plan, or cannot be written.
    """

    def __init__(
        self,
        plan: Plan,
        engines: Sequence[Engine],
        folder: Path,
        add: Callable[[Pair], object],
    ) -> None:
        self._plan, self._engines, self._folder, self._add = plan, engines, folder, add
        self._pairs = _begin(plan, folder)
        for pair in self._pairs:
            add(pair)
        self._left = _without(plan.prompts, [pair.prompt for pair in self._pairs])
        self.planned = len(self._pairs) + len(self._left)
        self.ready = len(self._pairs)
        self.trouble = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pairs", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End after the step that is being made; what is half done is left out."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            for prompt, again in self._left:
                pair = self._make(prompt, self._plan.seed + again)
                write_pairs([*self._pairs, pair], self._folder)
                self._pairs.append(pair)
                self._add(pair)
                self.ready += 1
        except _StoppedError:
            return
        except MusictuneError as error:
            self._end(str(error))
        except Exception as error:  # a thread has nobody to raise it to
            self._end(f"unforeseen {type(error).__name__}: {error}")

    def _end(self, reason: str) -> None:
        self.trouble = " ".join(reason.split())[:300]
        console.note(f"no more pairs will be made: {self.trouble}")

    def _make(self, prompt: str, seed: int) -> Pair:
        taught = [concept for engine in self._engines for concept in engine.model.concepts]
        paths = []
        for engine, side in zip(self._engines, "ab", strict=True):
            # A word that a system was never taught is read as what kind of thing it is.
            own = {concept.name for concept in engine.model.concepts}
            text = plain(prompt, [concept for concept in taught if concept.name not in own])
            made, clips = engine.rollout([text], self._plan.seconds, [seed], on_step=self._step)
            paths.append(self._folder / f"{len(self._pairs) + 1:04d}-{side}.wav")
            write(clips[0], paths[-1])
            keep_tokens(paths[-1], made.codes[0].cpu(), engine.model.codec_key)
        a, b = paths
        name = pair_id(prompt, audio_digest(a), audio_digest(b))
        return Pair(name, prompt, a, b, *self._plan.systems)

    def _step(self, _: int) -> None:
        if self._stop.is_set():
            raise _StoppedError


class _StoppedError(Exception):
    """It was asked to stop."""


def _begin(plan: Plan, folder: Path) -> list[Pair]:
    """The pairs that are there already; the folder and its plan, if they are not."""
    facts, kept = plan.facts(), folder / _PLAN
    if kept.exists():
        try:
            before = json.loads(kept.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"plan {kept} cannot be read; use another --store") from error
        if before != facts:
            names = [name for name in facts if before.get(name) != facts[name]]
            raise InputError(
                f"folder {folder} has pairs with other {' and '.join(names)}; use another --store, "
                "or the same as before"
            )
        return read_pairs(folder) if (folder / _PAIRS).exists() else []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise readable(error, folder) from error
    if any(folder.iterdir()):
        raise InputError(f"folder {folder} has something else in it; use another --store")
    with publish_file(kept) as temporary:
        temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return []


def _without(prompts: Sequence[str], made: Sequence[str]) -> list[tuple[str, int]]:
    """Prompts still to make, each with how often it came before."""
    done, seen, left = Counter(made), Counter[str](), []
    for prompt in prompts:
        if seen[prompt] >= done[prompt]:
            left.append((prompt, seen[prompt]))
        seen[prompt] += 1
    return left


def _system(name: str) -> list[object]:
    """A system and what its files hold."""
    return [name, "" if name == BASE else adapter_facts(Addition.read(name))["sha256"]]
