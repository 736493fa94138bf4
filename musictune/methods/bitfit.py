"""Every bias trained, and nothing else."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from musictune.errors import InputError
from musictune.methods.base import matched_modules
from musictune.methods.budget import target_pattern
from musictune.methods.inserted import Inserted, InsertedModule
from musictune.models.base import TunableModel

_CHANNELS_SECOND = (_ConvNd, _BatchNorm, nn.GroupNorm)
_KINDS = (nn.Linear, nn.LayerNorm, *_CHANNELS_SECOND)


class ShiftedLayer(InsertedModule):
    """``y + scale * shift`` of the output ``y`` of ``base``.

    Args:
        base: a linear layer, a convolution or a norm, with a bias.

    Attributes:
        shift: the shape of the bias; zero at the start.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.shift = nn.Parameter(torch.zeros_like(_bias(base), dtype=torch.float32))
        self._second = isinstance(base, _CHANNELS_SECOND)

    def forward(self, x: Tensor) -> Tensor:
        """What ``base`` takes to what it gives."""
        y: Tensor = self.base(x)
        if self.scale == 0:
            return y
        shift = (self.scale * self.shift).to(y.dtype)
        return y + (shift.view(-1, *[1] * (y.dim() - 2)) if self._second else shift)

    @torch.no_grad()
    def fold(self, weight: float) -> nn.Module:
        """``base`` with ``weight`` times the change in its bias for good."""
        _bias(self.base).add_(weight * self.shift)
        return self.base


class BitFit(Inserted):
    """BitFit (Ben Zaken et al. 2022, arXiv 2106.10199): the biases of a model are all that trains.

    Linear layers, convolutions and norms train the biases that they have: 103K of AST-base. A
    layer without a bias is left alone; of MusicGen's decoder only the norms have one.

    Args:
        targets: regular expression over names of layers, or short names as in ``Pivotal``; the
            whole backbone by default.
    """

    name: ClassVar[str] = "bitfit"
    # mini, koto, 60 steps of 5 s, nats on held-out clips: base 4.099; 3e-3 4.052, 1e-2 4.048, 3e-2
    # 4.042, where a prefix reached 4.054.
    learning_rate = 3e-2

    def __init__(self, targets: str | None = None) -> None:
        super().__init__()
        self.targets = targets

    def options(self) -> dict[str, Any]:
        """The arguments that build this method again."""
        return {"targets": self.targets}

    def check(self, model: TunableModel) -> None:
        """Refuse targets that match nothing, or no layer with a bias."""
        self._biased(model)

    def merge(self, model: TunableModel, weight: float = 1.0) -> None:
        """Add ``weight`` times the change to the biases and detach."""
        for name, module in self._attached().items():
            assert isinstance(module, ShiftedLayer)
            model.backbone.set_submodule(name, module.fold(weight))
        self._modules = {}

    def _insert(self, model: TunableModel) -> dict[str, InsertedModule]:
        modules: dict[str, InsertedModule] = {}
        for name, layer in self._biased(model).items():
            modules[name] = ShiftedLayer(layer)
            model.backbone.set_submodule(name, modules[name])
        return modules

    def _remove(self, model: TunableModel) -> None:
        for name, module in self._attached().items():
            model.backbone.set_submodule(name, module.get_submodule("base"))

    def _biased(self, model: TunableModel) -> dict[str, nn.Module]:
        pattern = target_pattern(self.targets) if self.targets else ".*"
        found = matched_modules(model.backbone, pattern, _KINDS)
        biased = {name: m for name, m in found.items() if m._parameters.get("bias") is not None}
        if not biased:
            raise InputError(
                f"targets {self.targets!r} matched no layer with a bias, only "
                f"{', '.join(list(found)[:3])}; widen targets, or choose another method, such as "
                "ssf"
            )
        return biased

    @classmethod
    def toy(cls) -> Self:
        """All the biases there are."""
        return cls()


def _bias(layer: nn.Module) -> nn.Parameter:
    bias = layer._parameters["bias"]
    assert bias is not None
    return bias
