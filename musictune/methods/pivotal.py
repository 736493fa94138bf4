"""Pivotal parameters: find the few weights that a sound needs, train only those.

A reconstruction of the idea published as JEN-1 DreamStyler (arXiv 2406.12292), and other rules to
choose by, which it can be compared with. The paper's own share, schedule and learning rates are
not public: every number here is ours and an option.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

import torch
from torch import nn

from musictune import console
from musictune.errors import InputError
from musictune.methods.base import TuningMethod, matched_modules
from musictune.methods.budget import Budget, Scope, target_pattern
from musictune.methods.evidence import Evidence, Looking
from musictune.methods.online import SCHEDULES, Schedule, by_depth
from musictune.methods.selection import RULES, known_rule, looks
from musictune.methods.sparse import Chosen, SelectedLinear
from musictune.methods.sparse_change import read_changes
from musictune.methods.storage import (
    from_options,
    load_json,
    save_json,
    save_tensors,
)
from musictune.methods.units import Granularity, Units, known_granularity, refuse_whole
from musictune.models.base import TunableModel


class Pivotal(TuningMethod):
    """Trains the weights that a rule chooses, in place, within a budget.

    By default ``prepare`` trains a change of the whole attention projections for a few steps, keeps
    the entries that moved most, starts again from zero with only those, and so narrows down over
    ``rounds`` to the budget. ``attach`` starts from the base once more and trains the survivors.

    Args:
        fraction: share of the matched weights to train, in (0, 1]; 0.05 where no budget is given.
        count: number of weights to train, instead of ``fraction``.
        kilobytes: size of what is saved, values and indices, instead of ``fraction``: thousands of
            bytes, 8 per single weight, about 4 per weight of a row or column.
        selection: what chooses: ``delta``, ``lottery``, ``sensitivity``, ``gradient``, ``mask``,
            ``heads``, ``magnitude``, ``random``, ``half``, ``layers`` or ``grow``.
        granularity: ``element``, ``row``, ``column``, ``head`` or ``channel``; ``heads`` always
            chooses whole heads.
        scope: rank over all matrices together (``global``) or in each (``matrix``).
        targets: what may be chosen: ``value``, ``query``, ``key``, ``output``, ``self_attention``,
            ``cross_attention``, ``feed_forward``, ``all``, several with commas between, or a
            regular expression over layer names; the model's own choice by default.
        rounds: short trainings of ``delta``; other rules that look at clips see as many batches.
        probe_steps: training steps per round.
        probe_lr: learning rate while looking.
        dropout: share of the change left out at random in each training step.
        seed: of all that a rule draws.
        interval: with ``half`` and ``grow``, training steps between redraws and exchanges.
        active: with ``layers``, share of the layers that train at a step.
        exchange: with ``grow``, share of the weights that the first exchange moves.

    Attributes:
        chosen: which weights of which layers, after ``prepare``.
        layers: the layers with their trained values, after ``attach``.

    Raises:
        InputError: an option is out of range.
    """

    name: ClassVar[str] = "pivotal"
    learning_rate = 1e-3
    encoder_learning_rate = 1e-3  # ours: as on music models

    def __init__(
        self,
        fraction: float | None = None,
        rounds: int = 3,
        probe_steps: int = 30,
        probe_lr: float = 1e-3,
        targets: str | None = None,
        scope: Scope = "global",
        count: int | None = None,
        kilobytes: float | None = None,
        selection: str = "delta",
        granularity: Granularity = "element",
        dropout: float = 0.0,
        seed: int = 0,
        interval: int = 20,
        active: float = 0.5,
        exchange: float = 0.2,
    ) -> None:
        if fraction is None and count is None and kilobytes is None:
            fraction = 0.05
        self.budget = Budget(fraction, count, kilobytes)
        self.fraction, self.count, self.kilobytes = fraction, count, kilobytes
        if rounds < 1 or probe_steps < 1 or interval < 1:
            raise InputError(
                f"rounds {rounds}, probe_steps {probe_steps} and interval {interval} must be at "
                "least 1"
            )
        if not 0 < probe_lr < float("inf"):
            raise InputError(f"probe_lr {probe_lr} must be a positive number, such as 0.001")
        if scope not in get_args(Scope):
            raise InputError(f"scope {scope!r} must be 'global' or 'matrix'")
        for option, value in (("active", active), ("exchange", exchange)):
            if not 0 < value <= 1:
                raise InputError(f"{option} {value} must lie above 0 and at most 1, such as 0.5")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout {dropout} must be at least 0 and below 1")
        if not 0 <= seed < 2**62:
            raise InputError(f"seed {seed} must be 0 or a positive number below 2^62")
        self.selection = known_rule(selection)
        self.granularity: Granularity = _granularity(selection, known_granularity(granularity))
        self.scope: Scope = scope
        self.targets = targets
        self.rounds, self.probe_steps, self.probe_lr = rounds, probe_steps, probe_lr
        self.dropout, self.seed = dropout, seed
        self.interval, self.active, self.exchange = interval, active, exchange
        self.chosen: dict[str, Chosen] = {}
        self.layers: dict[str, SelectedLinear] = {}
        # They rest weights by giving them no gradient, or read gradients to exchange them.
        self.needs_gradients = selection in SCHEDULES
        self._schedule = SCHEDULES.get(selection, Schedule)(seed, interval, active, exchange)
        self._backbone_size = 0
        self._seconds: float | None = None

    def check(self, model: TunableModel) -> None:
        """Refuse targets that match nothing, and a budget or granularity that does not fit them."""
        self._units(model)

    def prepare(self, model: TunableModel, batches: Iterator[Any]) -> None:
        """Choose the weights. Those that already train in ``model`` train along, and go back.

        The choice follows from ``seed`` and the batches alone.

        Raises:
            InputError: as :meth:`check`, or all of a matrix was chosen.
            CheckFailed: a loss or score was no number.
        """
        began = time.monotonic()
        linears, units = self._units(model)
        looking = Looking(self.selection, self.rounds, self.probe_steps, self.probe_lr, self.seed)
        training = model.training
        model.train(False)  # dropout would make the choice depend on more than the batches
        try:
            with self._progress() as advance:
                evidence = Evidence(
                    model, linears, batches, units, self.budget, self.scope, looking, advance
                )
                scores = evidence.finite(RULES[self.selection](evidence))
        finally:
            model.train(training)
        chosen = units.choose(scores, self.budget, self.scope)
        refuse_whole(chosen, units.shapes)
        self.chosen = chosen
        self._seconds = time.monotonic() - began

    def attach(self, model: TunableModel) -> None:
        """Train the weights that ``prepare`` chose.

        Raises:
            InputError: no layer matched, or nothing was chosen.
        """
        linears = self._matched(model)
        if not self.chosen:
            raise InputError("pivotal has chosen no weights yet; call prepare before attach")
        self._wrap(model, {name: linears[name] for name in self.chosen})

    def before_step(
        self, model: TunableModel, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        """Let the rule say what trains at this step, and dropout draw anew, resting layers too."""
        for layer in self.layers.values():
            layer.redraw()
        self._schedule.before(self.layers, optimizer, step, steps)

    def after_step(
        self, model: TunableModel, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        """Let the rule exchange what trains."""
        self._schedule.after(self.layers, optimizer, step, steps)
        self.chosen = {name: layer.chosen for name, layer in self.layers.items()}

    @contextlib.contextmanager
    def disabled(self, model: TunableModel) -> Iterator[None]:
        """The base itself inside."""
        for layer in self.layers.values():
            layer.enabled = False
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enabled = True

    def save(self, model: TunableModel, folder: Path) -> None:
        """``pivotal.safetensors`` (indices and values of each layer) and ``pivotal.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors, layers = {}, {}
        for name, layer in self.layers.items():
            tensors[f"{name}.indices"] = layer.chosen.indices.to(torch.int32)
            tensors[f"{name}.values"] = layer.values
            shape = list(layer.base.weight.shape)
            layers[name] = {"shape": shape, "kind": layer.chosen.kind}
        save_tensors(tensors, folder / "pivotal.safetensors")
        save_json({"options": self._options(), "layers": layers}, folder / "pivotal.json")

    @classmethod
    def load(cls, model: TunableModel, folder: Path) -> Self:
        """Attach what :meth:`save` wrote.

        Raises:
            InputError: a file is missing or corrupt, or made for another base.
        """
        config = load_json(folder / "pivotal.json")
        method = from_options(cls, config, folder)
        changes = read_changes(folder, config)
        modules = dict(model.backbone.named_modules())
        linears = {}
        for name, change in changes.items():
            linear = modules.get(name)
            if not isinstance(linear, nn.Linear) or tuple(linear.weight.shape) != change.shape:
                raise InputError(
                    f"adapter {folder} was made for another base: "
                    f"it has no {name} of {list(change.shape)}"
                )
            method.chosen[name], linears[name] = change.chosen, linear
        method._wrap(model, linears)
        for name, layer in method.layers.items():
            with torch.no_grad():
                layer.values.copy_(changes[name].values)
        return method

    def merge(self, model: TunableModel, weight: float = 1.0) -> None:
        """Add ``weight`` times the values to the plain weights and detach."""
        for name, layer in self.layers.items():
            model.backbone.set_submodule(name, layer.merged(weight))
        self.layers = {}

    def detach(self, model: TunableModel) -> None:
        """Put the plain layers back, with the bits they came with."""
        for name, layer in self.layers.items():
            model.backbone.set_submodule(name, layer.restored())
        self.layers = {}

    def describe(self) -> dict[str, int | float | str]:
        """Matched layers, trained weights and their share of the backbone, how and where chosen."""
        counts = {name: layer.values.numel() for name, layer in self.layers.items()}
        depths = by_depth(counts)
        facts: dict[str, int | float | str] = {
            "method": self.name,
            "matched_layers": len(counts),
            "trained_parameters": sum(counts.values()),
            "share_of_backbone": sum(counts.values()) / max(self._backbone_size, 1),
            "selection": self.selection,
            "granularity": self.granularity,
            "trained_by_depth": ", ".join(
                f"{depth or 'other'}: {sum(counts[n] for n in names)}"
                for depth, names in sorted(depths.items(), key=lambda d: (len(d[0]), d[0]))
            ),
        }
        if self._seconds is not None:
            facts["selection_seconds"] = round(self._seconds, 1)
        return facts

    @classmethod
    def toy(cls) -> Self:
        """Small enough for a test."""
        return cls(fraction=0.1, rounds=2, probe_steps=3)

    def _matched(self, model: TunableModel) -> dict[str, nn.Linear]:
        pattern = target_pattern(self.targets) if self.targets else model.targets
        found = matched_modules(model.backbone, pattern)
        return {name: module for name, module in found.items() if isinstance(module, nn.Linear)}

    def _units(self, model: TunableModel) -> tuple[dict[str, nn.Linear], Units]:
        linears = self._matched(model)
        units = Units.of(model.backbone, linears, self.granularity)
        units.check(self.budget, self.scope)
        return linears, units

    def _progress(self) -> contextlib.AbstractContextManager[console.Advance]:
        if not looks(self.selection):
            return contextlib.nullcontext(lambda steps=1, text="": None)
        return console.progress("finding pivotal weights", self.rounds * self.probe_steps)

    def _wrap(self, model: TunableModel, linears: Mapping[str, nn.Linear]) -> None:
        self._backbone_size = sum(p.numel() for p in model.backbone.parameters())
        model.requires_grad_(False)
        self.layers = {
            name: SelectedLinear(linear, self.chosen[name], self.dropout)
            for name, linear in linears.items()
        }
        for name, layer in self.layers.items():
            model.backbone.set_submodule(name, layer)

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in inspect.signature(Pivotal).parameters}


def _granularity(selection: str, granularity: Granularity) -> Granularity:
    if selection == "heads":
        if granularity not in ("element", "head"):
            raise InputError(
                f"selection heads chooses whole heads, so granularity {granularity} cannot be; "
                "leave it out"
            )
        return "head"
    if selection == "grow" and granularity != "element":
        raise InputError(
            f"selection grow exchanges single weights, so granularity {granularity} cannot be; "
            "leave it out, or choose another selection"
        )
    return granularity
