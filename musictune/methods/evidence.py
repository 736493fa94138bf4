"""What the clips say about weights, before any is chosen: short trainings that leave no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musictune import console
from musictune.errors import CheckFailed
from musictune.methods.base import trained_parameters
from musictune.methods.budget import Budget, Scope
from musictune.methods.sparse import Chosen
from musictune.methods.units import Units, head_size, output_projection
from musictune.models.base import TunableModel


@dataclass(frozen=True)
class Looking:
    """How long and how fast to look.

    Attributes:
        rule: the rule that looks, for messages.
        rounds, steps: how many short trainings, of how many steps each. A rule that needs only one
            spends all of them on it, so that rules are compared at equal cost.
        rate: learning rate of the trainings.
        seed: of all that is drawn.
    """

    rule: str
    rounds: int
    steps: int
    rate: float
    seed: int


class Evidence:
    """Looks at ``linears`` of ``model`` through its loss on ``batches``.

    Weights that train in ``model`` already, such as a concept's new words, train along, so that
    the look is at what these layers add to them. After each look they and the model are as before.

    Args:
        model: the base, in evaluation mode.
        linears: the matched layers of its backbone, by name.
        batches: endless.
        units: of those layers.
        budget, scope: what will be chosen in the end.
        looking: how.
        advance: called once per step.
    """

    def __init__(
        self,
        model: TunableModel,
        linears: Mapping[str, nn.Linear],
        batches: Iterator[Any],
        units: Units,
        budget: Budget,
        scope: Scope,
        looking: Looking,
        advance: console.Advance,
    ) -> None:
        self.units = units
        self.budget = budget
        self.scope: Scope = scope
        self.looking = looking
        self.linears = dict(linears)
        self._model = model
        self._batches = batches
        self._advance = advance
        self._masks: dict[str, Tensor] = {}
        self._step = 0
        # A base fresh from its files has every weight marked as trained: nothing is attached.
        fresh = any(linear.weight.requires_grad for linear in linears.values())
        self._companions = {} if fresh else trained_parameters(model)
        self._device = next(iter(linears.values())).weight.device

    @property
    def weights(self) -> dict[str, Tensor]:
        """The matched weights as they are, ``(out, in)`` each."""
        return {name: linear.weight.detach() for name, linear in self.linears.items()}

    def changes(self, steps: int) -> dict[str, Tensor]:
        """How far each weight moves, ``(out, in)``, when all that are still kept train."""
        probes = {n: ProbeLinear(m, self._masks.get(n)) for n, m in self.linears.items()}
        return self._trained(probes, steps)

    def gates(self, steps: int, dropout: float) -> dict[str, Tensor]:
        """How far a factor on each weight moves from 1, ``(out, in)``.

        Args:
            steps: of training.
            dropout: share of each gradient that is left out at random.
        """
        generator = torch.Generator(self._device).manual_seed(self.looking.seed)

        def thinned(gradient: Tensor) -> Tensor:
            drawn = torch.rand(gradient.shape, generator=generator, device=gradient.device)
            return gradient * (drawn >= dropout)

        probes = {}
        for name, linear in self.linears.items():
            probes[name] = ProbeLinear(linear, None, relative=True)
            probes[name].delta.register_hook(thinned)
        return self._trained(probes, steps)

    def gradients(self, steps: int, fold: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
        """The sum over batches of ``fold(gradient, weight)``, ``(out, in)``.

        The weights stay as they are. Per layer there is one accumulator, and a gradient only from
        when backward makes it until it is folded.
        """
        total = {n: torch.zeros_like(w, dtype=torch.float32) for n, w in self.weights.items()}
        parameters = {name: linear.weight for name, linear in self.linears.items()}
        with self._only(parameters.values()), contextlib.ExitStack() as hooks:
            for name, parameter in parameters.items():

                def add(weight: Tensor, name: str = name) -> None:
                    assert weight.grad is not None
                    total[name] += fold(weight.grad.float(), weight.detach().float())
                    weight.grad = None

                handle = parameter.register_post_accumulate_grad_hook(add)
                hooks.callback(handle.remove)
            self._learn([], steps)
        return self.finite(total)

    def gains(self, steps: int) -> dict[str, Tensor]:
        """How far the outputs of each head are scaled when only that may be learned.

        Returns:
            The norm of each head's scaling, spread over the head's rows of q, k, v and its columns
            of the output projection: ``(out, in)`` for each matched layer.
        """
        backbone, found = self._model.backbone, {}
        for name in self.linears:
            output = output_projection(backbone, name)
            projection = backbone.get_submodule(output)
            assert isinstance(projection, nn.Linear)
            found[output] = GainLinear(projection)
        with self._in_place(found):
            gains = {name: gain.gain for name, gain in found.items()}
            with self._only(gains.values()):
                self._learn(list(gains.values()), steps)
        result = {}
        for name, linear in self.linears.items():
            output, size = output_projection(backbone, name), head_size(backbone, name)
            assert size is not None
            norms = gains[output].detach().view(-1, size).norm(dim=1)
            spread = norms.repeat_interleave(size)
            shape = linear.weight.shape
            across = spread if name == output else spread[:, None]
            result[name] = across.expand(shape)
        return self.finite(result)

    def chance(self) -> dict[str, Tensor]:
        """One uniform number per unit, ``(out, in)`` for each layer."""
        generator = torch.Generator().manual_seed(self.looking.seed)
        drawn = self.units.uniform(generator)
        return {name: score.to(self._device) for name, score in drawn.items()}

    def keep(self, scores: Mapping[str, Tensor], fraction: float) -> None:
        """From now on only the best ``fraction`` of the weights may change."""
        chosen = self.units.choose(scores, Budget(fraction=fraction), self.scope)
        self._masks = {
            name: _mask(chosen.get(name), linear.weight) for name, linear in self.linears.items()
        }

    def finite(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """``scores``, if they are numbers.

        Raises:
            CheckFailed: one is not.
        """
        for name, score in scores.items():
            if not torch.isfinite(score).all():
                raise CheckFailed(
                    f"selection {self.looking.rule}: the scores of {name} are no numbers; lower "
                    f"probe_lr (now {self.looking.rate:g}) or check the clips"
                )
        return scores

    def _trained(self, probes: Mapping[str, ProbeLinear], steps: int) -> dict[str, Tensor]:
        with self._in_place(probes):
            deltas = [probe.delta for probe in probes.values()]
            with self._only(deltas):
                self._learn(deltas, steps)
        return self.finite({name: probe.delta.detach().abs() for name, probe in probes.items()})

    @contextlib.contextmanager
    def _in_place(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        backbone = self._model.backbone
        before = {name: backbone.get_submodule(name) for name in modules}
        try:
            for name, module in modules.items():
                backbone.set_submodule(name, module)
            yield
        finally:
            for name, module in before.items():
                backbone.set_submodule(name, module)

    @contextlib.contextmanager
    def _only(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Inside, only these and the companions need gradients; afterwards all is as before."""
        wanted = {id(p) for p in [*parameters, *self._companions.values()]}
        flags = [(p, p.requires_grad) for p in self._model.parameters()]
        before = {name: p.detach().clone() for name, p in self._companions.items()}
        try:
            for p, _ in flags:
                p.requires_grad_(id(p) in wanted)
            yield
        finally:
            for p, flag in flags:
                p.requires_grad_(flag)
            with torch.no_grad():
                for name, p in self._companions.items():
                    p.copy_(before[name])
                    p.grad = None

    def _learn(self, parameters: Iterable[nn.Parameter], steps: int) -> None:
        trained = [*parameters, *self._companions.values()]
        looking = self.looking
        optimizer = torch.optim.AdamW(trained, lr=looking.rate, weight_decay=0) if trained else None
        for _ in range(steps):
            loss = self._model.nll(next(self._batches)).mean()
            if not torch.isfinite(loss):
                raise CheckFailed(
                    f"selection {looking.rule}: the loss became {loss.item()} at probe step "
                    f"{self._step}; lower probe_lr (now {looking.rate:g}) or check the clips"
                )
            if optimizer:
                optimizer.zero_grad()
            loss.backward()
            if optimizer:
                optimizer.step()
            self._step += 1
            self._advance(1, f"loss {loss.item():.3f}")


