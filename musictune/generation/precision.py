"""In which numbers the engine computes, and what this machine is good at."""

from __future__ import annotations

import functools
from typing import Literal, get_args

import torch

from musictune.errors import InputError

Precision = Literal["float32", "float16", "bfloat16", "int8"]

PRECISIONS: tuple[str, ...] = get_args(Precision)


def find_precision(name: str, device: torch.device) -> Precision:
    """``name``, or the best one of ``device`` for ``auto``.

    On a CPU the weights are packed once: ``float16`` and ``int8`` by FBGEMM, ``bfloat16`` and
    ``float32`` by oneDNN; activations stay fp32, except beside ``bfloat16`` weights. All but
    ``float32`` round the weights, so music differs from one precision to another. ``auto`` never
    means ``int8``, which changes what the model says more than the others do.

    Raises:
        InputError: no such precision, or this device cannot compute in it.
    """
    if name == "auto":
        return _best(device)
    if name not in PRECISIONS:
        raise InputError(f"unknown precision {name}; use auto, {', '.join(PRECISIONS)}")
    if device.type == "cuda" and name == "int8":
        raise InputError("precision int8 is for CPUs; on a GPU use bfloat16 or auto")
    if device.type == "cpu" and name in ("float16", "int8") and not has_fbgemm():
        raise InputError(f"precision {name} needs a CPU with AVX2; use float32 or auto")
    return name  # type: ignore[return-value]


@functools.cache
def has_fbgemm() -> bool:
    """Whether products with packed fp16 and int8 weights run here (x86 with AVX2)."""
    return "fbgemm" in torch.backends.quantized.supported_engines and (
        torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    )


@functools.cache
def has_amx() -> bool:
    """Whether this CPU multiplies tiles of bf16."""
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe and probe())


def _best(device: torch.device) -> Precision:
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if has_amx():
        return "bfloat16"
    return "float16" if has_fbgemm() else "float32"
