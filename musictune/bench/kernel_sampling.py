"""Drawing the next tokens: ours beside heads over both halves, top-k, softmax and a draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.bench.kernel_timing import Side, fastest
from musictune.bench.rows import Row, against, judged
from musictune.kernels.sampling import sample

PEER = "torch, guidance behind the heads"
GUIDANCE, TOP_K = 3.0, 250

_ROUNDS = {"cpu": 7, "cuda": 10}
_CALLS = {"cpu": 4, "cuda": 16}
"""Each call of a round has heads of its own, as they come from memory anew at every step."""


@dataclass(frozen=True)
class Case:
    """Clips that are played at once over a decoder of ``width``."""

    name: str
    clips: int
    width: int
    codebooks: int = 4
    vocabulary: int = 2048


CASES = {
    "cpu": (
        Case("mini, 1 clip", 1, 384),
        Case("small, 1 clip", 1, 1024),
        Case("small, 8 clips", 8, 1024),
    ),
    "cuda": (
        Case("small, 1 clip", 1, 1024),
        Case("small, 8 clips", 8, 1024),
        Case("small, 64 clips", 64, 1024),
        Case("large, 1 clip", 1, 2048),
    ),
}


@torch.no_grad()
def measure(device: torch.device, cases: Sequence[Case] | None = None) -> list[Row]:
    """Microseconds of a step's draw, in bf16 and, on a CPU, in float32 too.

    On CUDA both sides are played from CUDA graphs. On a CPU the twin in plain torch is timed, for
    which there is no target: there the engine draws otherwise.

    Args:
        device: where.
        cases: the usual ones of the device if None.

    Returns:
        A row per case and dtype.
    """
    kind = device.type
    dtypes = (torch.bfloat16,) if kind == "cuda" else (torch.float32, torch.bfloat16)
    chosen = CASES[kind] if cases is None else cases
    return [_row(case, dtype, device) for case in chosen for dtype in dtypes]


def plain_sample(
    hidden: Tensor, heads: Tensor, guidance: float, temperature: float, top_k: int
) -> Tensor:
    """Tokens ``(clips, codebooks)`` as transformers draws them."""
    scores = F.linear(hidden, heads.flatten(0, 1)).float().unflatten(-1, heads.shape[:2])
    prompted, null = scores.chunk(2)
    scores = (null + (prompted - null) * guidance) / temperature
    least = scores.topk(top_k).values[..., -1:]
    shares = scores.masked_fill(scores < least, -torch.inf).softmax(-1)
    return shares.flatten(0, 1).multinomial(1).view(shares.shape[:-1])


def _row(case: Case, dtype: torch.dtype, device: torch.device) -> Row:
    calls = _CALLS[device.type]
    hidden = torch.randn(2 * case.clips, case.width, device=device).to(dtype)
    shape = (case.codebooks, case.vocabulary, case.width)
    heads = [(torch.randn(shape, device=device) * case.width**-0.5).to(dtype) for _ in range(calls)]
    seeds, steps = (torch.arange(case.clips, device=device) for _ in range(2))
    guidance, temperature = (
        torch.full((case.clips,), number, device=device) for number in (GUIDANCE, 1.0)
    )
    kept = torch.full((case.clips,), min(TOP_K, case.vocabulary), device=device)

    def ours(i: int) -> object:
        return sample(hidden, heads[i], guidance, temperature, kept, seeds, steps)

    def theirs(i: int) -> object:
        return plain_sample(hidden, heads[i], GUIDANCE, 1.0, min(TOP_K, case.vocabulary))

    sides: dict[str, Side] = {"ours": ours, PEER: theirs}
    times = fastest(sides, device, _ROUNDS[device.type], calls, graphed=True)
    row = Row(
        part="sampling",
        case=f"{case.name}, {str(dtype).removeprefix('torch.')}",
        ours=1e6 * times["ours"],
        peer=1e6 * times[PEER],
        peer_name=PEER,
        ratio=against(times["ours"], times[PEER], higher_is_better=False),
        unit="µs",
        target="<= peer",
        n=_ROUNDS[device.type],
        note=""
        if device.type == "cuda"
        else "the twin in plain torch; the engine draws otherwise here",
    )
    return judged(row) if device.type == "cuda" else row
