"""A linear layer with a trained change in a few of its weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SparseDeltaLinear(nn.Module):
    """``base`` with ``values`` added to the entries ``indices`` of its flattened weight.

    Args:
        base: the layer to change; it is kept, frozen and never written to.
        indices: ``(entries,)`` flat positions in ``base.weight``, without repeats.

    Attributes:
        values: ``(entries,)`` fp32, the only thing trained; zero at the start.
        enabled: when False the layer computes what ``base`` does.
    """

    indices: Tensor

    def __init__(self, base: nn.Linear, indices: Tensor) -> None:
        super().__init__()
        device = base.weight.device
        self.base = base
        self.register_buffer("indices", indices.to(device=device, dtype=torch.int32))
        self.values = nn.Parameter(torch.zeros(len(indices), device=device))
        self.enabled = True

    @property
    def weight(self) -> Tensor:
        """``(out, in)``, the changed weight."""
        weight = self.base.weight.detach()
        if not self.enabled:
            return weight
        changed = weight.flatten().index_add(0, self.indices, self.values.to(weight.dtype))
        return changed.view_as(weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        return F.linear(inputs, self.weight, self.base.bias)

    @torch.no_grad()
    def merged(self, weight: float) -> nn.Linear:
        """``base`` with ``weight`` times the values added for good."""
        flat = self.base.weight.view(-1)
        flat.index_add_(0, self.indices, (weight * self.values).to(flat.dtype))
        return self.base


class ProbeLinear(nn.Module):
    """``base`` with a dense change of the entries where ``mask`` is one, to see which ones move."""

    mask: Tensor

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("mask", torch.ones_like(base.weight, dtype=torch.float32))
        self.delta = nn.Parameter(torch.zeros_like(base.weight, dtype=torch.float32))

    def forward(self, inputs: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        weight = self.base.weight.detach()
        change = (self.delta * self.mask).to(weight.dtype)
        return F.linear(inputs, weight + change, self.base.bias)
