"""Every weight trained: the plain way, and the yardstick for all the others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from musictune.errors import InputError
from musictune.methods.base import TuningMethod, matched_modules
from musictune.methods.storage import (
    from_options,
    load_json,
    load_tensors,
    save_json,
    save_tensors,
)
from musictune.models.base import TunableModel


class Full(TuningMethod):
    """Trains all weights of the backbone whose layer matches.

    Keeps a copy of the base's weights, which doubles their memory.

    Args:
        targets: regular expression over names of modules in the backbone.
    """

    name: ClassVar[str] = "full"
    learning_rate = 1e-4
    encoder_learning_rate = 5e-5  # the study's
    frozen_base = False

    def __init__(self, targets: str = ".*") -> None:
        self.targets = targets
        self._base: dict[str, Tensor] = {}
        self._facts: dict[str, int | float | str] = {}

    def check(self, model: TunableModel) -> None:
        """Refuse targets that match nothing."""
        matched_modules(model.backbone, self.targets, (torch.nn.Module,))

    def attach(self, model: TunableModel) -> None:
        """Unfreeze the matched layers.

        Raises:
            InputError: no layer matched.
        """
        modules = matched_modules(model.backbone, self.targets, (torch.nn.Module,))
        model.requires_grad_(False)
        owners = {name: m for name, m in modules.items() if m._parameters}
        for module in owners.values():
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(True)
        self._remember(model, len(owners))

    @contextlib.contextmanager
    def disabled(self, model: TunableModel) -> Iterator[None]:
        """The base itself inside."""
        current = dict(model.backbone.named_parameters())
        learned = {name: current[name].detach().clone() for name in self._base}
        _write(model, self._base)
        try:
            yield
        finally:
            _write(model, learned)

    def save(self, model: TunableModel, folder: Path) -> None:
        """``full.safetensors`` with the trained weights, and ``full.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        current = dict(model.backbone.named_parameters())
        save_tensors({name: current[name] for name in self._base}, folder / "full.safetensors")
        save_json({"options": {"targets": self.targets}}, folder / "full.json")

    @classmethod
    def load(cls, model: TunableModel, folder: Path) -> Self:
        """Attach what :meth:`save` wrote.

        Raises:
            InputError: a file is missing or corrupt, or made for another base.
        """
        method = from_options(cls, load_json(folder / "full.json"), folder)
        tensors = load_tensors(folder / "full.safetensors")
        current = dict(model.backbone.named_parameters())
        for name, tensor in tensors.items():
            if name not in current or current[name].shape != tensor.shape:
                raise InputError(
                    f"adapter {folder} was made for another base: "
                    f"it has no {name} of {list(tensor.shape)}"
                )
        method.attach(model)
        if set(method._base) != set(tensors):
            method.detach(model)
            raise InputError(f"adapter {folder} was made for another base: its layers differ")
        _write(model, tensors)
        return method

    def merge(self, model: TunableModel, weight: float = 1.0) -> None:
        """Keep ``weight`` times the change and forget the base's weights."""
        current = dict(model.backbone.named_parameters())
        if weight != 1.0:
            _write(
                model,
                {name: old + weight * (current[name] - old) for name, old in self._base.items()},
            )
        self._base = {}

    def detach(self, model: TunableModel) -> None:
        """Put the base's weights back."""
        _write(model, self._base)
        self._base = {}

    def describe(self) -> dict[str, int | float | str]:
        """Matched layers, trained parameters and their share of the backbone."""
        return self._facts

    @classmethod
    def toy(cls) -> Self:
        """Small enough for a test."""
        return cls()

    def _remember(self, model: TunableModel, layers: int) -> None:
        parameters = dict(model.backbone.named_parameters())
        self._base = {n: p.detach().clone() for n, p in parameters.items() if p.requires_grad}
        trained = sum(p.numel() for p in self._base.values())
        self._facts = {
            "method": self.name,
            "matched_layers": layers,
            "trained_parameters": trained,
            "share_of_backbone": trained / max(sum(p.numel() for p in parameters.values()), 1),
        }


@torch.no_grad()
def _write(model: TunableModel, values: dict[str, Tensor]) -> None:
    parameters = dict(model.backbone.named_parameters())
    for name, value in values.items():
        parameters[name].copy_(value)
