"""Kernels: Triton on CUDA, plain torch elsewhere, one signature each."""

from musictune.kernels.runtime import interpreting, use_triton
from musictune.kernels.sparse_delta import (
    largest_gradients,
    linear_with_delta,
    sampled_gradient,
    sparse_adamw_step,
)

__all__ = [
    "interpreting",
    "largest_gradients",
    "linear_with_delta",
    "sampled_gradient",
    "sparse_adamw_step",
    "use_triton",
]
