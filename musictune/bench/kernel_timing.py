"""Sides that take turns on the clock, the fastest of several rounds each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

Side = Callable[[int], object]
"""One call; its argument counts the calls of a round, so that each can have tensors of its own."""


def fastest(
    sides: Mapping[str, Side],
    device: torch.device,
    rounds: int,
    calls: int = 1,
    *,
    graphed: bool = False,
) -> dict[str, float]:
    """Seconds per call of each side, after one round to warm up.

    On CUDA by the GPU's own clock, elsewhere by the time of the processor, which counts all threads
    and not what else the machine does.

    Args:
        sides: by name.
        device: where they run.
        rounds: turns of every side.
        calls: of a side in each turn.
        graphed: on CUDA, play a turn's calls from one CUDA graph, so that launches do not count.
    """
    spend = {
        name: _on_cuda(side, calls, graphed) if device.type == "cuda" else _on_cpu(side, calls)
        for name, side in sides.items()
    }
    best = dict.fromkeys(sides, float("inf"))
    for turn in range(rounds + 1):
        for name, once in spend.items():
            spent = once()
            if turn:
                best[name] = min(best[name], spent / calls)
    return best


def _on_cpu(side: Side, calls: int) -> Callable[[], float]:
    def once() -> float:
        began = time.process_time()
        for i in range(calls):
            side(i)
        return time.process_time() - began

    return once


def _on_cuda(side: Side, calls: int, graphed: bool) -> Callable[[], float]:
    def play() -> None:
        for i in range(calls):
            side(i)

    if graphed:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            side(0)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            play()
        play = graph.replay

    def once() -> float:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        began.record()
        play()
        ended.record()
        torch.cuda.synchronize()
        milliseconds: float = began.elapsed_time(ended)
        return milliseconds / 1e3

    return once
