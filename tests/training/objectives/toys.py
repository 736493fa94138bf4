"""Small inputs for objectives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from musictune.training.objectives.base import Compared, Played


def numbers(values: Sequence[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def compared(
    chosen: Sequence[float],
    rejected: Sequence[float],
    *,
    references: tuple[Sequence[float], Sequence[float]] | None = None,
    tokens: tuple[Sequence[float], Sequence[float]] | None = None,
    mismatched: Sequence[float] = (0.0,),
) -> Compared:
    """Pairs in float64 with gradients to chosen and rejected; references 0, clips of 10 tokens."""
    zeros, tens = [0.0] * len(chosen), [10.0] * len(chosen)
    references, tokens = references or (zeros, zeros), tokens or (tens, tens)
    return Compared(
        numbers(chosen).requires_grad_(),
        numbers(rejected).requires_grad_(),
        *map(numbers, references),
        *map(numbers, tokens),
        numbers(mismatched),
    )


def played(
    tokens: Tensor,
    advantages: Sequence[float],
    *,
    sampled: Tensor | None = None,
    kl: Tensor | None = None,
    mask: Tensor | None = None,
    values: Tensor | None = None,
) -> Played:
    """Clips of ``tokens``; unless given, just sampled, at no divergence, and all of them music."""
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    return Played(
        tokens,
        tokens.detach() if sampled is None else sampled,
        torch.zeros_like(tokens) if kl is None else kl,
        mask,
        torch.tensor(list(advantages), dtype=tokens.dtype),
        values,
    )
