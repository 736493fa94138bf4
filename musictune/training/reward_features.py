"""What a learned reward knows of a clip: fixed numbers from frozen models, each clip heard once."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from musictune import audio, console
from musictune.audio import Clip
from musictune.data.preferences import Comparison
from musictune.errors import InputError
from musictune.metrics.base import Listener
from musictune.models.base import MusicModel
from musictune.models.musicgen import MusicGen
from musictune.training.policy import likelihood

Kind = Literal["clap", "states", "both", "codec", "tokens"]
KINDS: tuple[Kind, ...] = ("clap", "states", "both", "codec", "tokens")

_TABLE = 64
"""Principal components kept of each table of token embeddings."""


@runtime_checkable
class AudioTextEmbedder(Protocol):
    """What hears clips and reads their prompts into one space, such as a CLAP."""

    @property
    def key(self) -> str:
        """Equal keys give equal points."""

    @property
    def name(self) -> str:
        """What it was loaded from."""

    def hear(self, clip: Clip) -> np.ndarray:
        """``(windows, dim)``."""

    def text(self, texts: Sequence[str]) -> Tensor:
        """``(texts, dim)``, unit rows."""


class ClipFeatures(ABC):
    """Turns a clip with its prompt, its caption, into one row of numbers.

    Attributes:
        kind: the name on the command line.
        keys: what it hears with, by part: rows are comparable only under equal keys.
    """

    kind: ClassVar[Kind]
    keys: dict[str, str]

    @abstractmethod
    def hear(self, clip: Clip) -> Tensor:
        """``(width,)`` float32 of a clip of any rate and length."""

    def tensors(self) -> dict[str, Tensor]:
        """What must be kept with a reward to hear the same again; usually nothing."""
        return {}


class ClapFeatures(ClipFeatures):
    """Mean and spread of a CLAP's windows, and how they agree with the prompt.

    The agreement is the product of the mean with the prompt's point, by dimension, and their
    cosine: zeros for a clip without a prompt. The prompt alone says nothing between two clips that
    were made for it, so it is left out.
    """

    kind = "clap"

    def __init__(self, embedder: AudioTextEmbedder) -> None:
        self.embedder = embedder
        # Where it computes changes the last digit, not what is heard.
        self.keys = {"embedder": embedder.key.removesuffix("-cuda")}

    def hear(self, clip: Clip) -> Tensor:
        """``(3 * dim + 1,)``."""
        points = torch.from_numpy(self.embedder.hear(clip)).float()
        mean, spread = points.mean(0), points.std(0, correction=0)
        if not clip.caption.strip():
            agreement = torch.zeros(len(mean) + 1)
        else:
            text = self.embedder.text([clip.caption])[0].float()
            agreement = torch.cat([mean * text, F.cosine_similarity(mean, text, dim=0)[None]])
        return torch.cat([mean, spread, agreement])


class CodecFeatures(ClipFeatures):
    """Codec tokens through a base's own table of token embeddings, and how these move.

    Of each codebook: mean and spread over time, and the mean step from frame to frame. The tables
    are cut to their 64 leading components and kept with the reward: tuning may change the model's
    own, and a judge must not move with whom it judges. The clip's audio is coded again even where
    its tokens are known, so that learning and use hear the same. The prompt is not read: in MusicRL
    (arXiv 2402.04229) a user reward without it was as accurate.
    """

    kind = "codec"

    def __init__(self, model: MusicModel, tables: Tensor | None = None) -> None:
        self.model = model
        self.tables = leading_tables(model) if tables is None else tables.float().cpu()
        self.keys = {"codec": model.codec_key}

    def hear(self, clip: Clip) -> Tensor:
        """``(3 * codebooks * components,)``."""
        codes = _codes(self.model, clip)
        points = torch.stack(
            [table[row] for table, row in zip(self.tables, codes, strict=True)]
        )  # (codebooks, frames, components)
        moved = points.diff(dim=1).abs()
        steps = moved.mean(1) if moved.shape[1] else torch.zeros_like(points[:, 0])
        parts = (points.mean(1), points.std(1, correction=0), steps)
        return torch.cat([part.flatten() for part in parts])

    def tensors(self) -> dict[str, Tensor]:
        """The tables."""
        return {"tables": self.tables}


class TokenFeatures(ClipFeatures):
    """How often each token occurs, by codebook.

    A linear score of these is a reward with token embeddings of its own, learned from nothing and
    pooled over time: what `CodecFeatures` is measured against. MusicRL found a reward that begins
    from nothing to be at chance.
    """

    kind = "tokens"

    def __init__(self, model: MusicModel) -> None:
        self.model = model
        self.size = _tables(model)[0].shape[0]
        self.keys = {"codec": model.codec_key}

    def hear(self, clip: Clip) -> Tensor:
        """``(codebooks * vocabulary,)``: shares of the frames."""
        codes = _codes(self.model, clip)
        counts = torch.stack([row.bincount(minlength=self.size) for row in codes])
        return (counts / codes.shape[1]).float().flatten()


class StateFeatures(ClipFeatures):
    """What the base's language model makes of a clip: its last states, mean over time.

    MusicRL (arXiv 2402.04229) begins its user reward from the language model too; here that stays
    frozen, and must be a model of its own, not the one that is being tuned. It reads the prompt.
    """

    kind = "states"

    def __init__(self, model: MusicGen) -> None:
        self.model = model
        self.keys = {"codec": model.codec_key, "language": _language_key(model)}

    @torch.no_grad()
    def hear(self, clip: Clip) -> Tensor:
        """``(width,)``."""
        batch = self.model.encode([clip])
        frames = self.model.frames(self.model.max_seconds)
        batch = replace(
            batch, codes=batch.codes[..., :frames], lengths=batch.lengths.clamp(max=frames)
        )
        return likelihood(self.model, batch).states[0].mean(0).cpu()


class BothFeatures(ClipFeatures):
    """`ClapFeatures` and `StateFeatures` side by side."""

    kind = "both"

    def __init__(self, clap: ClapFeatures, states: StateFeatures) -> None:
        self.parts: tuple[ClipFeatures, ...] = (clap, states)
        self.keys = clap.keys | states.keys

    def hear(self, clip: Clip) -> Tensor:
        """The two rows, one after the other."""
        return torch.cat([part.hear(clip) for part in self.parts])

    def tensors(self) -> dict[str, Tensor]:
        """What the parts keep."""
        return {name: value for part in self.parts for name, value in part.tensors().items()}


def build_features(
    kind: str,
    embedder: Listener | None = None,
    model: MusicModel | None = None,
    tables: Tensor | None = None,
) -> ClipFeatures:
    """The features called ``kind``.

    Args:
        kind: one of `KINDS`.
        embedder: for ``clap`` and ``both``; one that reads text.
        model: for all but ``clap``: its codec, and its tables of embeddings or its states.
        tables: kept from an earlier run, instead of the model's.

    Raises:
        InputError: an unknown kind, or what it hears with is not given or cannot read text.
    """
    if kind not in KINDS:
        raise InputError(f"features {kind!r} are unknown; choose {', '.join(KINDS)}")
    if kind == "clap":
        return ClapFeatures(_reader(kind, embedder))
    if model is None:
        raise InputError(f"features {kind} need a base model for its codec, but none is given")
    if kind == "tokens":
        return TokenFeatures(model)
    if kind == "codec":
        return CodecFeatures(model, tables)
    if not isinstance(model, MusicGen):
        raise InputError(f"base {model.base} has no states to learn from; use features clap")
    states = StateFeatures(model)
    return (
        states if kind == "states" else BothFeatures(ClapFeatures(_reader(kind, embedder)), states)
    )


def _reader(kind: str, embedder: Listener | None) -> AudioTextEmbedder:
    if isinstance(embedder, AudioTextEmbedder):
        return embedder
    found = f"{embedder.key} reads no text" if embedder else "none is given"
    raise InputError(f"features {kind} need a CLAP as embedder, but {found}; choose another")


def hear_comparisons(
    comparisons: Sequence[Comparison], features: ClipFeatures
) -> tuple[Tensor, Tensor]:
    """Rows of the chosen and of the rejected clips, each ``(pairs, width)``; each heard once.

    Raises:
        InputError: a file that cannot be read, or whose features are not finite.
    """
    wanted = {(path, one.prompt) for one in comparisons for path in (one.chosen, one.rejected)}
    found: dict[tuple[Path, str], Tensor] = {}
    for path, prompt in console.track(sorted(wanted), "clips heard"):
        row = features.hear(replace(audio.read(path), caption=prompt, source=str(path)))
        if not torch.isfinite(row).all():
            raise InputError(
                f"audio {path} gives {features.kind} features that are not finite; take its "
                "comparisons out"
            )
        found[path, prompt] = row
    chosen = torch.stack([found[one.chosen, one.prompt] for one in comparisons])
    return chosen, torch.stack([found[one.rejected, one.prompt] for one in comparisons])


@torch.no_grad()
def leading_tables(model: MusicModel) -> Tensor:
    """``(codebooks, vocabulary, components)`` the leading principal components of the tables of
    token embeddings that a MusicGen's decoder begins with.

    Raises:
        InputError: a model of another family.
    """
    cut = []
    for table in _tables(model):
        centred = table - table.mean(0)
        _, _, axes = torch.linalg.svd(centred, full_matrices=False)
        axes = axes[:_TABLE]
        # The sign of an axis is arbitrary, and not the same on all machines.
        largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
        cut.append(centred @ (axes * largest.sign()).T)
    return torch.stack(cut)


def _tables(model: MusicModel) -> list[Tensor]:
    """``(vocabulary, width)`` of each codebook, the token for padding included."""
    if not isinstance(model, MusicGen):
        raise InputError(f"base {model.base} keeps no tables of codec tokens; use features clap")
    tables = model.network.decoder.model.decoder.embed_tokens
    return [table.weight.detach().float().cpu() for table in tables]


def _language_key(model: MusicGen) -> str:
    """Short hash of the weights that states depend on, beside the codec."""
    digest = hashlib.sha256()
    for part in (model.text_encoder, model.backbone):
        for name, weight in sorted(part.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def _codes(model: MusicModel, clip: Clip) -> Tensor:
    return model.encode([clip]).codes[0].cpu()
