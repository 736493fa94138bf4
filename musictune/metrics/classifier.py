"""A classifier as a listener: what sounds it hears in a clip, as a distribution over classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from musictune.metrics.embedders.base import Embedder
from musictune.metrics.embedders.folders import (
    aligned,
    folder_hash,
    loading,
    model_folder,
    pretrained,
)
from musictune.metrics.embedders.selftest import check_embedder

_WINDOWS_AT_ONCE = 4
_FRAMES_PER_SECOND = 100


class AstClassifier(Embedder):
    """AST (arXiv 2104.01778) as transformers' ``ASTForAudioClassification``: class probabilities.

    Each row is a distribution over the classes: the softmax of the logits. AudioSet's classes do
    not exclude each other, and AST was trained with a sigmoid for each of them; but a
    Kullback-Leibler divergence needs probabilities that sum to 1, and the softmax is what
    audiocraft and audioldm_eval take of their classifiers' logits.

    Windows are the whole seconds that the model reads (10 s of the 10.24 s of the published ones,
    the length of AudioSet's clips) and start half a window apart.

    Attributes:
        labels: the classes, in the order of the columns.
    """

    model_types = ("audio-spectrogram-transformer",)
    role = "classifier"
    default = "MIT/ast-finetuned-audioset-10-10-0.4593"

    def __init__(self, model: Any, extractor: Any, name: str, hash: str) -> None:
        from transformers.utils import is_speech_available

        self.model = aligned(model)
        self.extractor = extractor
        self.name = name
        # The extractor has two front ends, whose numbers are not quite the same.
        self.hash = ("torchaudio-" if is_speech_available() else "") + hash
        self.dim = int(model.config.num_labels)
        self.labels = tuple(model.config.id2label[i] for i in range(self.dim))
        self.sample_rate = int(extractor.sampling_rate)
        self.window_seconds = float(extractor.max_length // _FRAMES_PER_SECOND)
        self.hop_seconds = self.window_seconds / 2

    @classmethod
    def load(cls, path_or_id: str | Path | None = None) -> Self:
        """Load an AST classifier's folder or Hub id. Safetensors only.

        Raises:
            InputError: it is not there, is no AST classifier, is damaged, or fails its self-test.
        """
        name = str(path_or_id or cls.default)
        folder = model_folder(name, role=cls.role)

        from transformers import ASTFeatureExtractor, ASTForAudioClassification, AutoConfig

        with loading(name, cls.role):
            kind = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
            if kind not in cls.model_types:
                raise ValueError(f"a {kind} model is no AST; use one such as {cls.default}")
            model = pretrained(ASTForAudioClassification, folder, name, cls.role)
            extractor = ASTFeatureExtractor.from_pretrained(folder, local_files_only=True)
        classifier = cls(model, extractor, name=name, hash=folder_hash(folder))
        check_embedder(classifier)
        return classifier

    def save(self, folder: Path | str) -> None:
        """Write model and feature extractor as `load` reads them."""
        for part in (self.model, self.extractor):
            part.save_pretrained(folder)

    @classmethod
    def toy(cls) -> Self:
        """A random one of five classes with 1 s windows."""
        from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

        config = ASTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            num_mel_bins=16,
            max_length=104,
            frequency_stride=8,
            time_stride=8,
            patch_size=8,
            num_labels=5,
            initializer_range=0.5,  # far from zero, so that it answers differently to each sound
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = ASTForAudioClassification(config)
        extractor = ASTFeatureExtractor(num_mel_bins=16, max_length=104)
        return cls(model, extractor, name="toy", hash="toy")

    def embed(self, windows: Sequence[np.ndarray]) -> Tensor:
        """``(windows, classes)`` float32, each row the probabilities in one window."""
        found = []
        with torch.inference_mode():
            for first in range(0, len(windows), _WINDOWS_AT_ONCE):
                values = self.extractor(
                    list(windows[first : first + _WINDOWS_AT_ONCE]),
                    sampling_rate=self.sample_rate,
                    return_tensors="pt",
                )["input_values"]
                logits = self.model(values.float().to(self.device)).logits.cpu()
                found.append(logits.double().softmax(-1).float())
        return torch.cat(found) if found else torch.empty(0, self.dim)
