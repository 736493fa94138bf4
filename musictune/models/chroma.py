"""Chroma of a melody: the strongest of twelve pitch classes, frame by frame.

What a MusicGen with melody (Copet et al. 2023, arXiv 2306.05284, section 2.3) listens to instead of
the sound itself, so that it takes over the tune and not the instrument. Equal to transformers'
``MusicgenMelodyFeatureExtractor``, which needs torchaudio; only the resampling is soxr's.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.audio import Clip, read
from musictune.data.windows import is_silent
from musictune.errors import InputError

FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class ChromaSettings:
    """How a base listens; the defaults are those of every published one.

    Attributes:
        sample_rate: Hz at which the melody is analysed.
        window: samples of one analysis window, a Hann window.
        hop: samples between two frames.
        bins: pitch classes, from C on.
        seconds: longest melody; the rest is cut off.

    Raises:
        InputError: a value that is no whole number above 0.
    """

    sample_rate: int = 32_000
    window: int = 16_384
    hop: int = 4_096
    bins: int = 12
    seconds: int = 30

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(
                    f"chroma {name} {value!r} must be a whole number above 0; correct {FILE}"
                )

    @property
    def shortest(self) -> float:
        """Seconds of one analysis window."""
        return self.window / self.sample_rate

    @classmethod
    def from_transformers(cls, fields: dict[str, Any]) -> ChromaSettings:
        """From the fields of transformers' ``preprocessor_config.json``, its defaults for others.

        Raises:
            InputError: as the class.
        """
        return cls(
            sample_rate=fields.get("sampling_rate", cls.sample_rate),
            window=fields.get("n_fft", cls.window),
            hop=fields.get("hop_length", cls.hop),
            bins=fields.get("num_chroma", fields.get("feature_size", cls.bins)),
            seconds=fields.get("chunk_length", cls.seconds),
        )

    def save(self, folder: Path) -> None:
        """Write ``preprocessor_config.json``, from which transformers makes its own extractor."""
        fields = {
            "feature_extractor_type": "MusicgenMelodyFeatureExtractor",
            "feature_size": self.bins,
            "num_chroma": self.bins,
            "sampling_rate": self.sample_rate,
            "n_fft": self.window,
            "hop_length": self.hop,
            "chunk_length": self.seconds,
            "n_samples": self.seconds * self.sample_rate,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
            "stem_indices": [3, 2],
        }
        (folder / FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def read_melody(path: Path | str, settings: ChromaSettings = ChromaSettings()) -> Clip:
    """The part of a sound file that a base listens to, checked.

    Raises:
        AudioError: a file that cannot be used.
        InputError: as :func:`check_melody`.
    """
    clip = read(path, seconds=float(settings.seconds))
    check_melody(clip, settings)
    return clip


def check_melody(clip: Clip, settings: ChromaSettings = ChromaSettings()) -> None:
    """Refuse what has no melody in it.

    transformers would go on: it reads silence as a long C, and stretches a blip.

    Raises:
        InputError: shorter than an analysis window, or silent (below -60 dB of full scale) in the
            part that is listened to.
    """
    name = f"melody {clip.source}" if clip.source else "melody"
    if clip.seconds < settings.shortest:
        raise InputError(
            f"{name} has {clip.seconds:.2f} s; give at least {settings.shortest:.2f} s of a tune"
        )
    if is_silent(clip.crop(0.0, settings.seconds).mono()):
        raise InputError(
            f"{name} is silent in its first {min(clip.seconds, settings.seconds):.1f} s; give a "
            "recording in which the tune sounds from the start"
        )


def extract_chroma(clip: Clip, settings: ChromaSettings = ChromaSettings()) -> Tensor:
    """One-hot pitch classes ``(frames, bins)`` float32, frames centred on multiples of the hop.

    transformers also divides each frame, by the window's energy and by the largest bin: neither
    changes which one is the largest.

    Args:
        clip: of any rate and channel count, at least one window long (:func:`check_melody`).
        settings: of the base.
    """
    wave = clip.crop(0.0, settings.seconds).mono().resample(settings.sample_rate).wave[0]
    spectrum = torch.stft(
        wave[: settings.seconds * settings.sample_rate],
        settings.window,
        settings.hop,
        window=torch.hann_window(settings.window),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    power = spectrum.real.square() + spectrum.imag.square()
    strongest = (_filters(settings) @ power).argmax(0)
    return F.one_hot(strongest, settings.bins).float()


@functools.lru_cache(maxsize=4)
def _filters(settings: ChromaSettings) -> Tensor:
    """``(bins, frequencies)`` float32: how much each frequency says of each pitch class."""
    from librosa.filters import chroma as bank

    filters = bank(
        sr=settings.sample_rate, n_fft=settings.window, tuning=0.0, n_chroma=settings.bins
    )
    return torch.from_numpy(filters).float()
