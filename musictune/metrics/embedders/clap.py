"""CLAP: audio and text as points on one sphere, so that likeness is a cosine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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

BUNDLED = Path(__file__).resolve().parents[2] / "bundled" / "mini" / "clap"
ALLOWED = "use a folder with a transformers ClapModel, or an id such as laion/clap-htsat-unfused"

_WINDOWS_AT_ONCE = 8


class ClapEmbedder(Embedder):
    """CLAP (arXiv 2211.06687) as transformers' ``ClapModel``, on windows that are never random.

    Windows are as long as the feature extractor reads (10 s in all known models), each starting
    half a window after the one before. A clip shorter than one window is filled the way the model
    was trained. Points are unit rows.
    """

    model_types = ("clap",)

    def __init__(self, model: Any, tokenizer: Any, extractor: Any, name: str, hash: str) -> None:
        self.model = aligned(model)
        self.tokenizer = tokenizer
        self.extractor = extractor
        self.name = name
        self.hash = hash
        self.dim = int(model.config.projection_dim)
        self.sample_rate = int(extractor.sampling_rate)
        self.window_seconds = float(extractor.nb_max_samples / extractor.sampling_rate)
        self.hop_seconds = self.window_seconds / 2

    @classmethod
    def load(cls, path_or_id: str | Path | None = None) -> Self:
        """Load a CLAP folder or Hub id; the bundled one by default. Safetensors only.

        Raises:
            InputError: it is not there, is not a CLAP, is damaged, or fails its self-test.
        """
        name = "bundled" if path_or_id is None else str(path_or_id)
        folder = _bundled() if path_or_id is None else model_folder(path_or_id)
        embedder = cls(*_read(folder, name), name=name, hash=folder_hash(folder))
        check_embedder(embedder)
        return embedder

    def save(self, folder: Path | str) -> None:
        """Write model, tokenizer and feature extractor as `load` reads them."""
        for part in (self.model, self.tokenizer, self.extractor):
            part.save_pretrained(folder)

    def text(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: ``(texts, dim)`` float32, unit rows. What is too long is cut at the end."""
        known: dict[str, Tensor] = {}
        for text in texts:
            if text not in known:
                known[text] = self._read(text)
        return torch.stack([known[text] for text in texts]) if texts else torch.empty(0, self.dim)

    @classmethod
    def toy(cls) -> Self:
        """A random model of a few thousand weights with 1 s windows."""
        from musictune.metrics.embedders.toy import toy_clap

        return cls(*toy_clap(), name="toy", hash="toy")

    def embed(self, windows: Sequence[np.ndarray]) -> Tensor:
        """One unit row for each window."""
        parts = []
        for first in range(0, len(windows), _WINDOWS_AT_ONCE):
            features = self.extractor(
                list(windows[first : first + _WINDOWS_AT_ONCE]),
                sampling_rate=self.sample_rate,
                return_tensors="pt",
            )["input_features"]
            # A fusion extractor marks a window at random as cut from longer audio; none is.
            longer = torch.zeros(len(features), 1, dtype=torch.bool)
            output = self.model.get_audio_features(
                input_features=features.float().to(self.device),
                is_longer=longer.to(self.device),
            )
            parts.append(output.pooler_output)
        return F.normalize(torch.cat(parts).cpu().float(), dim=-1)

    def _fill(self, wave: np.ndarray, size: int) -> np.ndarray:
        return wave  # the extractor repeats it, the way it was trained

    @property
    def most_tokens(self) -> int:
        """How long a text may be, marks of its ends included; `text` cuts what is beyond."""
        config = self.model.config.text_config
        # RoBERTa counts positions from the padding id on.
        room = config.max_position_embeddings - config.pad_token_id - 1
        return int(min(self.tokenizer.model_max_length, room))

    def tokens(self, text: str) -> int:
        """How long a text is, in tokens, before any is cut."""
        return len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])

    @torch.inference_mode()
    def _read(self, text: str) -> Tensor:
        tokens = self.tokenizer(
            text, truncation=True, max_length=self.most_tokens, return_tensors="pt"
        )
        output = self.model.get_text_features(
            input_ids=tokens["input_ids"].to(self.device),
            attention_mask=tokens["attention_mask"].to(self.device),
        )
        if not torch.isfinite(output.pooler_output).all():
            raise InputError(
                f"embedder {self.name} answers with numbers that are not finite for {text!r}; "
                f"choose another --embedder"
            )
        return F.normalize(output.pooler_output.cpu().float(), dim=-1)[0]


def _bundled() -> Path:
    if not (BUNDLED / "config.json").is_file():
        raise InputError(
            f"the bundled CLAP is missing from {BUNDLED}; install musictune again or pass "
            f"--embedder"
        )
    return BUNDLED


def _read(folder: Path, name: str) -> tuple[Any, Any, Any]:
    config = folder / "config.json"
    try:
        kind = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"embedder {name} has no usable config.json; {ALLOWED}") from error
    if kind != "clap":
        raise InputError(f"embedder {name} is a {kind} model, not a CLAP; {ALLOWED}")

    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    with loading(name):
        model = pretrained(ClapModel, folder, name)
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
    return model, tokenizer, extractor
