"""Which entries of which matrices to train: the largest by some score, or a random control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Scope = Literal["global", "matrix"]


def top_entries(
    scores: Mapping[str, Tensor], fraction: float, scope: Scope = "global"
) -> dict[str, Tensor]:
    """The highest-scored ``fraction`` of all entries.

    Args:
        scores: non-negative scores, one tensor per matrix, of any shape.
        fraction: share to keep, in (0, 1]; at least one entry is kept (per matrix, if ``scope``
            is ``"matrix"``).
        scope: rank all matrices together, or each on its own.

    Returns:
        sorted flat int64 indices per matrix. Ties go to the earlier entry, so the result is a
        function of the scores alone.
    """
    flat = {name: score.detach().flatten().float() for name, score in scores.items()}
    if scope == "matrix":
        return {name: _largest(score, fraction) for name, score in flat.items()}
    kept = _largest(torch.cat(list(flat.values())), fraction)
    return _per_matrix(kept, {name: score.numel() for name, score in flat.items()})


def random_entries(sizes: Mapping[str, int], fraction: float, seed: int) -> dict[str, Tensor]:
    """A uniformly random ``fraction`` of all entries: the control that a selection must beat."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes.values())
    order = torch.randperm(total, generator=generator)
    return _per_matrix(order[: _count(total, fraction)].sort().values, sizes)


def narrowing(fraction: float, rounds: int) -> list[float]:
    """Shares to keep round by round, geometric from 1 down to ``fraction``.

    With three rounds and 0.05: 0.37, 0.14, 0.05.
    """
    return [fraction ** ((turn + 1) / rounds) for turn in range(rounds)]


def _largest(score: Tensor, fraction: float) -> Tensor:
    order = torch.sort(score, descending=True, stable=True).indices
    return order[: _count(score.numel(), fraction)].sort().values


def _count(total: int, fraction: float) -> int:
    return max(1, round(total * fraction))


def _per_matrix(kept: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    result, start = {}, 0
    for name, size in sizes.items():
        inside = (kept >= start) & (kept < start + size)
        result[name] = kept[inside] - start
        start += size
    return result
