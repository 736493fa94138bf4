"""Alignment: how close made clips are to a reference sound and to their prompts.

Both follow the protocol of concept learning (DreamBooth, arXiv 2208.12242, and its musical kin):
cosines between embeddings, a concept's trigger replaced by its class word where text is read.
Each also is a reward, so that training and evaluation measure the same thing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.base import Score
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.intervals import mean_interval


def audio_alignment(made: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """``(clips,)`` mean cosine of each made clip's windows with all reference windows.

    Args:
        made, reference: per clip ``(windows, dim)`` unit rows.
    """
    # The mean of cosines with unit vectors is the product with their mean.
    centre = torch.cat(list(reference)).double().mean(0)
    return torch.stack([(clip.double() @ centre).mean() for clip in made]).float()


def audio_alignment_score(made: Sequence[Tensor], reference: Sequence[Tensor]) -> Score:
    """Mean cosine over all pairs of a reference window and a made window."""
    values = audio_alignment(made, reference).double().numpy()
    windows = torch.tensor([len(clip) for clip in made], dtype=torch.float64).numpy()
    return Score(*mean_interval(values, windows), n=len(made), better="higher")


def text_alignment(texts: Tensor, made: Sequence[Tensor]) -> Tensor:
    """``(clips,)`` mean cosine of each clip's windows with its own text.

    Args:
        texts: ``(clips, dim)`` unit rows.
        made: per clip ``(windows, dim)`` unit rows.
    """
    pairs = zip(texts, made, strict=True)
    return torch.stack([(clip.double() @ text.double()).mean() for text, clip in pairs]).float()


def text_alignment_score(texts: Tensor, made: Sequence[Tensor]) -> Score:
    """Mean over clips of the cosine with their own text."""
    values = text_alignment(texts, made).double().numpy()
    return Score(*mean_interval(values), n=len(made), better="higher")


class AudioAlignment:
    """Reward: closeness to a reference sound.

    Args:
        embedder: what hears.
        reference: the sound to come close to.
    """

    def __init__(self, embedder: ClapEmbedder, reference: Iterable[Clip]) -> None:
        self.embedder = embedder
        self.reference = embedder.audio(reference)

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)`` cosines."""
        return audio_alignment(self.embedder.audio(clips), self.reference)


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
        return text_alignment(texts, self.embedder.audio(clips))
