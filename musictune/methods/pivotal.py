"""Pivotal parameters: find the few attention weights that a sound needs, train only those.

A reconstruction of the idea published as JEN-1 DreamStyler (arXiv 2406.12292). The paper's own
share, schedule and learning rates are not public: every number here is ours and an option.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from musictune import console
from musictune.errors import CheckFailed, InputError
from musictune.methods.base import TuningMethod, matched_modules, trained_parameters
from musictune.methods.selection import Scope, narrowing, top_entries
from musictune.methods.sparse import ProbeLinear, SparseDeltaLinear
from musictune.methods.storage import (
    from_options,
    load_json,
    load_tensors,
    save_json,
    save_tensors,
)
from musictune.models.base import Batch, MusicModel


class Pivotal(TuningMethod):
    """Trains the entries of the attention projections that move most towards the clips.

    ``prepare`` trains a change of the whole projections for a few steps, keeps the entries that
    moved most, starts again from zero with only those, and so narrows down over ``rounds`` to
    ``fraction``. ``attach`` starts from the base once more and trains the survivors.

    Args:
        fraction: share of the matched weights to train, in (0, 1].
        rounds: how often to probe and narrow.
        probe_steps: training steps per round.
        probe_lr: learning rate of the probe.
        targets: regular expression over layer names; the model's own choice by default.
        scope: rank entries over all matrices together (``global``) or in each (``matrix``).

    Raises:
        InputError: an option is out of range.
    """

    name: ClassVar[str] = "pivotal"
    learning_rate = 1e-3

    def __init__(
        self,
        fraction: float = 0.05,
        rounds: int = 3,
        probe_steps: int = 30,
        probe_lr: float = 1e-3,
        targets: str | None = None,
        scope: Scope = "global",
    ) -> None:
        if not 0 < fraction <= 1:
            raise InputError(f"fraction {fraction} must lie above 0 and at most 1, such as 0.05")
        if rounds < 1 or probe_steps < 1:
            raise InputError(f"rounds {rounds} and probe_steps {probe_steps} must be at least 1")
        if not 0 < probe_lr < float("inf"):
            raise InputError(f"probe_lr {probe_lr} must be a positive number, such as 0.001")
        if scope not in ("global", "matrix"):
            raise InputError(f"scope {scope!r} must be 'global' or 'matrix'")
        self.fraction = fraction
        self.rounds = rounds
        self.probe_steps = probe_steps
        self.probe_lr = probe_lr
        self.targets = targets
        self.scope: Scope = scope
        self._chosen: dict[str, Tensor] = {}
        self._layers: dict[str, SparseDeltaLinear] = {}
        self._backbone_size = 0

    def check(self, model: MusicModel) -> None:
        """Refuse targets that match nothing."""
        self._matched(model)

    def prepare(self, model: MusicModel, batches: Iterator[Batch]) -> None:
        """Choose the entries. Weights that already train in ``model`` train along, and go back."""
        linears = self._matched(model)
        companions = trained_parameters(model)
        before = {name: p.detach().clone() for name, p in companions.items()}
        probes = {name: ProbeLinear(linear) for name, linear in linears.items()}
        for name, probe in probes.items():
            model.backbone.set_submodule(name, probe)
        try:
            with console.progress("finding pivotal weights", self.rounds * self.probe_steps) as go:
                for share in narrowing(self.fraction, self.rounds):
                    deltas = {name: probe.delta for name, probe in probes.items()}
                    _reset(deltas.values())
                    _restore(companions, before)
                    self._probe(model, batches, [*deltas.values(), *companions.values()], go)
                    moved = {n: (p.delta * p.mask).abs() for n, p in probes.items()}
                    self._chosen = top_entries(moved, share, self.scope)
                    for name, probe in probes.items():
                        probe.mask.zero_().view(-1)[self._chosen[name]] = 1
        finally:
            for name, linear in linears.items():
                model.backbone.set_submodule(name, linear)
            _restore(companions, before)

    def attach(self, model: MusicModel) -> None:
        """Train the entries that ``prepare`` chose.

        Raises:
            InputError: no layer matched, or nothing was chosen.
        """
        linears = self._matched(model)
        if not self._chosen:
            raise InputError("pivotal has chosen no weights yet; call prepare before attach")
        self._wrap(model, linears, self._chosen)

    @contextlib.contextmanager
    def disabled(self, model: MusicModel) -> Iterator[None]:
        """The base itself inside."""
        for layer in self._layers.values():
            layer.enabled = False
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.enabled = True

    def save(self, model: MusicModel, folder: Path) -> None:
        """``pivotal.safetensors`` (indices and values of each layer) and ``pivotal.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for name, layer in self._layers.items():
            tensors[f"{name}.indices"] = layer.indices
            tensors[f"{name}.values"] = layer.values
        save_tensors(tensors, folder / "pivotal.safetensors")
        shapes = {name: list(layer.base.weight.shape) for name, layer in self._layers.items()}
        save_json({"options": self._options(), "shapes": shapes}, folder / "pivotal.json")

    @classmethod
    def load(cls, model: MusicModel, folder: Path) -> Self:
        """Attach what :meth:`save` wrote.

        Raises:
            InputError: a file is missing or corrupt, or made for another base.
        """
        config = load_json(folder / "pivotal.json")
        tensors = load_tensors(folder / "pivotal.safetensors")
        method = from_options(cls, config, folder)
        modules = dict(model.backbone.named_modules())
        linears, chosen = {}, {}
        for name, shape in config.get("shapes", {}).items():
            linear, indices = modules.get(name), tensors.get(f"{name}.indices")
            values = tensors.get(f"{name}.values")
            if not isinstance(linear, nn.Linear) or list(linear.weight.shape) != shape:
                raise InputError(
                    f"adapter {folder} was made for another base: it has no {name} of {shape}"
                )
            if not _valid(indices, values, linear.weight.numel()):
                raise InputError(f"adapter {folder} is damaged: {name} does not fit its layer")
            linears[name], chosen[name] = linear, indices
        if not linears:
            raise InputError(f"adapter {folder} is damaged: it changes no layer")
        method._wrap(model, linears, chosen)
        for name, layer in method._layers.items():
            with torch.no_grad():
                layer.values.copy_(tensors[f"{name}.values"])
        return method

    def merge(self, model: MusicModel, weight: float = 1.0) -> None:
        """Add ``weight`` times the values to the plain weights and detach."""
        for name, layer in self._layers.items():
            model.backbone.set_submodule(name, layer.merged(weight))
        self._layers = {}

    def detach(self, model: MusicModel) -> None:
        """Put the plain layers back."""
        for name, layer in self._layers.items():
            model.backbone.set_submodule(name, layer.base)
        self._layers = {}

    def describe(self) -> dict[str, int | float | str]:
        """Matched layers, trained entries and their share of the backbone."""
        trained = sum(layer.values.numel() for layer in self._layers.values())
        return {
            "method": self.name,
            "matched_layers": len(self._layers),
            "trained_parameters": trained,
            "share_of_backbone": trained / max(self._backbone_size, 1),
        }

    @classmethod
    def toy(cls) -> Self:
        """Small enough for a test."""
        return cls(fraction=0.1, rounds=2, probe_steps=3)

    def _matched(self, model: MusicModel) -> dict[str, nn.Linear]:
        found = matched_modules(model.backbone, self.targets or model.targets)
        return {name: module for name, module in found.items() if isinstance(module, nn.Linear)}

    def _wrap(
        self, model: MusicModel, linears: dict[str, nn.Linear], chosen: dict[str, Tensor]
    ) -> None:
        self._backbone_size = sum(p.numel() for p in model.backbone.parameters())
        model.requires_grad_(False)
        self._chosen = chosen
        self._layers = {
            name: SparseDeltaLinear(linear, chosen[name])
            for name, linear in linears.items()
            if len(chosen[name])
        }
        for name, layer in self._layers.items():
            model.backbone.set_submodule(name, layer)

    def _probe(
        self,
        model: MusicModel,
        batches: Iterator[Batch],
        parameters: list[nn.Parameter],
        advance: console.Advance,
    ) -> None:
        optimizer = torch.optim.AdamW(parameters, lr=self.probe_lr, weight_decay=0.0)
        frozen = [p for p in model.parameters() if all(p is not q for q in parameters)]
        flags = [p.requires_grad for p in frozen]
        for p in frozen:
            p.requires_grad_(False)
        try:
            for step in range(self.probe_steps):
                loss = model.nll(next(batches)).mean()
                if not torch.isfinite(loss):
                    raise CheckFailed(
                        f"the loss became {loss.item()} at probe step {step}; "
                        f"lower probe_lr (now {self.probe_lr}) or check the clips"
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                advance(text=f"loss {loss.item():.3f}")
        finally:
            for p, flag in zip(frozen, flags, strict=True):
                p.requires_grad_(flag)

    def _options(self) -> dict[str, Any]:
        return {
            "fraction": self.fraction,
            "rounds": self.rounds,
            "probe_steps": self.probe_steps,
            "probe_lr": self.probe_lr,
            "targets": self.targets,
            "scope": self.scope,
        }


@torch.no_grad()
def _reset(deltas: Iterable[Tensor]) -> None:
    for delta in deltas:
        delta.zero_()


@torch.no_grad()
def _restore(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
        parameter.grad = None


def _valid(indices: Tensor | None, values: Tensor | None, size: int) -> bool:
    if indices is None or values is None or indices.dtype != torch.int32:
        return False
    if indices.dim() != 1 or indices.shape != values.shape or not len(indices):
        return False
    return int(indices.min()) >= 0 and int(indices.max()) < size
