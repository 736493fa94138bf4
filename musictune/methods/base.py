"""What every tuning method offers. Adding a method is adding one file with one subclass."""

from __future__ import annotations

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.models.base import MusicModel, TunableModel


class TuningMethod(ABC):
    """A way of changing a few of a model's weights.

    Life of a method: ``prepare`` (may look at data), ``attach`` (in place; from then on
    ``requires_grad`` says what is trained), training, ``save``. Later: ``load`` onto a fresh base,
    then ``merge`` or use it live. A method starts as the identity: right after ``attach`` the
    model computes what the base does.
    """

    name: ClassVar[str]
    """The short name on the command line."""

    learning_rate: float
    """What suits this method when a recipe names no rate."""

    encoder_learning_rate: float = 5e-3
    """The same on an audio encoder that learns labels; by default that of the study of adapters for
    AST (Cappellazzo et al. 2023, arXiv 2312.03694)."""

    mergeable: ClassVar[bool] = True
    """Whether ``merge`` can fold the change into plain weights; what cannot has a ``scale``, 0..1,
    that stands for the weight of an adapter, and is used live."""

    frozen_base: bool = True
    """Whether what is trained lies in tensors of its own, so that the base can be held in bf16."""

    needs_gradients: bool = False
    """Whether it steers training through gradients; ``mezo``, which has none, is then refused."""

    def check(self, model: TunableModel) -> None:  # noqa: B027
        """Refuse at once what ``attach`` would refuse after minutes of preparation.

        Raises:
            InputError: no layer matches, or an option does not fit the model.
        """

    def prepare(self, model: TunableModel, batches: Iterator[Any]) -> None:  # noqa: B027
        """Look before attaching: selection happens here. ``model`` leaves as it came.

        Args:
            model: the untouched base.
            batches: endless and seeded, the same stream that training draws from.
        """

    @abstractmethod
    def attach(self, model: TunableModel) -> None:
        """Change ``model`` in place and freeze all that is not trained.

        Raises:
            InputError: no layer matched, or an option does not fit the model.
        """

    def penalty(self, model: TunableModel) -> Tensor | None:
        """An extra loss, or None."""
        return None

    def before_step(  # noqa: B027
        self, model: TunableModel, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        """Called before the first forward pass of each optimiser step.

        What this and :meth:`after_step` do must follow from the method's own seed, ``step``, the
        weights it saves and the optimiser's state, so that a resumed run stays the same to the bit.

        Args:
            model: the base with this method attached.
            optimizer: with the moments of the trained parameters.
            step: optimiser steps done, over all processes of the run; 0 at the first.
            steps: of the whole run.
        """

    def after_step(  # noqa: B027
        self, model: TunableModel, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        """Called after the optimiser moved, with the same ``step`` as :meth:`before_step`.

        Gradients are still those of this step. What is trained may be moved to other places here
        (grow and prune), with its moments.
        """

    @abstractmethod
    @contextlib.contextmanager
    def disabled(self, model: TunableModel) -> Iterator[None]:
        """Inside, ``model`` computes exactly what the base does: a free reference policy."""

    @abstractmethod
    def save(self, model: TunableModel, folder: Path) -> None:
        """Write the learned weights (safetensors) and a JSON config into ``folder``."""

    @classmethod
    @abstractmethod
    def load(cls, model: TunableModel, folder: Path) -> Self:
        """Attach to ``model`` what ``save`` wrote.

        Raises:
            InputError: a file is missing or corrupt, or made for another base.
        """

    @abstractmethod
    def merge(self, model: TunableModel, weight: float = 1.0) -> None:
        """Fold ``weight`` times the change into the plain weights and detach.

        Afterwards ``model`` has the base's own modules and no trace of the method.
        """

    @abstractmethod
    def detach(self, model: TunableModel) -> None:
        """Undo ``attach``: ``model`` is the base again, to the bit."""

    @abstractmethod
    def describe(self) -> dict[str, int | float | str]:
        """Facts for people after ``attach``: matched layers, trained parameters, and so on."""

    @classmethod
    @abstractmethod
    def toy(cls) -> Self:
        """An instance that suits ``TunableModel.toy()``, for the contract tests."""


def music_model(model: TunableModel, method: str) -> MusicModel:
    """``model``, if it reads texts and makes music.

    Raises:
        InputError: it only listens.
    """
    if not isinstance(model, MusicModel):
        raise InputError(
            f"method {method} is for models that make music from a text, and {model.base!r} only "
            "listens; choose another method, such as lora or bottleneck"
        )
    return model


def trained_parameters(module: nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def matched_modules(
    root: nn.Module, targets: str, kinds: tuple[type[nn.Module], ...] = (nn.Linear,)
) -> dict[str, nn.Module]:
    """The modules of ``kinds`` in ``root`` whose dotted name the expression ``targets`` finds.

    Raises:
        InputError: ``targets`` is no regular expression, or finds nothing.
    """
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise InputError(f"targets {targets!r} is no regular expression: {error}") from error
    found = {
        name: module
        for name, module in root.named_modules()
        if isinstance(module, kinds) and pattern.search(name)
    }
    if not found:
        near = [name for name, module in root.named_modules() if isinstance(module, kinds)]
        raise InputError(
            f"targets {targets!r} matched no layer; the model has layers such as "
            f"{', '.join(near[:3]) or 'none of this kind'}"
        )
    return found


@torch.no_grad()
def interpolate(module: nn.Module, before: dict[str, Tensor], weight: float) -> None:
    """Set each parameter named in ``before`` to ``before + weight * (now - before)``, in place."""
    parameters = dict(module.named_parameters())
    for name, old in before.items():
        parameter = parameters[name]
        parameter.copy_(old + weight * (parameter - old))
