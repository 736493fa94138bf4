"""MERT: a HuBERT trained on music, read without running the code that comes with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from musictune.console import quiet_transformers
from musictune.errors import InputError
from musictune.metrics.embedders.base import Embedder
from musictune.metrics.embedders.folders import (
    OLD_FILES,
    aligned,
    folder_hash,
    model_folder,
)
from musictune.metrics.embedders.selftest import check_embedder
from musictune.metrics.embedders.weights import fill, fold_weight_norm, read_weights

_FOREIGN = ("deepnorm", "feature_extractor_cqt")  # what HuBERT has not
_TRAINING_ONLY = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
_NOT_SETTINGS = ("model_type", "auto_map", "architectures", "dtype", "torch_dtype")


class MertEmbedder(Embedder):
    """MERT (arXiv 2306.00107): the mean over a window of its last hidden layer.

    The published models bring their own code, which is never run here. It describes a HuBERT
    (arXiv 2106.07447) in all that listening needs: ``attention_relax`` subtracts the largest
    attention weight before the softmax, which leaves the softmax as it is; ``deepnorm`` and a
    constant-Q input would differ, and a model that uses one is refused. So transformers'
    ``HubertModel`` is built from ``config.json`` and filled with the weights, under the old or
    the new names of weight normalisation.

    The last layer is what fadtk takes by default (layer 12 of ``MERT-v1-95M``) and MAD too (24 of
    ``MERT-v1-330M``). Windows are 10 s long and start every 5 s; all of a clip's are whole, as
    group normalisation would let padding change every frame. Where the model's preprocessor says
    so, each window is brought to mean 0 and variance 1.
    """

    model_types = ("mert_model",)
    default = "m-a-p/MERT-v1-95M"

    def __init__(self, model: Any, extractor: Any, name: str, hash: str) -> None:
        fold_weight_norm(model)
        self.model = aligned(model)
        self.extractor = extractor
        self.name = name
        self.hash = hash
        self.dim = int(model.config.hidden_size)
        self.sample_rate = int(extractor.sampling_rate)
        self.window_seconds = 10.0
        self.hop_seconds = 5.0

    @classmethod
    def load(cls, path_or_id: str | Path | None = None) -> Self:
        """Load a MERT folder or Hub id, from safetensors or the tensors of a PyTorch file.

        Raises:
            InputError: it is not there, is no MERT or one that HuBERT cannot stand for, is
                damaged, or fails its self-test.
        """
        name = str(path_or_id or cls.default)
        folder = model_folder(name, OLD_FILES)
        config, extractor = _config(folder, name), _extractor(folder, name)

        from transformers import HubertModel

        model = HubertModel(config)
        weights = read_weights(folder, name)
        fill(model, {k.removeprefix("hubert."): v for k, v in weights.items()}, name)
        embedder = cls(model, extractor, name=name, hash=folder_hash(folder, OLD_FILES))
        check_embedder(embedder)
        return embedder

    @classmethod
    def toy(cls) -> Self:
        """A random one with a few thousand weights and 1 s windows at 8 kHz."""
        from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = HubertModel(HubertConfig(**TOY, **_TRAINING_ONLY))
        extractor = Wav2Vec2FeatureExtractor(sampling_rate=8000, do_normalize=True)
        embedder = cls(model, extractor, name="toy", hash="toy")
        embedder.window_seconds, embedder.hop_seconds = 1.0, 0.5
        return embedder

    def embed(self, windows: Sequence[np.ndarray]) -> Tensor:
        """One row for each window."""
        means = [self.frames(window).mean(0) for window in windows]
        return torch.stack(means) if means else torch.empty(0, self.dim)

    @torch.inference_mode()
    def frames(self, wave: np.ndarray) -> Tensor:
        """``(frames, dim)`` float32 of a mono wave at ``sample_rate``, some 75 a second."""
        values = self.extractor(wave, sampling_rate=self.sample_rate, return_tensors="pt")
        found = self.model(values["input_values"].float().to(self.device)).last_hidden_state[0]
        return torch.as_tensor(found.cpu())


TOY: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8, 8, 8],
    "conv_stride": [5, 4, 4],
    "conv_kernel": [10, 8, 8],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "initializer_range": 0.5,
}
"""The settings of `MertEmbedder.toy`."""


def _config(folder: Path, name: str) -> Any:
    from transformers import HubertConfig

    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = settings["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"embedder {name} has no usable config.json; use a folder with a MERT, or an id such "
            f"as {MertEmbedder.default}"
        ) from error
    if kind not in MertEmbedder.model_types:
        raise InputError(
            f"embedder {name} is a {kind} model, not a MERT; use an id such as "
            f"{MertEmbedder.default}"
        )
    for option in _FOREIGN:
        if settings.get(option):
            raise InputError(
                f"embedder {name} uses {option}, which HuBERT has not; use {MertEmbedder.default}"
            )
    kept = {k: v for k, v in settings.items() if k not in _NOT_SETTINGS}
    try:
        return HubertConfig(**(kept | _TRAINING_ONLY))
    except Exception as error:  # settings of wrong types raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"embedder {name} has an unusable config.json ({reason})") from error


def _extractor(folder: Path, name: str) -> Any:
    from transformers import Wav2Vec2FeatureExtractor

    try:
        with quiet_transformers():
            return Wav2Vec2FeatureExtractor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"embedder {name} has no usable preprocessor_config.json ({reason}); fetch it again"
        ) from error