class ProbeLinear(nn.Module):
    """``base`` with a trained change of every weight, or of those where ``mask`` is true.

    Args:
        base: kept as it is.
        mask: ``(out, in)`` bool; all if None.
        relative: the change counts in multiples of each weight.

    Attributes:
        delta: ``(out, in)`` fp32, zero at the start.
    """

    def __init__(self, base: nn.Linear, mask: Tensor | None, relative: bool = False) -> None:
        super().__init__()
        self.base = base
        self.relative = relative
        self.delta = nn.Parameter(torch.zeros_like(base.weight, dtype=torch.float32))
        if mask is not None:
            # An entry that never has a gradient stays at zero under AdamW without decay.
            self.delta.register_hook(lambda gradient: gradient * mask)

    def forward(self, inputs: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        weight = self.base.weight.detach()
        change = self.delta * weight if self.relative else self.delta
        return F.linear(inputs, (weight + change).to(weight.dtype), self.base.bias)


class GainLinear(nn.Module):
    """``base`` behind a trained scale of each of its inputs.

    Attributes:
        gain: ``(in,)`` fp32, what the scale differs from 1 by.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.gain = nn.Parameter(torch.zeros(base.in_features, device=base.weight.device))

    def forward(self, inputs: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        return self.base(inputs * (1 + self.gain).to(inputs.dtype))


def _mask(chosen: Chosen | None, weight: Tensor) -> Tensor:
    mask = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    if chosen is not None:
        mask.view(-1)[chosen.flat(weight.shape)] = True
    return mask
