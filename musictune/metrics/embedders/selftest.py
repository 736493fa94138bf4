"""Is the embedder fit to be believed? Asked before any of its scores is."""

from __future__ import annotations

import numpy as np
import torch

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.embedders.base import Embedder, TextReader

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
_COLLAPSED = 0.9  # sound text towers stay well below; laion/larger_clap_music has 0.9993
_DEAF = 1e-4  # distance of two sounds, as a share of their length
_RATES = (48_000, 32_000)


def check_embedder(embedder: Embedder) -> None:
    """Refuse an embedder that hears no difference, reads none, or takes no notice of rates.

    Raises:
        InputError: its text tower is collapsed (mean cosine of unrelated texts 0.9 or more), its
            answer does not depend on what it hears, or the same sound at another sample rate is
            farther away than that sound played at the wrong speed.
    """
    if isinstance(embedder, TextReader):
        _check_text(embedder)
    sound, other = _chords(_RATES[0], 220.0), _noise(_RATES[0])
    points = [_mean(embedder, clip) for clip in (sound, other, _chords(_RATES[1], 220.0))]
    length = float(np.linalg.norm(points[0])) or 1.0
    if float(np.linalg.norm(points[0] - points[1])) < _DEAF * length:
        raise InputError(
            f"{embedder.role} {embedder.name} answers chords and noise alike: it ignores what it "
            f"hears; choose another --{embedder.role}"
        )
    wrong = _mean(embedder, Clip(_chords(_RATES[1], 220.0).wave, _RATES[0]))
    near = float(np.linalg.norm(points[0] - points[2]))
    if near >= float(np.linalg.norm(points[0] - wrong)):
        raise InputError(
            f"{embedder.role} {embedder.name} hears a sound at {_RATES[1]} Hz as another than at "
            f"{_RATES[0]} Hz: its sample rate is wrong; check its configuration"
        )


def _check_text(embedder: TextReader) -> None:
    points = embedder.text(_UNRELATED)
    count = len(points)
    cosine = float((points @ points.T).sum() - count) / (count * (count - 1))
    if cosine >= _COLLAPSED:
        name = getattr(embedder, "name", "")
        raise InputError(
            f"embedder {name} has a collapsed text tower: unrelated prompts have a mean "
            f"cosine of {cosine:.3f}, below {_COLLAPSED} is needed; choose another --embedder"
        )


def _mean(embedder: Embedder, clip: Clip) -> np.ndarray:
    return np.asarray(embedder.hear(clip), np.float64).mean(0)


def _chords(rate: int, hertz: float) -> Clip:
    """Two seconds of a rising figure, three partials to a note."""
    time = np.arange(2 * rate) / rate
    step = np.floor(time / 0.5)
    pitch = hertz * 2 ** (step * 4 / 12)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    wave = sum(np.sin(k * phase) / k for k in (1, 2, 3)) * np.exp(-3 * (time % 0.5))
    return Clip(torch.from_numpy(0.3 * wave)[None].float(), rate)


def _noise(rate: int) -> Clip:
    rng = np.random.default_rng(0)
    return Clip(torch.from_numpy(0.1 * rng.standard_normal(2 * rate))[None].float(), rate)
