"""The fused loss beside the plain one: all heads' scores at once, then cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.bench.kernel_timing import fastest
from musictune.bench.memory import LiveBytes
from musictune.bench.rows import Row, against, judged
from musictune.kernels.codebook_loss import codebook_loss

Loss = Callable[[Tensor, Sequence[Tensor], Tensor, Tensor], Tensor]

PEER = "logits and cross-entropy"
SHARE = 0.35
"""Of the plain loss's peak memory, at most."""

_CODEBOOKS = 4
_ROUNDS = {"cpu": 3, "cuda": 10}
_MIB = 2**20


@dataclass(frozen=True)
class Case:
    """A training batch: what comes out of a decoder, and whether its heads learn too."""

    name: str
    clips: int
    frames: int
    width: int
    vocabulary: int = 2048


CASES = {
    "cpu": (
        Case("mini, 4 clips, 5 s", 4, 250, 384),
        Case("small, 2 clips, 10 s", 2, 500, 1024),
    ),
    "cuda": (
        Case("small, 8 clips, 10 s", 8, 500, 1024),
        Case("small, 8 clips, 30 s", 8, 1500, 1024),
        Case("large, 8 clips, 30 s", 8, 1500, 2048),
    ),
}


def measure(device: torch.device, cases: Sequence[Case] | None = None) -> list[Row]:
    """Peak memory and time, forward and backward, with heads that are frozen and that learn.

    Memory is that of the tensors that live at once beside what is given; gradients count, the
    heads' own as well. On CUDA it is the allocator's figure.

    Args:
        device: where.
        cases: the usual ones of the device if None.

    Returns:
        Two rows per case, dtype and kind of heads.
    """
    rows = []
    for case in CASES[device.type] if cases is None else cases:
        for dtype in (torch.float32, torch.bfloat16):
            for learned in (False, True):
                rows += _rows(case, dtype, learned, device)
    return rows


def plain_loss(hidden: Tensor, heads: Sequence[Tensor], targets: Tensor, mask: Tensor) -> Tensor:
    """What :func:`codebook_loss` computes, as transformers and a plain loss do it."""
    logits = torch.stack([F.linear(hidden, weight) for weight in heads], 1).flatten(0, 1)
    each = F.cross_entropy(
        logits.float().transpose(1, 2),
        targets.masked_fill(~mask, 0).flatten(0, 1),
        reduction="none",
    ).view_as(targets)
    return torch.where(mask, each, 0.0).sum((1, 2)) / mask.sum((1, 2))


def _rows(case: Case, dtype: torch.dtype, learned: bool, device: torch.device) -> list[Row]:
    steps = case.frames + _CODEBOOKS - 1
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, dtype)

    hidden = random(case.clips, steps, case.width).requires_grad_()
    heads = [
        (random(case.vocabulary, case.width) * case.width**-0.5).requires_grad_(learned)
        for _ in range(_CODEBOOKS)
    ]
    frame = torch.arange(steps) - torch.arange(_CODEBOOKS)[:, None]
    mask = ((frame >= 0) & (frame < case.frames)).expand(case.clips, -1, -1).to(device)
    targets = torch.randint(case.vocabulary, mask.shape, generator=generator).to(device)
    leaves = [hidden, *heads] if learned else [hidden]

    def step(loss: Loss) -> object:
        return torch.autograd.grad(loss(hidden, heads, targets, mask).mean(), leaves)

    sides: dict[str, Loss] = {"fused": codebook_loss, PEER: plain_loss}
    times = fastest(
        {name: lambda _, loss=loss: step(loss) for name, loss in sides.items()},  # type: ignore[misc]
        device,
        _ROUNDS[device.type],
    )
    peaks = {name: _peak(lambda loss=loss: step(loss), device) for name, loss in sides.items()}  # type: ignore[misc]
    kind = "heads learn" if learned else "heads frozen"
    name = f"{case.name}, {str(dtype).removeprefix('torch.')}, {kind}"
    gradients = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    memory = Row(
        part="loss",
        case=f"peak memory, {name}",
        ours=peaks["fused"] / peaks[PEER],
        peer=1.0,
        peer_name=PEER,
        ratio=against(peaks["fused"], peaks[PEER], higher_is_better=False),
        target=f"<= {SHARE}",
        n=1,
        note=f"{peaks['fused'] / _MIB:.1f} of {peaks[PEER] / _MIB:.1f} MiB; the gradients asked "
        f"for are {gradients / _MIB:.1f}",
    )
    speed = Row(
        part="loss",
        case=f"forward and backward, {name}",
        ours=1e3 * times["fused"],
        peer=1e3 * times[PEER],
        peer_name=PEER,
        ratio=against(times["fused"], times[PEER], higher_is_better=False),
        unit="ms",
        target="<= peer",
        n=_ROUNDS[device.type],
    )
    return [judged(memory), judged(speed)]


def _peak(step: Callable[[], object], device: torch.device) -> int:
    if device.type != "cuda":
        with LiveBytes() as live:
            step()
        return live.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
