"""Relative attention beside FlexAttention and beside torch's attention with its bias held whole."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.bench.memory import LiveBytes
from musictune.bench.rows import Row, against, judged
from musictune.kernels.relative_attention import relative_attention, t5_buckets

Side = Callable[[], list[Tensor]]

LENGTHS = {"cpu": (512, 1024, 2048), "cuda": (1500, 2048, 4096, 8192)}
HEADS = {"cpu": 4, "cuda": 16}
"""16 heads of size 64 are a layer of MusicGen-small."""

SIZE = 64
_ROUNDS = {"cpu": 3, "cuda": 10}
_GROWTH = "<= 1.25"

SDPA, FLEX = "SDPA with its bias held whole", "FlexAttention"


@dataclass(frozen=True)
class Term:
    """What is added to scores.

    Attributes:
        name: of the rows.
        distances: of Music Transformer's table, 0 for as many as the length; None for T5's bias.
    """

    name: str
    distances: int | None


TERMS = (
    Term("Music Transformer, every distance", 0),
    Term("Music Transformer, 512 distances", 512),
    Term("T5, 32 buckets", None),
)


def measure(
    device: torch.device, lengths: Sequence[int] | None = None, terms: Sequence[Term] = TERMS
) -> list[Row]:
    """Milliseconds and memory of forward and backward, gradients of the tables included.

    The sides take turns and the fastest round counts. On CUDA the kernel runs in bf16; on a CPU
    its twin in plain torch in float32, by the time of the processor, and targets of time stay
    open. Memory is the most that is alive at once of what forward and backward make, gradients
    too; it is judged everywhere.

    Args:
        device: where.
        lengths: positions of the music; those of the device if None.
        terms: what is added to scores.

    Returns:
        For each term and length its time beside each peer and its memory beside that of the bias
        held whole; and for each term how memory per position grows from the shortest to the
        longest.
    """
    rows = []
    for term in terms:
        held = []
        for length in lengths or LENGTHS[device.type]:
            case = _Case(term, length, device)
            held.append((length, _peak(case.step(case.ours), device)))
            rows += _time_rows(case)
            rows.append(_memory_row(case, held[-1][1]))
        if len(held) > 1:
            rows.append(_growth_row(term, held))
    return rows


class _Case:
    """Random tensors of one layer, and each side's forward and backward over them."""

    def __init__(self, term: Term, length: int, device: torch.device) -> None:
        self.term, self.length, self.device = term, length, device
        self.name = f"forward and backward, {term.name}, {length} positions"
        heads, dtype = HEADS[device.type], torch.float32
        if device.type == "cuda":
            dtype = torch.bfloat16
        generator = torch.Generator(device).manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, generator=generator)

        self.query, self.key, self.value = (
            random(1, heads, length, SIZE).to(dtype).requires_grad_() for _ in range(3)
        )
        self.gradient = random(1, heads, length, SIZE).to(dtype)
        shape = (32,) if term.distances is None else (term.distances or length, SIZE)
        self.table = (0.1 * random(heads, *shape)).requires_grad_()

    def ours(self) -> Tensor:
        name = "bias" if self.term.distances is None else "embeddings"
        return relative_attention(self.query, self.key, self.value, **{name: self.table})

    def sdpa(self) -> Tensor:
        """The bias is made anew in each step: it is trained."""
        later = torch.ones(self.length, self.length, dtype=torch.bool, device=self.device).triu(1)
        bias = self._bias().masked_fill(later, -torch.inf)
        return F.scaled_dot_product_attention(self.query, self.key, self.value, attn_mask=bias)

    def flex(self, *, compiled: bool = True) -> Callable[[], Tensor]:
        """FlexAttention, which reads products of queries with the table, or the bias by distance.

        Uncompiled it is right and slow: for tests.
        """
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        attend: Any = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
        mask = create_block_mask(
            lambda _batch, _head, i, j: i >= j, None, None, self.length, self.length, self.device
        )

        def forward() -> Tensor:
            terms = self._by_distance()
            last = terms.shape[-1] - 1

            def change(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                apart = torch.clamp(i - j, 0, last)
                return score + (terms[h, apart] if terms.dim() == 2 else terms[b, h, i, apart])

            output: Tensor = attend(
                self.query, self.key, self.value, score_mod=change, block_mask=mask
            )
            return output

        return forward

    def step(self, forward: Callable[[], Tensor]) -> Side:
        """Forward and backward: the output and the gradients of query, key, value and table."""
        leaves = (self.query, self.key, self.value, self.table)

        def step() -> list[Tensor]:
            output = forward()
            return [output, *torch.autograd.grad(output, leaves, self.gradient)]

        return step

    def _by_distance(self) -> Tensor:
        """What is added at each distance: per head, or per query where it depends on that."""
        if self.term.distances is None:
            apart = torch.arange(self.length, device=self.device)
            return self.table[:, t5_buckets(apart, 32, 128)].to(self.query.dtype)
        return (self.query * SIZE**-0.5) @ self.table.to(self.query.dtype).transpose(1, 2)

    def _bias(self) -> Tensor:
        """``(1 or batch, heads, length, length)``, skewed as Music Transformer does it."""
        terms = self._by_distance()
        if terms.dim() == 2:
            terms = terms[None, :, None].expand(-1, -1, self.length, -1)
        terms = terms[..., : self.length]
        farther = self.length - terms.shape[-1]
        if farther:
            last = terms[..., -1:].expand(*terms.shape[:-1], farther)
            terms = torch.cat([terms, last], -1)
        # A column more at the left, and rows of one less: row i then holds distance i - j at j.
        padded = F.pad(terms.flip(-1), (1, 0))
        return padded.reshape(*terms.shape[:2], self.length + 1, self.length)[:, :, 1:]


def _time_rows(case: _Case) -> list[Row]:
    sides: dict[str, Side] = {"ours": case.step(case.ours), SDPA: case.step(case.sdpa)}
    failed = ""
    if case.device.type == "cuda":
        try:
            sides[FLEX] = case.step(case.flex())
            sides[FLEX]()
        except Exception as error:  # what a compiler says about a peer is no fault of ours
            del sides[FLEX]
            failed = f"FlexAttention failed: {str(error).splitlines()[0][:120]}"
    best = _interleaved(sides, case.device)
    rows = []
    for peer in sides:
        if peer == "ours":
            continue
        row = Row(
            part="relative",
            case=case.name,
            ours=best["ours"],
            peer=best[peer],
            peer_name=peer,
            ratio=against(best["ours"], best[peer], higher_is_better=False),
            unit="ms",
            target="<= peer",
            n=_ROUNDS[case.device.type],
            note=failed,
        )
        rows.append(judged(row) if case.device.type == "cuda" else row)
    return rows


def _memory_row(case: _Case, ours: int) -> Row:
    peer = _peak(case.step(case.sdpa), case.device)
    return judged(
        Row(
            part="relative",
            case=f"memory, {case.term.name}, {case.length} positions",
            ours=ours / 2**20,
            peer=peer / 2**20,
            peer_name=SDPA,
            ratio=against(ours, peer, higher_is_better=False),
            unit="MiB",
        )
    )


def _growth_row(term: Term, held: Sequence[tuple[int, int]]) -> Row:
    (short, least), (long, most) = held[0], held[-1]
    return judged(
        Row(
            part="relative",
            case=f"memory per position, {term.name}, {long} beside {short}",
            ours=most / long / (least / short),
            unit="x",
            target=_GROWTH,
            note="1 is memory in proportion to the length",
        )
    )


def _peak(side: Side, device: torch.device) -> int:
    """Bytes of what ``side`` makes that are alive at once, at the most."""
    side()
    gc.collect()
    if device.type != "cuda":
        with LiveBytes() as live:
            side()
        return live.peak
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    side()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _interleaved(sides: dict[str, Side], device: torch.device) -> dict[str, float]:
    """Milliseconds of each side, the fastest of several rounds in turn after one to warm up."""
    best = dict.fromkeys(sides, float("inf"))
    for turn in range(_ROUNDS[device.type] + 1):
        for name, side in sides.items():
            spent = _spent(side, device)
            if turn:
                best[name] = min(best[name], spent)
    return best


def _spent(side: Side, device: torch.device) -> float:
    if device.type != "cuda":
        cpu = time.process_time()
        side()
        return 1e3 * (time.process_time() - cpu)
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    side()
    ended.record()
    torch.cuda.synchronize(device)
    milliseconds: float = began.elapsed_time(ended)
    return milliseconds
