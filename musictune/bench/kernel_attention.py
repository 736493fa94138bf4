"""Our attention beside torch's: one new position, the whole fused step, and training."""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.bench.rows import Row, against, judged
from musictune.kernels import attention

Side = Callable[[int], object]
"""One call; its argument says which cache."""

_ROUNDS = {"cpu": 7, "cuda": 5}
_INSIDE_GRAPH = 24
"""Calls in one CUDA graph, each with a cache of its own, as the layers of a step have: a cache that
is read again and again would lie in the chip's own memory."""


@dataclass(frozen=True)
class Decode:
    """One new position: rows are both halves of guidance."""

    name: str
    rows: int
    heads: int
    size: int
    places: int


@dataclass(frozen=True)
class Train:
    """A layer's attention, forward and backward; to itself, or to texts of several lengths."""

    name: str
    clips: int
    heads: int
    size: int
    places: int
    text: int | None = None


DECODE = {
    "cpu": (
        Decode("mini, 1 clip, 15 s", 2, 6, 64, 750),
        Decode("small, 1 clip, 30 s", 2, 16, 64, 1503),
        Decode("small, 8 clips, 8 s", 16, 16, 64, 400),
    ),
    "cuda": (
        Decode("small, 1 clip, 30 s", 2, 16, 64, 1503),
        Decode("small, 8 clips, 30 s", 16, 16, 64, 1503),
        Decode("small, 64 clips, 30 s", 128, 16, 64, 1503),
        Decode("large, 1 clip, 30 s", 2, 32, 64, 1503),
    ),
}
TRAIN = {
    "cpu": (
        Train("mini, 2 clips, 5 s", 2, 6, 64, 250),
        Train("mini, 2 clips, 5 s, to text", 2, 6, 64, 250, 24),
    ),
    "cuda": (
        Train("small, 4 clips, 30 s", 4, 16, 64, 1503),
        Train("small, 4 clips, 30 s, to text", 4, 16, 64, 1503, 40),
    ),
}


def measure(
    device: torch.device,
    decode: Sequence[Decode] | None = None,
    train: Sequence[Train] | None = None,
) -> list[Row]:
    """Microseconds of a call, the sides taking turns, the fastest of several each.

    On CUDA calls are played from CUDA graphs, so that nobody's launches count, in bf16. On a CPU
    the twins in plain torch are timed, in float32 and bf16, by the time of the processor, and
    targets stay open.

    Args:
        device: where.
        decode, train: the shapes; the usual ones of the device if None.

    Returns:
        A row per shape, dtype and peer.
    """
    kind = device.type
    dtypes = (torch.bfloat16,) if kind == "cuda" else (torch.float32, torch.bfloat16)
    rows = []
    for dtype in dtypes:
        for one in DECODE[kind] if decode is None else decode:
            rows += _decode_rows(one, dtype, device)
        for layer in TRAIN[kind] if train is None else train:
            rows += _train_rows(layer, dtype, device)
    return rows


@torch.no_grad()
def _decode_rows(case: Decode, dtype: torch.dtype, device: torch.device) -> list[Row]:
    shape = (case.rows, case.heads, case.places, case.size)
    width = case.heads * case.size
    count = _INSIDE_GRAPH if device.type == "cuda" else 2

    def random(*size: int) -> Tensor:
        return torch.randn(*size, device=device).to(dtype)

    caches = [(random(*shape), random(*shape)) for _ in range(count)]
    coded = [(*attention.quantize(k), *attention.quantize(v)) for k, v in caches]
    query, x = random(case.rows, case.heads, case.size), random(case.rows, width)
    norm, weights = (random(width), random(width)), [random(3 * width, width) for _ in caches]
    positions = torch.full((case.rows,), case.places - 1, device=device)

    def attend(i: int) -> Tensor:
        return attention.attend(query, *caches[i], positions)

    def attend_coded(i: int) -> Tensor:
        k, key_scales, v, value_scales = coded[i]
        return attention.attend(
            query, k, v, positions, key_scales=key_scales, value_scales=value_scales
        )

    def fused(i: int) -> Tensor:
        return attention.decode_attention(
            x, *norm, weights[i], None, *caches[i], positions, case.heads
        )

    def torch_attend(i: int) -> Tensor:
        return F.scaled_dot_product_attention(query[:, :, None], *caches[i])

    def torch_fused(i: int) -> Tensor:
        y = F.linear(F.layer_norm(x, (width,), *norm), weights[i])
        q, k, v = y.view(case.rows, 3, case.heads, case.size).unbind(1)
        caches[i][0][:, :, -1], caches[i][1][:, :, -1] = k, v
        return F.scaled_dot_product_attention(q[:, :, None], *caches[i])

    sides: dict[str, Side] = {
        "attend": attend,
        "SDPA": torch_attend,
        "attend, int8 cache": attend_coded,
        "fused step": fused,
        "norm, linear, copy, SDPA": torch_fused,
    }
    flashinfer = _flashinfer(query, caches) if device.type == "cuda" else None
    if flashinfer is not None:
        sides["FlashInfer"] = flashinfer
    times = _interleaved(sides, count, device)
    pairs = [
        ("attend", "SDPA"),
        ("attend, int8 cache", "SDPA"),
        ("fused step", "norm, linear, copy, SDPA"),
    ]
    if flashinfer is not None:
        pairs.append(("attend", "FlashInfer"))
    return [_row(f"{ours}, {case.name}", dtype, times, ours, peer, device) for ours, peer in pairs]


