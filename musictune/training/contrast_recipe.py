"""One run that teaches a CLAP captions, in YAML: which clips, which tower, in which stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musictune.errors import InputError
from musictune.methods.base import TuningMethod
from musictune.methods.combined import Combined
from musictune.models.contrastive import Tower
from musictune.training.contrasting import GROUP, STAGES
from musictune.training.recipe import parse, recipe_parser
from musictune.training.settings import TrainingSettings

_METHODS = ("bitfit", "bottleneck", "full", "peft", "pivotal", "ssf")
"""Those that only need linear layers and norms. The audio tower, a Swin transformer, computes its
attention itself, so what is added to attention from outside would never be heard."""


@dataclass(frozen=True)
class ContrastSettings:
    """What is learned from what.

    Attributes:
        base: ``mini``, a folder of a CLAP, or a Hugging Face id.
        clips: captioned clips: a folder with ``metadata.jsonl``, or audio beside ``.txt`` files.
        tower: ``audio``, ``text``, or ``both``: what the method may change.
        stages: one after the other: ``clips`` (captions of single clips), ``several`` (whether one
            clip sounds, or two), ``order`` (which of two comes first). The last two are made from
            the clips, and are the stages of TeminAL.
        stage_steps: steps of each stage, with ``training.steps`` as their sum; equal shares if
            empty.
        retention: captioned clips of a general kind, not trained on: retrieval there, before and
            after, says what was forgotten. Not measured if empty.
        sequences: pairs of held-out clips that order is measured on.

    Raises:
        InputError: a value out of range.
    """

    base: str = "mini"
    clips: str = ""
    tower: Tower = "both"
    stages: list[str] = field(default_factory=lambda: ["clips"])
    stage_steps: list[int] = field(default_factory=list)
    retention: str = ""
    sequences: int = 60

    def __post_init__(self) -> None:
        unknown = [name for name in self.stages if name not in STAGES]
        if unknown or not self.stages:
            raise InputError(
                f"stages {self.stages} must be one or more of {', '.join(STAGES)}, such as "
                "[several, order]"
            )
        if self.stage_steps and len(self.stage_steps) != len(self.stages):
            raise InputError(
                f"{len(self.stage_steps)} stage_steps do not fit {len(self.stages)} stages; give "
                "one number for each, or none"
            )
        if any(steps < 1 for steps in self.stage_steps):
            raise InputError(f"stage_steps {self.stage_steps} must each be at least 1")
        if not 1 <= self.sequences <= 10_000:
            raise InputError(f"sequences {self.sequences} must be from 1 to 10000")

    @property
    def ordered(self) -> bool:
        """Whether clips are put one after the other."""
        return any(name != "clips" for name in self.stages)


@dataclass(frozen=True)
class ContrastRecipe:
    """A resolved recipe.

    Attributes:
        run, training: its plain values.
        method: built, not attached.
        text: the whole recipe as YAML, which gives this recipe again.
    """

    run: ContrastSettings
    training: TrainingSettings
    method: TuningMethod
    text: str

    @property
    def passes(self) -> list[tuple[str, int]]:
        """The stages with the batches of each."""
        run, settings = self.run, self.training
        count = len(run.stages)
        steps = run.stage_steps or [
            settings.steps * (i + 1) // count - settings.steps * i // count for i in range(count)
        ]
        return [(n, s * settings.accumulate) for n, s in zip(run.stages, steps, strict=True)]


def load_contrast_recipe(
    configs: Sequence[Path] = (),
    sets: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    method: str | None = None,
) -> ContrastRecipe:
    """As `musictune.training.recipe.load_recipe`, for a CLAP.

    Its settings are those of ``run``, such as ``run.tower``.

    Raises:
        InputError: a file is missing, a key or value does not fit, or a method cannot change a
            CLAP.
    """
    parser = recipe_parser(ContrastSettings)
    parser.set_defaults(
        {"method": {"class_path": "Peft"},
         "training.steps": 200, "training.batch": 32, "training.keep": "best",
         "training.precision": "fp32", "training.held_out": 0.2, "training.held_out_every": 25,
         "training.score_every": 25}
    )  # fmt: skip
    built, text = parse(parser, configs, sets, overrides, method)
    training: TrainingSettings = built.training
    run: ContrastSettings = built.run
    if training.optimizer != "adamw" or training.objective != "loss" or training.prior:
        raise InputError(
            "optimizer mezo, objective alignment and prior are for music; leave them as they are "
            "with --task contrast"
        )
    _check_method(built.method)
    if training.batch < 2:
        raise InputError(
            f"batch {training.batch} leaves nothing to tell a clip from; choose 2 or more"
        )
    if run.ordered and training.batch % GROUP:
        raise InputError(
            f"batch {training.batch} must be divisible by {GROUP}: several and order make so many "
            "clips of each pair"
        )
    if run.stage_steps and sum(run.stage_steps) != training.steps:
        raise InputError(
            f"stage_steps {run.stage_steps} make {sum(run.stage_steps)} steps and training.steps "
            f"is {training.steps}; make them agree, or leave stage_steps out"
        )
    if training.steps < len(run.stages):
        raise InputError(
            f"{training.steps} steps are too few for {len(run.stages)} stages; give one for each"
        )
    return ContrastRecipe(run, training, built.method, text)


def _check_method(method: TuningMethod) -> None:
    if method.name in _METHODS:
        return
    if isinstance(method, Combined) and method.methods:
        for part in method.methods:
            _check_method(part)
        return
    raise InputError(
        f"method {method.name} does not fit a CLAP, whose audio tower has no attention to add to "
        f"and no head to train; choose from {', '.join(_METHODS)}, or a kind of peft such as lora"
    )
