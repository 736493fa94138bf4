"""A new head for an audio encoder: alone a linear probe, beside another method what that needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch

from musictune.errors import InputError
from musictune.methods.base import TuningMethod
from musictune.methods.inserted import require_seed
from musictune.methods.storage import (
    from_options,
    load_json,
    load_tensors,
    save_json,
    save_tensors,
)
from musictune.models.base import TunableModel
from musictune.models.classifier import Classifier, MeanHead


class LinearProbe(TuningMethod):
    """Layer norm and linear layer on the mean of an encoder's tokens; the encoder stays as it is.

    Every tuning run of a classifier trains such a head, beside whatever else its method trains.

    Args:
        labels: the classes.
        multi_label: whether several can be true of a clip.
        seed: of the head's first weights.
    """

    name: ClassVar[str] = "linear_probe"
    learning_rate = 1e-3

    def __init__(
        self, labels: Sequence[str] = (), multi_label: bool = False, seed: int = 0
    ) -> None:
        self.labels = tuple(labels)
        self.multi_label = multi_label
        self.seed = require_seed(seed)
        self._head: MeanHead | None = None
        self._before: MeanHead | None = None

    def check(self, model: TunableModel) -> None:
        """Refuse a model without classes, or no classes.

        Raises:
            InputError: one of the two.
        """
        if not isinstance(model, Classifier):
            raise InputError(
                f"method {self.name} is for audio encoders, and {model.base!r} is none; choose "
                "another method, or tune --task classify"
            )
        if not self.labels:
            raise InputError(f"method {self.name} needs labels; give labelled clips")

    def attach(self, model: TunableModel) -> None:
        """Give ``model`` a fresh head.

        Raises:
            InputError: as :meth:`check`.
        """
        self.check(model)
        assert isinstance(model, Classifier)
        model.requires_grad_(False)
        self._before = model.head
        self._head = MeanHead(model.width, self.labels, self.multi_label, self.seed)
        model.head = self._head.to(model.device)

    @contextlib.contextmanager
    def disabled(self, model: TunableModel) -> Iterator[None]:
        """The base with its own head inside."""
        assert isinstance(model, Classifier)
        model.head = self._before
        try:
            yield
        finally:
            model.head = self._head

    def save(self, model: TunableModel, folder: Path) -> None:
        """``linear_probe.safetensors`` and ``linear_probe.json`` with the labels."""
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(dict(self._attached().named_parameters()), folder / f"{self.name}.safetensors")
        options = {"labels": list(self.labels), "multi_label": self.multi_label, "seed": self.seed}
        assert isinstance(model, Classifier)
        save_json({"options": options, "seconds": model.seconds}, folder / f"{self.name}.json")

    @classmethod
    def load(cls, model: TunableModel, folder: Path) -> Self:
        """Attach what :meth:`save` wrote.

        Raises:
            InputError: a file is missing or corrupt, or made for another base.
        """
        method = from_options(cls, load_json(folder / f"{cls.name}.json"), folder)
        tensors = load_tensors(folder / f"{cls.name}.safetensors")
        method.attach(model)
        learned = dict(method._attached().named_parameters())
        shapes = {name: list(p.shape) for name, p in learned.items()}
        if shapes != {name: list(t.shape) for name, t in tensors.items()}:
            method.detach(model)
            raise InputError(
                f"adapter {folder} was made for another base or is damaged: its head does not fit "
                f"{shapes['dense.weight']}"
            )
        with torch.no_grad():
            for name, parameter in learned.items():
                parameter.copy_(tensors[name])
        return method

    def merge(self, model: TunableModel, weight: float = 1.0) -> None:
        """Leave the head there for good; half a head is none, so ``weight`` counts as 1."""
        self._attached()
        self._head = self._before = None

    def detach(self, model: TunableModel) -> None:
        """Give the model back the head that it had."""
        self._attached()
        assert isinstance(model, Classifier)
        model.head = self._before
        self._head = self._before = None

    def describe(self) -> dict[str, int | float | str]:
        """How many classes, and weights of the head."""
        trained = sum(p.numel() for p in self._attached().parameters())
        return {
            "method": self.name,
            "classes": len(self.labels),
            "head_parameters": trained,
            "trained_parameters": trained,
        }

    @classmethod
    def toy(cls) -> Self:
        """As many classes as toy models have."""
        return cls(["one", "two", "three"])

    def _attached(self) -> MeanHead:
        if self._head is None:
            raise InputError(f"method {self.name} is not attached to a model")
        return self._head
