# mypy: disable-error-code="no-untyped-def"
"""The Triton side of :mod:`musictune.kernels.codebook_loss`; imported only where it runs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def tile(scores: Tensor, labels: Tensor, valid: Tensor, learns: bool) -> tuple[Tensor, Tensor]:
    """Losses of a tile of scores, which its gradient overwrites if it ``learns``."""
    rows, vocabulary = scores.shape
    losses = torch.empty(rows, dtype=torch.float32, device=scores.device)
    block = triton.next_power_of_2(vocabulary)
    _tile[(rows,)](
        scores,
        labels,
        valid,
        losses,
        vocabulary,
        LEARNS=learns,
        BLOCK=block,
        num_warps=_warps(block),
    )
    return losses, scores


def _warps(block: int) -> int:
    # Eight scores or more per thread: a row then is one load of 16 bytes or two per thread.
    return max(1, min(16, block // 256))


@triton.jit
def _tile(
    scores,
    labels,
    valid,
    losses,
    vocabulary,
    LEARNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    token = tl.arange(0, BLOCK)
    there = token < vocabulary
    place = scores + row.to(tl.int64) * vocabulary + token
    counted = tl.load(valid + row).to(tl.int1)
    label = tl.load(labels + row)
    score = tl.load(place, mask=there, other=-float("inf")).to(tl.float32)
    top = tl.max(score, 0)
    power = tl.exp(score - top)
    total = tl.sum(power, 0)
    hit = token == label
    loss = top + tl.log(total) - tl.sum(tl.where(hit, score, 0.0), 0)
    # A label outside the vocabulary hits nothing: better no number than a wrong one.
    known = (label >= 0) & (label < vocabulary)
    loss = tl.where(known, loss, float("nan"))
    tl.store(losses + row, tl.where(counted, loss, 0.0))
    if LEARNS:
        slope = power / total - tl.where(hit, 1.0, 0.0)
        slope = tl.where(counted, slope, 0.0)
        tl.store(place, slope.to(scores.dtype.element_ty), mask=there)
