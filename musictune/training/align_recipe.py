"""One alignment in YAML: towards which votes or rewards, by which objective, on which prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from musictune.data.concepts import Concept
from musictune.errors import InputError
from musictune.methods.combined import Combined
from musictune.methods.concept_tokens import ConceptTokens
from musictune.training.objectives import Objective, PairObjective, RolloutObjective, objectives
from musictune.training.objectives.registry import find_objective
from musictune.training.recipe import Recipe, RunSettings, parse, recipe_parser
from musictune.training.settings import TrainingSettings


@dataclass(frozen=True)
class AlignSettings:
    """What music is compared, and how far the model may go.

    Attributes:
        votes: files of votes or ratings: stores, JSONL, CSV; for objectives over pairs.
        prompts: a file of prompts, one a line, to play and to score with.
        reward: what is praised, ``name`` or ``name=weight``, each in standard deviations of what
            the untuned model plays.
        then: rewards of a second stage, after ``first`` of the steps; the reference is then the
            model as the first stage left it (MusicRL's way).
        first: share of the steps in the first stage, if there is a second.
        adapter: go on training the adapter of this run, which is then the reference too.
        reference: recordings of the sound wanted, for reward ``audio_alignment``.
        training_clips: recordings the model learned from, for reward ``novelty``.
        pairs: with a reward and an objective over pairs: how many pairs the model makes first, of
            which the reward chooses.
        samples: clips of a prompt from which the best and the worst become a pair.
        prompts_per_step, group: on-policy objectives play ``group`` clips for each of as many
            prompts in every step.
        updates: optimiser steps on the clips of one round of playing.
        guidance: the policy is the model under this guidance; 1 is the model itself.
        target_kl: nats per token of the policy from the reference; the weight of the divergence is
            then moved to keep it there. 0 keeps the weight as it is.
        held_out_prompts: share of the prompts that are only scored, never trained on.
        least_diversity: stop when held-out clips of a prompt are less varied than this share of
            what they were before training; 0 for never.

    Raises:
        InputError: a value out of range.
    """

    votes: list[str] = field(default_factory=list)
    prompts: str = ""
    reward: list[str] = field(default_factory=list)
    then: list[str] = field(default_factory=list)
    first: float = 0.5
    adapter: str = ""
    reference: str = ""
    training_clips: str = ""
    pairs: int = 200
    samples: int = 4
    prompts_per_step: int = 4
    group: int = 4
    updates: int = 1
    guidance: float = 1.0
    target_kl: float = 0.0
    held_out_prompts: float = 0.2
    least_diversity: float = 0.5

    def __post_init__(self) -> None:
        for name in ("pairs", "prompts_per_step", "group", "updates"):
            if not 1 <= getattr(self, name) <= 100_000:
                raise InputError(f"{name} {getattr(self, name)} must be from 1 to 100000")
        if not 2 <= self.samples <= 1000:
            raise InputError(f"samples {self.samples} must be from 2 to 1000: a pair needs two")
        if not (math.isfinite(self.guidance) and self.guidance >= 1):
            raise InputError(f"guidance {self.guidance} must be at least 1; 1 is none")
        if not (math.isfinite(self.target_kl) and self.target_kl >= 0):
            raise InputError(f"target_kl {self.target_kl} must be 0 or more")
        if not 0 < self.first < 1:
            raise InputError(f"first {self.first} must be between 0 and 1")
        for name in ("held_out_prompts", "least_diversity"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} must be at least 0 and below 1")
        if self.then and not self.reward:
            raise InputError(
                f"rewards of a second stage ({', '.join(self.then)}) need some for the first; give "
                "--reward, or name them there"
            )

    @property
    def clips_per_step(self) -> int:
        """Clips that one round plays."""
        return self.prompts_per_step * self.group


@dataclass(frozen=True)
class AlignRecipe(Recipe):
    """A resolved recipe of an alignment.

    Attributes:
        objective: what is lowered.
        align: towards what, and how far.
    """

    objective: Objective
    align: AlignSettings

    @property
    def concepts(self) -> list[Concept]:
        """The words the objective adds."""
        return list(marks_of(self.objective))

    @property
    def on_policy(self) -> bool:
        """Whether the model plays as it learns."""
        return isinstance(self.objective, RolloutObjective)


def marks_of(objective: Objective) -> tuple[Concept, ...]:
    """The words for clips that were chosen and rejected; none for most objectives."""
    return tuple(getattr(objective, "marks", None) or ())


def load_align_recipe(
    configs: Sequence[Path] = (),
    sets: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    method: str | None = None,
    objective: str | None = None,
) -> AlignRecipe:
    """As `musictune.training.recipe.load_recipe`, with an objective and what to align to.

    Args:
        configs, sets, overrides, method: as there.
        objective: a short name, such as ``dpo`` or ``rloo``; replaces the recipe's.

    Raises:
        InputError: a file is missing, a key or value does not fit, or they do not fit each other.
    """
    objectives()  # imported, so that bare class names are found
    parser = recipe_parser()
    parser.add_subclass_arguments(Objective, "objective", required=True)
    parser.add_class_arguments(AlignSettings, "align")
    parser.set_defaults(
        {"training.lr": None, "training.steps": 100,
         "training.keep": "best",
         "training.precision": "fp32", "training.score_every": 25}
    )  # fmt: skip
    if objective is None and not any(map(_names_objective, configs)):
        objective = "dpo"
    named = [f"--objective={find_objective(objective).__name__}"] if objective else []
    built, text = parse(parser, configs, sets, overrides, method, named)
    run: RunSettings = built.run
    if run.concept or run.clips:
        raise InputError(
            "an alignment learns no concept and reads no clips of its own; learn the concept with "
            "`musictune tune` first and give that run as --adapter"
        )
    training: TrainingSettings = built.training
    if training.optimizer != "adamw" or training.objective != "loss" or training.prior:
        raise InputError(
            "optimizer mezo, objective alignment and prior belong to `musictune tune`; leave "
            "training.optimizer, training.objective and training.prior as they are"
        )
    align: AlignSettings = built.align
    chosen = built.method
    if align.adapter and method:
        raise InputError(
            f"method {method} cannot go on with the adapter of {align.adapter}, which has its own; "
            "leave --method or --adapter out"
        )
    if marks := marks_of(built.objective):
        chosen = Combined([ConceptTokens(list(marks)), chosen])
        if align.adapter:
            raise InputError(
                f"objective {built.objective.name} adds words of its own, which an adapter that "
                "goes on cannot take; start from the base, or use another objective"
            )
    if isinstance(built.objective, RolloutObjective):
        training = _passes(training, align)
    elif isinstance(built.objective, PairObjective) and align.then:
        raise InputError(
            f"objective {built.objective.name} has no second stage; use rloo, grpo or reinforce, "
            "or a second run that goes on with --adapter"
        )
    return AlignRecipe(run, training, chosen, text, built.objective, align)


def _passes(training: TrainingSettings, align: AlignSettings) -> TrainingSettings:
    """With as many passes per step as it takes to hear all that was played."""
    clips = align.clips_per_step
    if training.accumulate != 1:
        raise InputError(
            f"accumulate {training.accumulate} follows from prompts_per_step x group clips by "
            "batch; leave it at 1"
        )
    if clips % training.batch:
        raise InputError(
            f"{align.prompts_per_step} prompts x {align.group} clips do not divide by batch "
            f"{training.batch}; choose a batch that divides {clips}"
        )
    return replace(training, accumulate=clips // training.batch)


def _names_objective(config: Path) -> bool:
    """Whether a recipe says which objective; a default class would lend it its own numbers."""
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return True  # refused with its reason where it is read
    return isinstance(content, dict) and "objective" in content
