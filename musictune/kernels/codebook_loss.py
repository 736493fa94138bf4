"""Heads and cross-entropy of all codebooks in one, a block of positions and a head at a time.

The scores of MusicGen's heads are the largest tensors of a training step, and the loss makes
several copies of them. Here a tile of them at a time is formed, and turned at once into losses and,
where gradients are wanted, into the gradient of the decoder's states (after Hsu et al. 2024, Liger
Kernel, arXiv 2410.10989). Each clip has a loss of its own, and backward takes a weight per clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from musictune.kernels.runtime import use_triton

_TILE = {"cpu": 2**19, "cuda": 2**23}
"""Scores alive at a time: what one core's own cache holds, or what keeps a GPU busy."""


def codebook_loss(
    hidden: Tensor, heads: Sequence[Tensor] | Tensor, targets: Tensor, mask: Tensor
) -> Tensor:
    """Cross-entropy of every clip in nats per token, over the targets that ``mask`` picks.

    Gradients reach ``hidden`` and those of ``heads`` that need them. Products are in autocast's
    dtype where it is on, else in that of ``hidden``; softmax and sums are at least fp32.

    Args:
        hidden: ``(clips, steps, width)``, the decoder's last states.
        heads: a weight ``(vocabulary, width)`` per codebook, or all of them stacked.
        targets: ``(clips, codebooks, steps)`` int64; where ``mask`` is false any number will do.
        mask: ``(clips, codebooks, steps)`` bool, which targets count.

    Returns:
        ``(clips,)`` fp32 (float64 if ``hidden`` is); NaN for a clip without a target, and on CUDA
        for one with a target outside the vocabulary, which elsewhere raises an error of torch.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    weights = tuple(heads)
    _check(hidden, weights, targets, mask)
    kind, dtype = hidden.device.type, hidden.dtype
    if dtype != torch.float64 and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    learns = any(tensor.requires_grad for tensor in (hidden, *weights))
    if not (learns and torch.is_grad_enabled()):
        return _walk(hidden, weights, targets, mask, dtype)[0] / mask.sum((1, 2))
    loss: Tensor = _CodebookLoss.apply(hidden, targets, mask, dtype, *weights)
    return loss


class _CodebookLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, mask: Tensor, dtype: torch.dtype, *heads: Tensor
    ) -> Tensor:
        wanted = ctx.needs_input_grad
        counts = mask.sum((1, 2))
        # What the heads learn depends on each clip's weight, which only backward knows. Mostly all
        # are equal: then it is what is formed here. A GPU, which would have to stop for the
        # comparison, forms it in backward.
        share = None if hidden.is_cuda else 1 / counts
        loss, slope, early = _walk(
            hidden, heads, targets, mask, dtype, wanted[0], wanted[4:], share
        )
        ctx.dtype, ctx.early = dtype, early if share is not None else None
        again = (hidden, targets, mask, *heads) if any(wanted[4:]) else ()
        ctx.save_for_backward(slope, counts, *again)
        return loss / counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        slope, counts, *again = ctx.saved_tensors
        share, wanted = upstream / counts, ctx.needs_input_grad
        dhidden = None if slope is None else (slope * share[:, None, None]).to(slope.dtype)
        if not again:
            return dhidden, *[None] * (len(wanted) - 1)
        if ctx.early is not None and bool((upstream == upstream[0]).all()):
            dheads = [None if g is None else g.mul_(upstream[0]) for g in ctx.early]
            ctx.early = None  # changed in place: a second pass through the graph starts again
        else:
            hidden, targets, mask, *heads = again
            dheads = _walk(hidden, heads, targets, mask, ctx.dtype, False, wanted[4:], share)[2]
        return dhidden, None, None, None, *dheads


def _walk(
    hidden: Tensor,
    heads: Sequence[Tensor],
    targets: Tensor,
    mask: Tensor,
    dtype: torch.dtype,
    learns: bool = False,
    learned: Sequence[bool] = (),
    share: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
    """Each clip's sum of losses, and gradients, from one tile of scores after another.

    Args:
        hidden, heads, targets, mask: of :func:`codebook_loss`.
        dtype: of the products.
        learns: whether the gradient of each clip's sum for ``hidden`` is wanted.
        learned: for which heads the gradient is wanted.
        share: ``(clips,)`` the weight of each clip's sum in the gradients of the heads, which are
            not formed if it is None.

    Returns:
        Sums ``(clips,)``, the gradient for ``hidden``, and a gradient per head, or None.
    """
    clips, steps, width = hidden.shape
    fused = dtype != torch.float64 and use_triton(hidden, *heads)
    flat, wide = hidden.reshape(-1, width), torch.promote_types(dtype, torch.float32)
    losses = torch.zeros(len(flat), dtype=wide, device=hidden.device)
    slope = torch.zeros(flat.shape, dtype=wide, device=hidden.device) if learns else None
    dheads: list[Tensor | None] = [None] * len(heads)
    if share is not None and any(learned):
        # Relative to the largest, so that none of them vanishes in half precision.
        largest = share.abs().amax().clamp_min(torch.finfo(wide).tiny)
        factor = (share / largest).to(wide).repeat_interleave(steps)[:, None]
    else:
        learned = [False] * len(heads)
    with torch.autocast(hidden.device.type, enabled=False):
        for k, head in enumerate(heads):
            weight = head.to(dtype)
            dhead = torch.zeros(head.shape, dtype=wide, device=head.device) if learned[k] else None
            labels, valid = targets[:, k].flatten(), mask[:, k].flatten()
            for rows in _blocks(valid, len(head), fused):
                x = flat[rows].to(dtype)
                found, slopes = _tile(
                    x, weight, labels[rows], valid[rows], learns or learned[k], fused
                )
                losses[rows] += found
                if slope is not None:
                    slope[rows] += slopes @ weight
                if dhead is not None:
                    x = (x * factor[rows]).to(dtype)
                    _add_product(dhead, slopes.t(), x)
                del slopes  # before the next ones are made
            if dhead is not None:
                dheads[k] = dhead.mul_(largest).to(head.dtype)
    if slope is not None:
        slope = slope.to(hidden.dtype).view_as(hidden)
    return losses.view(clips, steps).sum(1), slope, dheads


def _tile(
    x: Tensor, weight: Tensor, labels: Tensor, valid: Tensor, learns: bool, fused: bool
) -> tuple[Tensor, Tensor]:
    """Losses ``(rows,)`` of states ``(rows, width)``; if it ``learns``, their scores' gradient too.

    Args:
        x, weight: states and a head, of one dtype.
        labels, valid: ``(rows,)``; in Triton, what is not valid has no loss and no gradient;
            elsewhere all must be valid.
        learns: whether the second result is the gradient; it is of no use otherwise.
        fused: in Triton.
    """
    scores = F.linear(x, weight)
    if fused:
        from musictune.kernels import codebook_loss_triton

        return codebook_loss_triton.tile(scores, labels, valid, learns)
    slopes = scores.log_softmax(1, dtype=torch.promote_types(x.dtype, torch.float32))
    del scores  # they are as large as all else here
    places = labels[:, None]
    losses = slopes.gather(1, places)[:, 0].neg_()
    if learns:
        slopes.exp_().scatter_add_(1, places, slopes.new_full((1, 1), -1).expand_as(places))
        slopes = slopes.to(x.dtype)
    return losses, slopes


def _blocks(valid: Tensor, vocabulary: int, fused: bool) -> Iterator[Tensor | slice]:
    """The rows that are ``valid``, a block at a time.

    Where Triton runs, all rows: to look for those that are valid would stall the GPU.
    """
    count = max(1, _TILE["cuda" if valid.is_cuda else "cpu"] // vocabulary)
    if not valid.is_cuda:  # more for more cores, but few of all the scores
        count = max(count, min(count * torch.get_num_threads(), len(valid) // 3))
    if fused:
        yield from (slice(start, start + count) for start in range(0, len(valid), count))
    else:
        yield from valid.nonzero()[:, 0].split(count)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _check(hidden: Tensor, heads: Sequence[Tensor], targets: Tensor, mask: Tensor) -> None:
    clips, steps, width = hidden.shape
    if targets.shape != (clips, len(heads), steps) or mask.shape != targets.shape:
        raise ValueError(
            f"targets {tuple(targets.shape)} and mask {tuple(mask.shape)} must both be (clips, "
            f"codebooks, steps), here {(clips, len(heads), steps)}"
        )
    shapes = {tuple(weight.shape) for weight in heads}
    if len(shapes) != 1 or next(iter(shapes))[1:] != (width,):
        raise ValueError(f"heads {sorted(shapes)} must all be (vocabulary, width {width})")