def _train_rows(case: Train, dtype: torch.dtype, device: torch.device) -> list[Row]:
    keys = case.places if case.text is None else case.text
    query, key, value = (
        torch.randn(case.clips, n, case.heads, case.size, device=device)
        .to(dtype)
        .transpose(1, 2)
        .requires_grad_()
        for n in (case.places, keys, keys)
    )
    gradient = torch.randn_like(query)
    lengths = mask = None
    if case.text is not None:
        lengths = torch.linspace(1, keys, case.clips, device=device).long()
        mask = (torch.arange(keys, device=device) < lengths[:, None])[:, None, None]
    causal = case.text is None

    def ours(_: int) -> object:
        out = attention.prefill_attention(query, key, value, causal, lengths=lengths)
        return torch.autograd.grad(out, (query, key, value), gradient)

    def theirs(_: int) -> object:
        out = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
        return torch.autograd.grad(out, (query, key, value), gradient)

    times = _interleaved({"forward and backward": ours, "SDPA": theirs}, 2, device)
    name = "forward and backward"
    return [_row(f"{name}, {case.name}", dtype, times, name, "SDPA", device)]


def _row(
    case: str,
    dtype: torch.dtype,
    times: dict[str, float],
    ours: str,
    peer: str,
    device: torch.device,
) -> Row:
    row = Row(
        part="attention",
        case=f"{case}, {str(dtype).removeprefix('torch.')}",
        ours=times[ours],
        peer=times[peer],
        peer_name=peer,
        ratio=against(times[ours], times[peer], higher_is_better=False),
        unit="µs",
        target="<= peer",
        n=_ROUNDS[device.type],
    )
    return judged(row) if device.type == "cuda" else row


def _interleaved(sides: dict[str, Side], count: int, device: torch.device) -> dict[str, float]:
    """Microseconds per call of each side, the fastest of several rounds in turn."""
    once = {
        name: _played(side, count) if device.type == "cuda" else _called(side, count)
        for name, side in sides.items()
    }
    best = dict.fromkeys(sides, float("inf"))
    for turn in range(_ROUNDS[device.type] + 1):
        for name, spend in once.items():
            spent = spend()
            if turn:
                best[name] = min(best[name], spent)
    return {name: 1e6 * seconds / count for name, seconds in best.items()}


def _called(side: Side, count: int) -> Callable[[], float]:
    def spend() -> float:
        began = time.process_time()
        for i in range(count):
            side(i)
        return time.process_time() - began

    return spend


def _played(side: Side, count: int) -> Callable[[], float]:
    """``count`` calls as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(min(3, count)):
            side(i)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            side(i)

    def spend() -> float:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        torch.cuda.synchronize()
        milliseconds: float = began.elapsed_time(ended)
        return milliseconds / 1e3

    return spend


def _flashinfer(query: Tensor, caches: Sequence[tuple[Tensor, Tensor]]) -> Side | None:
    """FlashInfer's split of one query over pages of 16 places; None where it is not installed."""
    if importlib.util.find_spec("flashinfer") is None:
        return None
    import flashinfer

    rows, heads, places, size = caches[0][0].shape
    page = 16
    pages = -(-places // page)
    paged = []
    for pair in caches:
        padded = [F.pad(t, (0, 0, 0, pages * page - places)).transpose(1, 2) for t in pair]
        paged.append(torch.stack([t.reshape(-1, page, heads, size) for t in padded], 1))
    room = torch.empty(128 << 20, dtype=torch.uint8, device=query.device)
    places_of = functools.partial(torch.tensor, dtype=torch.int32, device=query.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(room, "NHD")
    wrapper.plan(
        places_of([row * pages for row in range(rows + 1)]),
        places_of(list(range(rows * pages))),
        places_of([places - (pages - 1) * page] * rows),
        heads,
        heads,
        size,
        page,
        q_data_type=query.dtype,
        kv_data_type=query.dtype,
    )
    return lambda i: wrapper.run(query, paged[i])
