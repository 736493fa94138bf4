"""Which way a kernel runs: Triton on CUDA, plain torch elsewhere."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Iterator

from torch import Tensor

_asked = False


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton is told to run its kernels in Python, on any device (``TRITON_INTERPRET``)."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def use_triton(*tensors: Tensor) -> bool:
    """Whether a kernel over ``tensors`` runs in Triton rather than in plain torch."""
    if not has_triton():
        return False
    return _asked or (not interpreted() and all(tensor.is_cuda for tensor in tensors))


@contextlib.contextmanager
def interpreting() -> Iterator[None]:
    """Inside, kernels run in Triton's interpreter: thousands of times slower, for tests alone.

    Raises:
        RuntimeError: Triton is missing, or ``TRITON_INTERPRET`` was not set before it was imported.
    """
    global _asked
    if not (has_triton() and interpreted()):
        raise RuntimeError("install triton and set TRITON_INTERPRET=1 to interpret kernels")
    before, _asked = _asked, True
    try:
        yield
    finally:
        _asked = before
