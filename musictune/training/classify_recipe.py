"""One run that teaches an encoder labels, in YAML: which clips, how split, how heard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musictune.errors import InputError
from musictune.methods.base import TuningMethod
from musictune.methods.combined import Combined
from musictune.methods.linear_probe import LinearProbe
from musictune.training.labelled_stream import Augment
from musictune.training.recipe import parse, recipe_parser
from musictune.training.settings import TrainingSettings
from musictune.training.unfused import UnfusedSettings


@dataclass(frozen=True)
class ClassifySettings:
    """What is learned from what.

    Attributes:
        base: ``mini``, a folder of an audio encoder, or a Hugging Face id.
        clips: labelled clips, in any layout that `read_labelled` knows.
        layout: which one; found out if ``auto``.
        seconds: how much is heard at once; as the base was trained if not given.
        epochs: how often every training clip is heard.
        validate_every: epochs between looks at the validation clips; the last is looked at too.
        shots: training clips of each class; 0 for all.
        validation, test: shares held out, where the clips come without parts of their own.
        folds: train so many times, each time with other clips for the test; 0 for once.
        head_lr: peak learning rate of the head.
        mask_patches: share of each clip that loses its content while training.

    Raises:
        InputError: a value out of range.
    """

    base: str = "mini"
    clips: str = ""
    layout: str = "auto"
    seconds: float | None = None
    epochs: int = 30
    validate_every: int = 1
    shots: int = 0
    validation: float = 0.2
    test: float = 0.2
    folds: int = 0
    head_lr: float = 5e-3
    mask_patches: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "validate_every"):
            if not 1 <= getattr(self, name) <= 100_000:
                raise InputError(f"{name} {getattr(self, name)} must be from 1 to 100000")
        if not 0 <= self.shots <= 1_000_000:
            raise InputError(f"shots {self.shots} must be 0 (all clips) or more per class")
        if self.folds != 0 and not 2 <= self.folds <= 1000:
            raise InputError(f"folds {self.folds} must be 0 (train once), or from 2 to 1000")
        for name in ("validation", "test", "mask_patches"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} must be at least 0 and below 1")
        if not 0 < self.head_lr < math.inf:
            raise InputError(f"head_lr {self.head_lr} must be a number above 0")
        if self.seconds is not None and not 0 < self.seconds <= 600:
            raise InputError(f"seconds {self.seconds} must be above 0 and at most 600")


@dataclass(frozen=True)
class ClassifyRecipe:
    """A resolved recipe.

    Attributes:
        run, training, augment, unfused: its plain values.
        method: built, not attached, without a head.
        text: the whole recipe as YAML, which gives this recipe again.
    """

    run: ClassifySettings
    training: TrainingSettings
    augment: Augment
    unfused: UnfusedSettings
    method: TuningMethod
    text: str

    def with_head(self, labels: Sequence[str], multi_label: bool) -> TuningMethod:
        """The method beside a head for ``labels``; that head alone for a linear probe."""
        head = LinearProbe(labels, multi_label, self.training.seed)
        if isinstance(self.method, LinearProbe):
            return head
        return Combined([head, self.method])


def load_classify_recipe(
    configs: Sequence[Path] = (),
    sets: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    method: str | None = None,
) -> ClassifyRecipe:
    """As `musictune.training.recipe.load_recipe`, for labels.

    Raises:
        InputError: a file is missing, or a key or value does not fit.
    """
    parser = recipe_parser(ClassifySettings)
    parser.add_class_arguments(Augment, "augment")
    parser.add_class_arguments(UnfusedSettings, "unfused")
    parser.set_defaults(
        {"training.keep": "best", "training.batch": 32, "training.precision": "fp32",
         "training.weight_decay": 0.1, "training.checkpoint_every": 0, "training.warmup": 10}
    )  # fmt: skip
    built, text = parse(parser, configs, sets, overrides, method)
    training: TrainingSettings = built.training
    if training.optimizer != "adamw" or training.objective != "loss" or training.prior:
        raise InputError(
            "optimizer mezo, objective alignment and prior are for music; leave them as they are "
            "with --task classify"
        )
    if isinstance(built.method, Combined):
        raise InputError("combined is no method for --task classify; name one that it combines")
    return ClassifyRecipe(built.run, training, built.augment, built.unfused, built.method, text)
