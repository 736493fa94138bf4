"""What a concept benchmark was asked to do: which methods, with which settings."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from musictune.bench.concept_set import PLACEHOLDER, BenchConcept
from musictune.errors import InputError
from musictune.files import sha256
from musictune.training.recipe import Recipe, load_recipe

NONE = "none"
"""The untouched base, asked with the class word: the first row of every table."""

# Half a minute of checkpoints and previews per run says nothing here.
_LEAN = (
    "training.checkpoint_every=0",
    "training.held_out_every=0",
    "training.preview_seconds=1",
)
_REFERENCE = "reference.seconds"
_METHOD = re.compile(r"(?P<name>[^:=]+(?::[^:=.]+)?)(?::(?P<sets>[\w.]+=.*))?")


@dataclass(frozen=True)
class Method:
    """A row of the table: a tuning method, with changes of its recipe.

    Attributes:
        text: as it was given, a recipe without its folder: what the row is called.
        name: a short name as for ``tune --method``, or the path of a recipe.
        sets: ``key=value`` changes of the recipe.
        reference_seconds: how much of the reference is learned from, given as
            ``reference.seconds=30``; all of it if None.
    """

    text: str
    name: str
    sets: tuple[str, ...] = ()
    reference_seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read ``NAME`` or ``NAME:KEY=VALUE[,KEY=VALUE]``.

        Raises:
            InputError: it is neither, or its length of reference is too short.
        """
        match = _METHOD.fullmatch(text.strip())
        if match is None:
            raise InputError(
                f"method {text!r} cannot be read; give NAME or NAME:KEY=VALUE,KEY=VALUE, such as "
                f"pivotal:method.fraction=0.02"
            )
        # A comma inside a value, as in a list, is not followed by a key.
        sets = re.split(r",(?=[\w.]+=)", match["sets"]) if match["sets"] else []
        kept = tuple(each for each in sets if not each.startswith(f"{_REFERENCE}="))
        lengths = [each.partition("=")[2] for each in sets if each not in kept]
        seconds = _reference_seconds(text, lengths[-1]) if lengths else None
        name, shown = match["name"], text.strip()
        if _is_recipe(name):
            shown = shown.replace(name, Path(name).stem, 1)
        return cls(shown, name, kept, seconds)

    @property
    def slug(self) -> str:
        """A folder name of its own."""
        plain = re.sub(r"[^a-z0-9.=_-]+", "-", self.text.lower()).strip("-.")[:80]
        if plain == self.text:
            return plain
        return f"{plain}-{hashlib.sha256(self.text.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class Plan:
    """How each cell is made.

    Attributes:
        base: ``mini``, a model folder, or a Hugging Face id.
        device: auto, cpu or cuda.
        embedder: CLAP that listens; the bundled one if None.
        steps: training steps; the recipe's own if None.
        sets: ``key=value`` changes of every recipe; a method's own win.
        prompts: how many, half of those that keep the class and half of those that move it.
        seconds: length of each clip made.
        general: clips that forgetting is measured on; 0 for none.
        general_music: how many of their captions are played too; all if None, 0 for the loss alone.

    Raises:
        InputError: fewer than two prompts, or a negative number.
    """

    base: str = "mini"
    device: str = "auto"
    embedder: str | None = None
    steps: int | None = None
    sets: tuple[str, ...] = ()
    prompts: int = 20
    seconds: float = 10.0
    general: int = 24
    general_music: int | None = None

    def __post_init__(self) -> None:
        if self.prompts < 2:
            raise InputError(
                f"{self.prompts} prompts are too few; give 2 or more: half keep the class, half "
                f"move it"
            )
        if self.general < 0 or self.general == 1:
            raise InputError(f"{self.general} general clips cannot be used; give 0, or 2 or more")
        if self.music == 1 or not 0 <= self.music <= self.general:
            raise InputError(
                f"music of {self.music} general clips cannot be made; give 0, or 2 to "
                f"{self.general}: no more than --general"
            )

    @property
    def music(self) -> int:
        """General captions that are played."""
        return self.general if self.general_music is None else self.general_music

    def chosen(self, concept: BenchConcept) -> list[tuple[str, str]]:
        """``(keep or move, prompt with a gap for the sound's name)``, the first of each kind."""
        keep, move = (self.prompts + 1) // 2, self.prompts // 2
        kept = [("keep", prompt) for prompt in concept.keep[:keep]]
        return kept + [("move", prompt) for prompt in concept.move[:move]]

    def recipe(self, method: Method, concept: BenchConcept, seed: int, word: str) -> Recipe:
        """The run that learns ``concept`` under the name ``word``.

        Raises:
            InputError: no such method or recipe, or a change that does not fit.
        """
        return self._recipe(
            method,
            {
                "run.clips": str(concept.reference),
                "run.base": self.base,
                "run.concept": word,
                "run.class_word": concept.class_word,
                "training.seed": seed,
            },
        )

    def joint_recipe(
        self,
        method: Method,
        concepts: Mapping[str, tuple[str, Path]],
        seed: int,
        tokens: int,
        steps: int,
    ) -> Recipe:
        """The run that learns several concepts together.

        Args:
            method: by what.
            concepts: class word and clips of each, by the name under which it is learned.
            seed: of everything random.
            tokens: that carry each concept.
            steps: of the optimiser, over all of them.

        Raises:
            InputError: no such method or recipe, or a change that does not fit.
        """
        return self._recipe(
            method,
            {
                "run.base": self.base,
                "run.concept": [f"{name}={folder}" for name, (_, folder) in concepts.items()],
                "run.class_word": [f"{name}={word}" for name, (word, _) in concepts.items()],
                "run.tokens": tokens,
                "training.seed": seed,
                "training.steps": steps,
            },
        )

    def _recipe(self, method: Method, overrides: Mapping[str, Any]) -> Recipe:
        steps = [f"training.steps={self.steps}"] * (self.steps is not None)
        changes = [*_LEAN, *steps, *self.sets, *method.sets]
        if _is_recipe(method.name):
            return load_recipe([Path(method.name)], changes, overrides)
        return load_recipe([], changes, overrides, method.name)


