"""Alignment: how close made clips are to a reference sound and to their prompts.

Both follow the protocol of concept learning (DreamBooth, arXiv 2208.12242, and its musical kin):
cosines between embeddings, a concept's trigger replaced by its class word where text is read.
Each also is a reward, so that training and evaluation measure the same thing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.base import About, Score
from musictune.metrics.embedders import ClapEmbedder, Embedder
from musictune.metrics.features import Features
from musictune.metrics.intervals import mean_interval

Array = np.ndarray


ABOUT_ALIGNMENT = {
    "audio_alignment": About(
        "Audio alignment",
        "How close it sounds to the reference: mean cosine over all pairs of windows.",
        "higher",
    ),
    "text_alignment": About(
        "Text alignment",
        "How well it follows its prompts: mean cosine of each clip with its own prompt.",
        "higher",
    ),
    "concept_score": About(
        "Concept score",
        "Both alignments in one, each mapped to 0 to 1, times: what --keep best goes by.",
        "higher",
    ),
}

Clips = Features | Sequence[Tensor] | Sequence[Array]


def audio_alignment(made: Clips, reference: Clips) -> Array:
    """``(clips,)`` float64, mean cosine of each made clip's rows with all reference rows.

    Args:
        made, reference: per clip ``(rows, dim)``, of any length other than 0.
    """
    # The mean of cosines is the product with the mean of unit vectors.
    made, reference = Features.of(made), Features.of(reference)
    centre = sum(_unit(chunk).sum(0) for chunk in reference.chunks()) / len(reference.points)
    return np.array([(_unit(clip) @ centre).mean() for clip in made])


def audio_alignment_score(made: Clips, reference: Clips) -> Score:
    """Mean cosine over all pairs of a reference row and a made row.

    Its interval is over made clips: chance in the choice of the reference is not in it.
    """
    made = Features.of(made)
    values = audio_alignment(made, reference)
    return _cosine_score(values, made.lengths, "interval over made clips, reference held")


def text_alignment(texts: Tensor | Array, made: Clips) -> Array:
    """``(clips,)`` float64, mean cosine of each clip's rows with its own text.

    Args:
        texts: ``(clips, dim)``.
        made: per clip ``(rows, dim)``.
    """
    words = _unit(np.asarray(texts))
    pairs = zip(words, Features.of(made), strict=True)
    return np.array([(_unit(clip) @ text).mean() for text, clip in pairs])


def text_alignment_score(texts: Tensor | Array, made: Clips) -> Score:
    """Mean over clips of the cosine with their own text."""
    return _cosine_score(text_alignment(texts, made))


class AudioAlignment:
    """Reward: closeness to a reference sound.

    Args:
        embedder: what hears.
        reference: the sound to come close to.
    """

    def __init__(self, embedder: Embedder, reference: Iterable[Clip]) -> None:
        self.embedder = embedder
        self.reference = embedder.audio(reference)

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)`` cosines."""
        values = audio_alignment(self.embedder.audio(clips), self.reference)
        return torch.from_numpy(values).float()


class TextAlignment:
    """Reward: closeness to each clip's own caption.

    Args:
        embedder: what hears and reads.
    """

    def __init__(self, embedder: ClapEmbedder) -> None:
        self.embedder = embedder

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)`` cosines.

        Raises:
            InputError: a clip without a caption.
        """
        for clip in clips:
            if not clip.caption:
                raise InputError(
                    f"clip {clip.source or '(unnamed)'} has no caption to compare with"
                )
        texts = self.embedder.text([clip.caption for clip in clips])
        values = text_alignment(texts, self.embedder.audio(clips))
        return torch.from_numpy(values).float()


def _cosine_score(values: Array, weights: Array | None = None, note: str = "") -> Score:
    value, low, high = mean_interval(values, weights)
    # An interval is as wide below as above, also where a cosine cannot be.
    low, high = (float(np.clip(end, -1, 1)) for end in (low, high))
    return Score(value, low, high, n=len(values), better="higher", note=note)


def _unit(rows: Array) -> Array:
    rows = np.asarray(rows, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
