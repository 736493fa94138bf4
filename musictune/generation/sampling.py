"""From scores to the next token: guidance, temperature, top-k, top-p, and a seed per clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from musictune.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; checked when built.

    Attributes:
        temperature: divides the scores; below 1 plays safer, above 1 wilder.
        top_k: only the k likeliest tokens, 0 for all; 1 is greedy.
        top_p: of those, only the likeliest that together hold this probability, 0 for all
            (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751).
        guidance: weight of the prompt against no prompt; 1 is the model as it is
            (classifier-free guidance, Ho and Salimans 2022, arXiv 2207.12598).

    Raises:
        InputError: a value is out of its range or not a number.
    """

    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 0.0
    guidance: float = 3.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(
                f"temperature {self.temperature} must be above 0; 1 is the model's own, and "
                "top-k 1 is greedy"
            )
        if self.top_k < 0:
            raise InputError(f"top-k {self.top_k} must be at least 0; 0 allows every token")
        if not 0 <= self.top_p <= 1:
            raise InputError(f"top-p {self.top_p} must be between 0 and 1; 0 allows every token")
        if not (math.isfinite(self.guidance) and self.guidance >= 1):
            raise InputError(f"guidance {self.guidance} must be at least 1; 3 is usual, 1 is none")


def guide(logits: Tensor, guidance: float) -> Tensor:
    """Push scores away from what would come without a prompt.

    Args:
        logits: ``(2 * clips, ...)``, with the prompts first, then without.
        guidance: 1 gives the first half back.

    Returns:
        ``(clips, ...)``.
    """
    prompted, null = logits.chunk(2)
    return null + (prompted - null) * guidance


def uniforms(seeds: Sequence[int], steps: int, codebooks: int) -> Tensor:
    """All random numbers of a batch, ``(steps, clips, codebooks)`` in [0, 1).

    Each clip has its own generator, on the CPU: its numbers depend on its seed alone, not on its
    neighbours or the device, and two models can be played with the same luck.
    """
    rows = [
        torch.rand(steps, codebooks, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return torch.stack(rows, 1)


def draw(logits: Tensor, luck: Tensor, sampling: Sampling) -> Tensor:
    """Sample by inverting the cumulative distribution of the tokens that are allowed.

    Args:
        logits: ``(..., vocabulary)`` float32, already guided.
        luck: ``(...)`` uniform in [0, 1).
        sampling: guidance is not used here.

    Returns:
        Token ids ``(...)``.
    """
    size = logits.shape[-1]
    scores, tokens = (logits / sampling.temperature).topk(min(sampling.top_k or size, size))
    total = scores.softmax(-1).cumsum(-1)
    kept = total.shape[-1]
    last = torch.full_like(tokens[..., :1], kept - 1)
    if sampling.top_p:
        # The token that crosses the line is the last one allowed.
        last = (total < sampling.top_p).sum(-1, keepdim=True).clamp_max(kept - 1)
    mass = luck[..., None] * total.gather(-1, last)
    # Rounding could step over the last allowed token, hence the minimum.
    choice = torch.searchsorted(total, mass, right=True).minimum(last)
    return tokens.gather(-1, choice)[..., 0]
