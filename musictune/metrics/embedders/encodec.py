"""EnCodec: what a neural codec knows of a sound before it rounds it to codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.embedders.base import Embedder
from musictune.metrics.embedders.folders import (
    aligned,
    folder_hash,
    loading,
    model_folder,
    pretrained,
)
from musictune.metrics.embedders.selftest import check_embedder
from musictune.metrics.embedders.weights import fold_weight_norm

_BLOCK = 10.0  # seconds
_LEAST = 1.0  # seconds


class EncodecEmbedder(Embedder):
    """EnCodec (arXiv 2210.13438) as transformers' ``EncodecModel``: one point for each frame.

    Points are the encoder's output before the quantiser, 75 a second at 24 kHz. A clip is read in
    blocks of 10 s that do not overlap, so that memory does not grow with it; the rest after the
    last whole block is a shorter block, left out below 1 s. Every block is cut to whole frames,
    so that nothing padded is counted. A clip shorter than 1 s is repeated up to it.
    """

    model_types = ("encodec",)
    default = "facebook/encodec_24khz"

    def __init__(self, model: Any, name: str, hash: str) -> None:
        fold_weight_norm(model)
        self.model = aligned(model)
        self.name = name
        self.hash = hash
        self.dim = int(model.config.hidden_size)
        self.sample_rate = int(model.config.sampling_rate)
        self.frame = int(model.config.hop_length)  # samples
        self.window_seconds = self.hop_seconds = _BLOCK

    @classmethod
    def load(cls, path_or_id: str | Path | None = None) -> Self:
        """Load an EnCodec folder or Hub id. Safetensors only.

        Raises:
            InputError: it is not there, is no mono EnCodec, is damaged, or fails its self-test.
        """
        name = str(path_or_id or cls.default)
        folder = model_folder(name)

        from transformers import EncodecModel

        with loading(name):
            model = pretrained(EncodecModel, folder, name)
        if model.config.audio_channels != 1:
            raise InputError(
                f"embedder {name} reads {model.config.audio_channels} channels; one that reads "
                f"mono is needed, such as {cls.default}"
            )
        embedder = cls(model, name=name, hash=folder_hash(folder))
        check_embedder(embedder)
        return embedder

    @classmethod
    def toy(cls) -> Self:
        """A random one with a few thousand weights: 250 frames a second at 8 kHz."""
        from transformers import EncodecConfig, EncodecModel

        config = EncodecConfig(
            num_filters=4,
            hidden_size=8,
            codebook_dim=8,
            codebook_size=16,
            upsampling_ratios=[4, 4, 2],
            sampling_rate=8000,
            target_bandwidths=[1.0],
            num_lstm_layers=1,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = EncodecModel(config)
        return cls(model, name="toy", hash="toy")

    def windows(self, clip: Clip) -> Iterator[np.ndarray]:
        """The blocks of a clip, each a whole number of frames."""
        wave = clip.mono().resample(self.sample_rate).wave[0].numpy()
        least = self._whole(_LEAST)
        if len(wave) < least:
            wave = np.resize(wave, least)  # numpy repeats
        size = self._whole(self.window_seconds)
        for start in range(0, len(wave) - least + 1, size):
            block = wave[start : start + size]
            yield block[: len(block) // self.frame * self.frame]

    def embed(self, windows: Sequence[np.ndarray]) -> Tensor:
        """One row for each frame, begun frames included."""
        with torch.inference_mode():
            waves = (torch.from_numpy(window)[None, None] for window in windows)
            found = [self.model.encoder(wave.to(self.device))[0].T.cpu() for wave in waves]
        return torch.cat(found).contiguous() if found else torch.empty(0, self.dim)

    def _whole(self, seconds: float) -> int:
        """Samples of as many whole frames as there are in ``seconds``."""
        return int(seconds * self.sample_rate) // self.frame * self.frame
