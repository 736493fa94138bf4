"""What a decoding step must read, and how fast this device reads: no step can be faster."""

from __future__ import annotations

from typing import Any

import torch

from musictune.bench.step_profile import now

_GIB = 2**30
_COPIES = 10


def streamed_weights(config: Any) -> int:
    """Weights that a step multiplies with: all but the embeddings and the text's keys and values.

    Args:
        config: of the decoder.
    """
    width, wide = config.hidden_size, config.ffn_dim
    layer = 6 * width * width + 2 * width * wide  # q, k, v, o; the text's q and o; up and down
    heads = config.num_codebooks * config.vocab_size * width
    return int(config.num_hidden_layers * layer + heads)


def step_bytes(config: Any, itemsize: int, clips: int, steps: int, tokens: int) -> float:
    """Bytes that a step of ``clips`` guided clips reads, on average over ``steps`` of them.

    Args:
        config: of the decoder.
        itemsize: bytes of a weight, a key and a value.
        clips: each of them two rows; only one of those listens to a text.
        steps: of the whole run; a step reads the keys and values of all before it.
        tokens: of the text.
    """
    of_position = 2 * config.num_hidden_layers * config.hidden_size
    positions = clips * (2 * (steps + 1) / 2 + tokens)
    return itemsize * (streamed_weights(config) + of_position * positions)


def bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy of a gibibyte reads and writes."""
    source = torch.ones(_GIB, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    best = float("inf")
    for _ in range(_COPIES):
        start = now(device)
        target.copy_(source)
        best = min(best, now(device) - start)
    return 2 * _GIB / best
