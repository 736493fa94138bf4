"""What happens to chosen weights while they train: some rest in turn, or places are exchanged.

All of it follows from the seed, the step, the saved weights and the optimiser's state, so that a
resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from musictune.methods.sparse import SelectedLinear

Layers = Mapping[str, SelectedLinear]


@dataclass(frozen=True)
class Schedule:
    """The plain one: every chosen weight trains at each step.

    Attributes:
        seed: of all that is drawn.
        interval: steps from one redraw or exchange to the next.
        active: share of the decoder's layers that train at a step.
        exchange: share of the weights that the first exchange moves.
    """

    seed: int = 0
    interval: int = 20
    active: float = 0.5
    exchange: float = 0.2

    def before(
        self, layers: Layers, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        """Called before the first forward pass of ``step``, counted from 0, of ``steps``."""

    def after(
        self, layers: Layers, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        """Called after the optimiser moved."""


class Half(Schedule):
    """A random half of the matrices of each decoder layer trains, redrawn every ``interval`` steps.

    Half fine-tuning (HFT, Hui et al. 2024, arXiv 2404.18466) trains half of all parameters per
    round of training and leaves the rest as they are. Ours halves the chosen weights. Where a layer
    has one matrix only, half of all matrices are drawn.
    """

    def before(
        self, layers: Layers, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        """Draw."""
        rng = np.random.default_rng((self.seed, step // self.interval))
        depths = list(by_depth(layers).values())
        if max(map(len, depths)) == 1:
            depths = [sorted(layers)]
        for names in depths:
            drawn = rng.permutation(len(names))[: math.ceil(len(names) / 2)]
            for place, name in enumerate(names):
                layers[name].active = bool((drawn == place).any())


class TopLayers(Schedule):
    """Only the decoder layers that matter most at a step train, and a few others by chance.

    Importance-aware sparse tuning (IST, Yao et al. 2024, arXiv 2410.11772) scores layers online and
    updates the most important subset at each step. Our score is the root of the mean second moment
    of a layer's gradients, which AdamW keeps; on average a quarter of the places go to layers drawn
    from the rest, and layers never seen come first.
    """

    def before(
        self, layers: Layers, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        """Rank and draw."""
        rng = np.random.default_rng((self.seed, step))
        depths = by_depth(layers)
        drawn = [list(depths)[i] for i in rng.permutation(len(depths))]
        scores = {d: _second_moment([layers[n] for n in depths[d]], optimizer) for d in drawn}
        ranked = sorted(drawn, key=lambda depth: -scores[depth])
        count = max(1, round(self.active * len(ranked)))
        explored = int(count / 4 + rng.random())
        live = set(ranked[: count - explored])
        live |= set([depth for depth in drawn if depth not in live][:explored])
        for depth, names in depths.items():
            for name in names:
                layers[name].active = depth in live


class Grow(Schedule):
    """The smallest changes are dropped and places of the largest gradients grown instead.

    After SpIEL (Ansell et al. 2024, arXiv 2401.16405), which alternates updating, pruning and
    regrowing. Ours stays within each matrix, judges by the gradient of one backward pass, exchanges
    fewer weights each time and none in the last quarter, where what was grown last still learns.
    """

    def before(
        self, layers: Layers, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        """Let the coming backward pass look for places."""
        if self._due(step, steps):
            for layer in layers.values():
                if count := self._count(layer, step, steps):
                    layer.watch(count)

    def after(
        self, layers: Layers, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        """Exchange places."""
        if not self._due(step, steps):
            return
        for layer in layers.values():
            if layer.candidates is not None and len(layer.candidates[0]):
                _exchange(layer, layer.candidates[0], optimizer)
            layer.candidates = None

    def _due(self, step: int, steps: int) -> bool:
        return (step + 1) % self.interval == 0 and step + 1 <= 0.75 * steps

    def _count(self, layer: SelectedLinear, step: int, steps: int) -> int:
        share = self.exchange * (1 - step / steps)
        return min(round(share * len(layer.values)), layer.base.weight.numel() - len(layer.values))


SCHEDULES: dict[str, type[Schedule]] = {"half": Half, "layers": TopLayers, "grow": Grow}
"""What rules do while the weights train, by the rule's name; others do nothing."""


def by_depth(names: Mapping[str, object]) -> dict[str, list[str]]:
    """Layer names by the decoder layer they are in: the first number in the name, or nothing.

    Sorted, since a loaded adapter may hold its layers in another order than the model.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        number = re.search(r"\.(\d+)\.", name)
        found.setdefault(number[1] if number else "", []).append(name)
    return found


def _second_moment(layers: list[SelectedLinear], optimizer: torch.optim.Optimizer) -> float:
    total, count = 0.0, 0
    beta = optimizer.param_groups[0].get("betas", (0.9, 0.999))[1]
    for layer in layers:
        state = optimizer.state.get(layer.values, {})
        if "exp_avg_sq" not in state:
            return math.inf
        seen = 1 - beta ** float(state["step"])
        total += float(state["exp_avg_sq"].double().sum()) / seen
        count += layer.values.numel()
    return math.sqrt(total / count)


@torch.no_grad()
def _exchange(layer: SelectedLinear, grown: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Train ``grown`` in place of as many of the smallest changes, from zero and without past."""
    indices, values = layer.chosen.indices, layer.values.detach()
    order = torch.sort(values.abs(), descending=True, stable=True).indices
    kept = order[: len(values) - len(grown)]
    places = torch.cat([indices[kept], grown])
    sorting = places.argsort()

    def moved(old: Tensor) -> Tensor:
        return torch.cat([old[kept], old.new_zeros(len(grown))])[sorting]

    for moment in optimizer.state.get(layer.values, {}).values():
        if isinstance(moment, Tensor) and moment.shape == values.shape:
            moment.copy_(moved(moment))
    layer.replace(places[sorting], moved(values))
