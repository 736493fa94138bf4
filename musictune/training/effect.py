"""Does an adapter do anything? One prompt, one seed, with what was learned and without."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np

from musictune.audio import Clip
from musictune.errors import CheckFailed
from musictune.generation import Engine
from musictune.methods.base import TuningMethod
from musictune.methods.combined import Combined
from musictune.methods.concept_tokens import ConceptTokens
from musictune.models.musicgen import MusicGen

_BANDS = 64
_FLOOR_DB = -80.0  # below this, a difference is nobody's to hear


@dataclass(frozen=True)
class Effect:
    """How far music with an adapter is from the same without what it learned.

    Attributes:
        tokens_changed: share of codec tokens that differ, 0 to 1.
        mel_distance: mean absolute difference of log-mel spectrograms, in decibels.
        tuned, base: the two clips.
    """

    tokens_changed: float
    mel_distance: float
    tuned: Clip
    base: Clip

    def check(self) -> None:
        """Refuse an adapter without effect.

        Raises:
            CheckFailed: both clips are the same.
        """
        if self.tokens_changed == 0 or self.mel_distance == 0:
            raise CheckFailed(
                "the adapter changes nothing: one prompt at one seed gives the same music with and "
                "without it; train longer (--steps) or at a higher rate (--lr)"
            )


def measure_effect(
    model: MusicGen, method: TuningMethod, prompt: str, seconds: float, seed: int
) -> Effect:
    """Generate ``prompt`` twice at ``seed``.

    New words count as unlearned when they are what they began as, so a prompt that holds one is
    read alike both times and only learning can tell the clips apart.
    """
    engine = Engine(model)
    codes, clips = engine.rollout([prompt], seconds, seed)
    with unlearned(model, method):
        base_codes, base_clips = engine.rollout([prompt], seconds, seed)
    return Effect(
        float((codes.codes != base_codes.codes).float().mean()),
        mel_distance(clips[0], base_clips[0]),
        clips[0],
        base_clips[0],
    )


def unlearned(model: MusicGen, method: TuningMethod) -> contextlib.AbstractContextManager[object]:
    """Inside, ``model`` is the base that knows the new words but has learned nothing of them."""
    stack = contextlib.ExitStack()
    for part in method.methods if isinstance(method, Combined) else [method]:
        alike = part.unlearned() if isinstance(part, ConceptTokens) else part.disabled(model)
        stack.enter_context(alike)
    return stack


def mel_distance(one: Clip, other: Clip) -> float:
    """Mean absolute difference in decibels of two clips' log-mel spectrograms."""
    first, second = _log_mel(one), _log_mel(other)
    length = min(first.shape[1], second.shape[1])
    return float(np.abs(first[:, :length] - second[:, :length]).mean())


def _log_mel(clip: Clip) -> np.ndarray:
    import librosa

    mel = librosa.feature.melspectrogram(
        y=clip.mono().wave[0].numpy(), sr=clip.sample_rate, n_mels=_BANDS
    )
    return np.maximum(librosa.power_to_db(mel, ref=1.0, top_db=None), _FLOOR_DB)
