"""What methods share that put small trained modules into the backbone: bottleneck, ssf, prefix."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.methods.base import TuningMethod
from musictune.methods.storage import (
    from_options,
    load_json,
    load_tensors,
    save_json,
    save_tensors,
)
from musictune.models.base import TunableModel

BASE = "base"
"""What an inserted module calls the plain module that it stands for, where it wraps one."""


class InsertedModule(nn.Module):
    """A trained module in the backbone; with ``scale`` 0 the backbone computes what the base does.

    Its own parameters are fp32; those below ``base`` belong to the model.
    """

    scale: float = 1.0

    def learned(self) -> dict[str, nn.Parameter]:
        """The trained parameters by their names in here."""
        return {n: p for n, p in self.named_parameters() if not n.startswith(f"{BASE}.")}

    def statistics(self) -> dict[str, Tensor]:
        """What it keeps of what it heard, such as the means of a batch norm, by names in here."""
        return {n: b for n, b in self.named_buffers() if not n.startswith(f"{BASE}.")}


class Inserted(TuningMethod):
    """A method whose trained weights are those of modules that it inserts.

    A subclass inserts and removes them, and says with which options it was built; the rest
    (freezing, switching off, files) is here.
    """

    def __init__(self) -> None:
        self._modules: dict[str, InsertedModule] = {}
        self._facts: dict[str, int | float | str] = {}

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The arguments that build this method again."""

    @abstractmethod
    def _insert(self, model: TunableModel) -> dict[str, InsertedModule]:
        """Put the modules in, each a function of options and model alone.

        Returns:
            The modules by the names of the layers that they belong to.

        Raises:
            InputError: no layer matched, or one cannot take a module; then nothing was put in.
        """

    @abstractmethod
    def _remove(self, model: TunableModel) -> None:
        """Undo :meth:`_insert`."""

    @property
    def scale(self) -> float:
        """How much of the change is used: 1 for all, 0.5 for half, 0 for the base."""
        return next(iter(self._attached().values())).scale

    @scale.setter
    def scale(self, value: float) -> None:
        for module in self._attached().values():
            module.scale = value

    def attach(self, model: TunableModel) -> None:
        """Insert the modules and freeze all the rest.

        Raises:
            InputError: no layer matched, or one cannot take a module.
        """
        size = sum(p.numel() for p in model.backbone.parameters())
        device = next(model.backbone.parameters()).device
        modules = self._insert(model)
        model.requires_grad_(False)
        for module in modules.values():
            for parameter in module.learned().values():
                parameter.data = parameter.data.to(device)
                parameter.requires_grad_(True)
            for buffer in module.statistics().values():
                buffer.data = buffer.data.to(device)
        self._modules = modules
        trained = sum(p.numel() for p in self._learned().values())
        self._facts = {
            "method": self.name,
            "matched_layers": len(modules),
            "trained_parameters": trained,
            "share_of_backbone": trained / max(size, 1),
        }

    @contextlib.contextmanager
    def disabled(self, model: TunableModel) -> Iterator[None]:
        """The base itself inside."""
        scale = self.scale
        self.scale = 0.0
        try:
            yield
        finally:
            self.scale = scale

    def save(self, model: TunableModel, folder: Path) -> None:
        """``<name>.safetensors`` with a tensor per layer and parameter, and ``<name>.json``."""
        kept = self._kept()
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(kept, folder / f"{self.name}.safetensors")
        save_json({"options": self.options()}, folder / f"{self.name}.json")

    @classmethod
    def load(cls, model: TunableModel, folder: Path) -> Self:
        """Attach what :meth:`save` wrote.

        Raises:
            InputError: a file is missing or corrupt, or made for another base.
        """
        method = from_options(cls, load_json(folder / f"{cls.name}.json"), folder)
        tensors = load_tensors(folder / f"{cls.name}.safetensors")
        method.attach(model)
        kept = method._kept()
        wrong = next(
            (n for n in sorted(set(kept) | set(tensors)) if not _fit(kept, tensors, n)), None
        )
        if wrong is not None:
            method.detach(model)
            raise InputError(
                f"adapter {folder} was made for another base or is damaged: {wrong} is "
                f"{_shape(tensors, wrong)} in it and {_shape(kept, wrong)} in this base"
            )
        with torch.no_grad():
            for name, tensor in kept.items():
                tensor.copy_(tensors[name])
        return method

    def merge(self, model: TunableModel, weight: float = 1.0) -> None:
        """Refused: no plain module computes what the inserted ones do.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"method {self.name} cannot be folded into the base's weights; "
            "use it live: generate --adapter RUN"
        )

    def detach(self, model: TunableModel) -> None:
        """Take the modules out."""
        self._attached()
        self._remove(model)
        self._modules = {}

    def describe(self) -> dict[str, int | float | str]:
        """Matched layers, trained parameters and their share of the backbone."""
        return self._facts

    def _attached(self) -> dict[str, InsertedModule]:
        if not self._modules:
            raise InputError(f"method {self.name} is not attached to a model")
        return self._modules

    def _learned(self) -> dict[str, nn.Parameter]:
        """Every trained parameter once, by ``layer.parameter``: modules may share some."""
        named = {
            f"{layer}.{name}": parameter
            for layer, module in self._attached().items()
            for name, parameter in module.learned().items()
        }
        first = {id(parameter): name for name, parameter in reversed(named.items())}
        return {name: named[name] for name in reversed(first.values())}

    def _kept(self) -> dict[str, Tensor]:
        """All that is saved: what is trained, and what modules keep of what they heard."""
        kept: dict[str, Tensor] = {**self._learned()}
        for layer, module in self._attached().items():
            kept |= {f"{layer}.{name}": buffer for name, buffer in module.statistics().items()}
        return kept


def require_count(name: str, value: int) -> int:
    """``value`` if it is a whole number of at least 1.

    Raises:
        InputError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} {value!r} must be a whole number of at least 1")
    return value


def require_seed(seed: int) -> int:
    """``seed`` if random numbers can begin with it.

    Raises:
        InputError: it is negative or too large.
    """
    if not 0 <= seed < 2**62:
        raise InputError(f"seed {seed} must be 0 or a positive number below 2^62")
    return seed


def _fit(kept: dict[str, Tensor], tensors: dict[str, Tensor], name: str) -> bool:
    if name not in kept or name not in tensors or kept[name].shape != tensors[name].shape:
        return False
    return bool(tensors[name].isfinite().all())


def _shape(tensors: dict[str, Any], name: str) -> str:
    if name not in tensors:
        return "missing"
    finite = "" if tensors[name].isfinite().all() else " with values that are no numbers"
    return f"{list(tensors[name].shape)}{finite}"
