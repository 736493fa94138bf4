"""The kernel audio distance as kadtk 1.1.0 gives it, for comparison with papers that used it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from musictune.errors import InputError

Array = np.ndarray

_BLOCK = 2_048


def kad_like_kadtk(made_points: Tensor | Array, reference_points: Tensor | Array) -> float:
    """kadtk's number, with what it does differently from `kernel_distance`.

    The bandwidth is the median distance of the *made* rows; all pairs of different rows count,
    also those of one clip; rows are not centred, and all is float32; 1e-8 is added to twice the
    squared bandwidth. As in kadtk the distances of all pairs of made rows are held in memory for
    the median.

    Args:
        made_points, reference_points: ``(rows, width)``.

    Raises:
        InputError: fewer than two rows, other widths, or values that are not finite.
    """
    made, reference = (
        torch.from_numpy(np.array(points, dtype=np.float32))
        for points in (made_points, reference_points)
    )
    for points, what in ((made, "made"), (reference, "reference")):
        if points.ndim != 2 or len(points) < 2:
            raise InputError(
                f"{what} embeddings of shape {tuple(points.shape)} are not allowed; give two rows "
                f"or more"
            )
        if not torch.isfinite(points).all():
            raise InputError(f"{what} embeddings are not finite; make them anew")
    if made.shape[1] != reference.shape[1]:
        raise InputError(
            f"embeddings of {made.shape[1]} and {reference.shape[1]} dimensions cannot be "
            f"compared; use one embedder for both"
        )
    bandwidth = torch.pdist(made).median().item()
    gamma = 1 / (2 * bandwidth**2 + 1e-8)
    x, y = len(reference), len(made)
    within = _total(reference, reference, gamma, other_rows=True) / (x * (x - 1))
    within += _total(made, made, gamma, other_rows=True) / (y * (y - 1))
    return 100 * (within - 2 * _total(reference, made, gamma) / (x * y))


def _total(one: Tensor, other: Tensor, gamma: float, other_rows: bool = False) -> float:
    """Sum of the kernel over all pairs of rows, or all but each with itself."""
    one_norms, other_norms = (points.square().sum(1) for points in (one, other))
    total = 0.0
    for start in range(0, len(one), _BLOCK):
        rows = slice(start, start + _BLOCK)
        squared = one_norms[rows, None] + other_norms[None] - 2 * (one[rows] @ other.T)
        kernel = torch.exp(-gamma * squared)
        if other_rows:
            kernel.diagonal(start).zero_()
        total += float(kernel.sum(dtype=torch.float64))
    return total
