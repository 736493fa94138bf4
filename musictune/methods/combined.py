"""Several methods on one model, such as concept tokens with pivotal parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from musictune.errors import InputError
from musictune.methods.base import TuningMethod, trained_parameters
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.pivotal import Pivotal
from musictune.methods.storage import load_json, save_json
from musictune.models.base import TunableModel


class Combined(TuningMethod):
    """Its ``methods`` together, attached in their order.

    While a later method looks at data in ``prepare``, the earlier ones are attached, so that
    pivotal weights are found with the concept's own token in the text.

    Args:
        methods: one or more, each of another kind.
    """

    name: ClassVar[str] = "combined"

    def __init__(self, methods: Sequence[TuningMethod]) -> None:
        names = [method.name for method in methods]
        if not names or len(set(names)) < len(names):
            raise InputError(f"combined methods {names} must be one or more, each of another kind")
        self.methods = list(methods)
        # New words have a rate of their own; what trains the backbone comes after them.
        self.learning_rate = methods[-1].learning_rate
        self.frozen_base = all(method.frozen_base for method in methods)
        self.needs_gradients = any(method.needs_gradients for method in methods)

    def check(self, model: TunableModel) -> None:
        """Each method's ``check``."""
        for method in self.methods:
            method.check(model)

    def prepare(self, model: TunableModel, batches: Iterator[Any]) -> None:
        """Each method's ``prepare``, behind the ones before it."""
        attached: list[TuningMethod] = []
        try:
            for method in self.methods:
                method.prepare(model, batches)
                self._attach_one(method, model)
                attached.append(method)
        finally:
            for method in reversed(attached):
                method.detach(model)

    def attach(self, model: TunableModel) -> None:
        """Attach all of them.

        Raises:
            InputError: one of them does not fit the model.
        """
        attached: list[TuningMethod] = []
        model.requires_grad_(False)
        try:
            for method in self.methods:
                self._attach_one(method, model)
                attached.append(method)
        except Exception:
            for method in reversed(attached):
                method.detach(model)
            raise

    def penalty(self, model: TunableModel) -> Tensor | None:
        """The sum of all penalties."""
        found = [p for p in (method.penalty(model) for method in self.methods) if p is not None]
        return sum(found[1:], found[0]) if found else None

    def before_step(
        self, model: TunableModel, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        """Each method's ``before_step``, in their order."""
        for method in self.methods:
            method.before_step(model, optimizer, step, steps)

    def after_step(
        self, model: TunableModel, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        """Each method's ``after_step``, in their order."""
        for method in self.methods:
            method.after_step(model, optimizer, step, steps)

    @contextlib.contextmanager
    def disabled(self, model: TunableModel) -> Iterator[None]:
        """The base itself inside."""
        with contextlib.ExitStack() as stack:
            for method in reversed(self.methods):
                stack.enter_context(method.disabled(model))
            yield

    def save(self, model: TunableModel, folder: Path) -> None:
        """A folder per method, named after it, and ``combined.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        for method in self.methods:
            method.save(model, folder / method.name)
        save_json({"methods": [method.name for method in self.methods]}, folder / "combined.json")

    @classmethod
    def load(cls, model: TunableModel, folder: Path) -> Self:
        """Attach what :meth:`save` wrote.

        Raises:
            InputError: a file is missing or corrupt, or made for another base.
        """
        from musictune.methods.registry import find

        names = load_json(folder / "combined.json").get("methods", [])
        return cls.loaded(model, [(find(str(name)), folder / str(name)) for name in names])

    @classmethod
    def loaded(cls, model: TunableModel, parts: Sequence[tuple[type[TuningMethod], Path]]) -> Self:
        """Attach each kind of method from its folder.

        Raises:
            InputError: as the kinds' own ``load``; then nothing stays attached.
        """
        done: list[TuningMethod] = []
        trained: list[Tensor] = []
        try:
            for kind, folder in parts:
                done.append(kind.load(model, folder))
                trained += trained_parameters(model).values()
        except Exception:
            for method in reversed(done):
                method.detach(model)
            raise
        for parameter in trained:
            parameter.requires_grad_(True)
        return cls(done)

    def merge(self, model: TunableModel, weight: float = 1.0) -> None:
        """Merge all of them, the last one first.

        Raises:
            InputError: one of them cannot be merged; then none is.
        """
        # Those first: they refuse, and what has been merged cannot be taken back.
        order = sorted(reversed(self.methods), key=lambda method: method.mergeable)
        for method in order:
            method.merge(model, weight)

    def detach(self, model: TunableModel) -> None:
        """Detach all of them, the last one first."""
        for method in reversed(self.methods):
            method.detach(model)

    def describe(self) -> dict[str, int | float | str]:
        """Facts of all, numbers of trained parameters added up."""
        facts = [method.describe() for method in self.methods]
        merged: dict[str, int | float | str] = {}
        for fact in facts:
            merged.update(fact)
        merged["method"] = " + ".join(str(fact["method"]) for fact in facts)
        merged["trained_parameters"] = sum(int(fact["trained_parameters"]) for fact in facts)
        return merged

    @classmethod
    def toy(cls) -> Self:
        """The usual pair."""
        return cls([ConceptTokens.toy(), Pivotal.toy()])

    @staticmethod
    def _attach_one(method: TuningMethod, model: TunableModel) -> None:
        earlier = list(trained_parameters(model).values())
        method.attach(model)
        for parameter in earlier:
            parameter.requires_grad_(True)