def _reference_seconds(text: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 1):
        raise InputError(
            f"method {text!r}: {_REFERENCE} {value!r} must be a number of seconds, 1 or more"
        )
    return seconds


def read_methods(texts: Sequence[str]) -> list[Method]:
    """Each method once, without the base, which has its row anyway.

    Raises:
        InputError: one cannot be read, there is none, or two would have one name.
    """
    if not texts:
        raise InputError("no --method given; give one or more, such as --method pivotal")
    methods = [Method.parse(text) for text in dict.fromkeys(texts) if text.strip() != NONE]
    named: dict[str, Method] = {}
    for method in methods:
        other = named.setdefault(method.text, method)
        if other is not method:
            raise InputError(
                f"methods {other.name} and {method.name} would both be called {method.text!r}; "
                f"rename one of the recipes"
            )
    return methods


def recipe_settings(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, without the place that its clips came from."""
    content: dict[str, Any] = yaml.safe_load(recipe.text)
    content["run"].pop("clips", None)
    content["run"].pop("base", None)
    return content


def concept_digest(concept: BenchConcept) -> str:
    """A hash over class word and audio of a concept: equal digests, equal material."""
    digest = hashlib.sha256(f"{concept.name} {concept.kind} {concept.class_word}\n".encode())
    for folder in (concept.reference, concept.heldout):
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(folder.parent).as_posix()
            digest.update(f"{name} {sha256(path)}\n".encode())
    return digest.hexdigest()


def named(prompt: str, word: str) -> str:
    """The prompt with ``word`` where the concept stands."""
    return prompt.replace(PLACEHOLDER, word)


def _is_recipe(name: str) -> bool:
    return name.lower().endswith((".yaml", ".yml"))
