"""How alike the clips of one set are: a model that always plays the same piece has collapsed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.errors import InputError
from musictune.metrics.base import Score
from musictune.metrics.intervals import NONE, jackknife


def self_similarity(made: Sequence[Tensor]) -> Score:
    """Mean cosine between different clips of a set, each the mean of its ``(windows, dim)``.

    Raises:
        InputError: fewer than two clips.
    """
    count = len(made)
    if count < 2:
        raise InputError(f"self-similarity needs two clips or more, not {count}")
    clips = F.normalize(torch.stack([clip.double().mean(0) for clip in made]), dim=-1).numpy()
    total = clips.sum(0)
    pairs = float(total @ total) - count
    value = pairs / (count * (count - 1))
    low, high = NONE
    if count > 2:
        without = pairs - 2 * (clips @ total - 1)
        low, high = jackknife(np.asarray(without / ((count - 1) * (count - 2))), value)
        low, high = max(low, -1.0), min(high, 1.0)
    return Score(value, low, high, count, "lower")
