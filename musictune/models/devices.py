"""Where a model computes. Apart, so that asking does not import transformers."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from musictune.errors import InputError


def find_device(name: str) -> torch.device:
    """``cpu``, ``cuda``, ``cuda:N``, or ``auto``: CUDA where there is one.

    Raises:
        InputError: another name, or CUDA where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"unknown device {name}; use auto, cpu or cuda")
    chosen = torch.device(name)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name} is not there; use auto or cpu")
    return chosen


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on ``device``, what a control group leaves included."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    import psutil

    available: int = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return available
    return min(available, max(0, int(limit) - used)) if limit.isdigit() else available
