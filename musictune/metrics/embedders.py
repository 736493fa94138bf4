"""Embedders: audio and text as points on one sphere, so that likeness is a cosine."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.files import sha256

BUNDLED = Path(__file__).resolve().parent.parent / "bundled" / "mini" / "clap"
ALLOWED = "use a folder with a transformers ClapModel, or an id such as laion/clap-htsat-unfused"

# Texts about music that share as little as possible: a text tower that puts them in one place
# cannot tell whether a clip follows its prompt.
_UNRELATED = (
    "a slow solo piano ballad",
    "fast heavy rock drums",
    "a warm string orchestra",
    "deep electronic bass at 140 bpm",
    "a quiet flute melody in a minor key",
    "bright acoustic guitar strumming",
)
_COLLAPSED = 0.9  # sound towers stay well below; laion/larger_clap_music has 0.9993
_WINDOWS_AT_ONCE = 8
_FILES = ("*.json", "*.txt", "*.safetensors")  # a Hub folder also holds pickles: leave them there


class ClapEmbedder:
    """CLAP (arXiv 2211.06687) as transformers' ``ClapModel``, on windows that are never random.

    A clip is cut into windows as long as the feature extractor reads (10 s in all known models),
    each starting half a window after the one before; a rest that does not fill a window is left
    out, so that no silence is measured. A clip shorter than one window is one window, filled the
    way the model was trained. A clip's embeddings do not depend on what is embedded beside it.

    Attributes:
        name: the folder or id it was loaded from.
        hash: hex SHA-256 over its files; scores are comparable only where it is the same.
        dim: size of an embedding.
    """

    def __init__(self, model: Any, tokenizer: Any, extractor: Any, name: str, hash: str) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.extractor = extractor
        self.name = name
        self.hash = hash
        self.dim: int = model.config.projection_dim

    @classmethod
    def load(cls, path_or_id: str | Path | None = None) -> Self:
        """Load a CLAP folder or Hub id; the bundled one by default. Safetensors only.

        Raises:
            InputError: it is not there, is not a CLAP, is damaged, or has a collapsed text tower.
        """
        name = "bundled" if path_or_id is None else str(path_or_id)
        folder = _folder(path_or_id)
        embedder = cls(*_read(folder, name), name=name, hash=_hash(folder))
        embedder.check()
        return embedder

    def save(self, folder: Path | str) -> None:
        """Write model, tokenizer and feature extractor as `load` reads them."""
        for part in (self.model, self.tokenizer, self.extractor):
            part.save_pretrained(folder)

    @property
    def sample_rate(self) -> int:
        """Hz of the audio it reads."""
        return int(self.extractor.sampling_rate)

    @property
    def window_seconds(self) -> float:
        """Length of a window; the hop is half of it."""
        return float(self.extractor.nb_max_samples / self.sample_rate)

    def audio(self, clips: Iterable[Clip]) -> list[Tensor]:
        """Embed clips of any rate, layout and length, one by one, so that they may be a stream.

        Returns:
            one ``(windows, dim)`` float32 tensor of unit rows per clip.

        Raises:
            InputError: the model answers with numbers that are not finite.
        """
        return [self._embed(clip) for clip in clips]

    def text(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: ``(texts, dim)`` float32, unit rows. What is too long is cut at the end."""
        known: dict[str, Tensor] = {}
        for text in texts:
            if text not in known:
                known[text] = self._read(text)
        return torch.stack([known[text] for text in texts]) if texts else torch.empty(0, self.dim)

    def windows(self, clip: Clip) -> Iterator[np.ndarray]:
        """The mono windows of a clip as arrays, at the model's rate."""
        size = self.extractor.nb_max_samples
        wave = clip.mono().resample(self.sample_rate).wave[0].numpy()
        for start in range(0, max(len(wave) - size, 0) + 1, size // 2):
            yield wave[start : start + size]

    def check(self) -> None:
        """Refuse a model that hears no difference between unrelated texts.

        Raises:
            InputError: their mean cosine is 0.9 or more.
        """
        points = self.text(_UNRELATED)
        count = len(points)
        cosine = float((points @ points.T).sum() - count) / (count * (count - 1))
        if cosine >= _COLLAPSED:
            raise InputError(
                f"embedder {self.name} has a collapsed text tower: unrelated prompts have a mean "
                f"cosine of {cosine:.3f}, below {_COLLAPSED} is needed; choose another --embedder"
            )

    @classmethod
    def toy(cls) -> Self:
        """A random model of a few thousand weights with 1 s windows, built offline, for tests."""
        from musictune.metrics.toy import toy_clap

        return cls(*toy_clap(), name="toy", hash="toy")

    @torch.inference_mode()
    def _embed(self, clip: Clip) -> Tensor:
        windows = list(self.windows(clip))
        parts = []
        for first in range(0, len(windows), _WINDOWS_AT_ONCE):
            features = self.extractor(
                windows[first : first + _WINDOWS_AT_ONCE],
                sampling_rate=self.sample_rate,
                return_tensors="pt",
            )["input_features"]
            # A fusion extractor marks a window at random as cut from longer audio; none is.
            longer = torch.zeros(len(features), 1, dtype=torch.bool)
            output = self.model.get_audio_features(
                input_features=features.float(), is_longer=longer
            )
            parts.append(output.pooler_output)
        return self._unit(torch.cat(parts), clip.source or "a clip")

    @torch.inference_mode()
    def _read(self, text: str) -> Tensor:
        config = self.model.config.text_config
        # RoBERTa counts positions from the padding id on.
        room = config.max_position_embeddings - config.pad_token_id - 1
        tokens = self.tokenizer(
            text,
            truncation=True,
            max_length=min(self.tokenizer.model_max_length, room),
            return_tensors="pt",
        )
        output = self.model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        return self._unit(output.pooler_output, repr(text))[0]

    def _unit(self, points: Tensor, what: str) -> Tensor:
        if not torch.isfinite(points).all():
            raise InputError(
                f"embedder {self.name} answers with numbers that are not finite for {what}; "
                f"choose another --embedder"
            )
        return F.normalize(points.float(), dim=-1)


def _folder(path_or_id: str | Path | None) -> Path:
    """The local folder of a model; fetched from the Hub where it is an id."""
    if path_or_id is None:
        if not (BUNDLED / "config.json").is_file():
            raise InputError(
                f"the bundled CLAP is missing from {BUNDLED}; install musictune again or pass "
                f"--embedder"
            )
        return BUNDLED
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"embedder {path_or_id} is a file; {ALLOWED}")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(path_or_id)):
        raise InputError(f"unknown embedder {str(path_or_id)!r}; {ALLOWED}")

    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path_or_id), allow_patterns=list(_FILES)))
    except Exception as error:  # the Hub client raises many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"embedder {path_or_id} is no folder here and could not be fetched from the Hugging "
            f"Face Hub ({reason}); check the name and the network"
        ) from error


def _read(folder: Path, name: str) -> tuple[Any, Any, Any]:
    config = folder / "config.json"
    try:
        kind = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"embedder {name} has no usable config.json; {ALLOWED}") from error
    if kind != "clap":
        raise InputError(f"embedder {name} is a {kind} model, not a CLAP; {ALLOWED}")

    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, loaded = ClapModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds; each means the folder is no use
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"embedder {name} cannot be loaded: {reason}") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    if loaded["missing_keys"]:
        lost = sorted(loaded["missing_keys"])
        raise InputError(f"embedder {name} lacks {len(lost)} weights, the first {lost[0]}")
    return model, tokenizer, extractor


def _hash(folder: Path) -> str:
    files = sorted({path for pattern in _FILES for path in folder.glob(pattern)})
    listing = "".join(f"{path.name} {sha256(path)}\n" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()
