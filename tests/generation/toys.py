"""Requests and a reward for tests of choosing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.generation import Request


def brightness(clips: Sequence[Clip]) -> Tensor:
    """Spectral centroid as a share of half the sample rate."""
    found = []
    for clip in clips:
        power = torch.fft.rfft(clip.wave.mean(0)).abs()
        place = torch.linspace(0, 1, len(power))
        found.append((power * place).sum() / power.sum())
    return torch.stack(found)


def asked(count: int = 3) -> list[Request]:
    prompts = ["slow piano", "fast drums", "flute"]
    return [Request(prompts[i % 3], 0.2 + 0.1 * (i % 3), seed=i) for i in range(count)]
