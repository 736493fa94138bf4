"""A base model's codec as a listener: what tokens it hears in a clip."""

from __future__ import annotations

import numpy as np
import torch

from musictune.audio import Clip
from musictune.metrics.base import Listener
from musictune.models.musicgen import MusicGen


class CodecTokens(Listener):
    """The codec's tokens of a clip, a row per frame and a column per codebook.

    A model that repeats the tokens of a training clip makes audio of them; coding that audio again
    does not give the same tokens, but nearly those of the training clip's own round trip.

    Args:
        model: whose codec it is.
        round_trip: hear the clip after it was coded and decoded once.

    Attributes:
        frame_rate: rows per second.
    """

    def __init__(self, model: MusicGen, *, round_trip: bool = False) -> None:
        self.model = model
        self.round_trip = round_trip
        self.frame_rate = model.frame_rate
        self.key = f"{type(self).__name__}-{model.codec_key}" + "-again" * round_trip

    @torch.no_grad()
    def hear(self, clip: Clip) -> np.ndarray:
        """``(frames, codebooks)`` int32."""
        batch = self.model.encode([clip])
        if self.round_trip:
            batch = self.model.encode(self.model.decode(batch))
        return batch.codes[0].T.contiguous().cpu().numpy().astype(np.int32)
