"""On what a speed was measured: its processor, its threads, what else it was doing."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Inside, torch computes on ``count`` threads; on as many as it likes if None."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load() -> list[float]:
    """The system's load averages over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def machine(device: torch.device) -> str:
    """The name of the GPU, or of the processor with what torch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = named[0] if named else name
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
