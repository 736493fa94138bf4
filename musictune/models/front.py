"""What an audio encoder hears of a clip: a log-mel spectrogram or the wave itself.

What was heard is a tensor whose first axis is time, so that it can be kept, cropped, made louder
and mixed without hearing the clip again; ``inputs`` then makes of several what the network reads.
"""

from __future__ import annotations

import copy
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.audio import Clip

_NEPER = math.log(10) / 10  # of power, for a decibel


class Front(ABC):
    """From clips to a network's inputs.

    Attributes:
        sample_rate: Hz of what is heard.
        rate: steps of what was heard per second.
        bands: channels of a step; 0 where a step is one sample.
        least: steps below which the network hears nothing.
    """

    sample_rate: int
    rate: float
    bands: int
    least: int = 1

    def __init__(self, extractor: Any) -> None:
        self.extractor = extractor
        self.sample_rate = int(extractor.sampling_rate)

    @abstractmethod
    def hear(self, clip: Clip) -> Tensor:
        """``(steps, bands)`` or ``(steps,)`` float32 of a whole clip of any rate and layout."""

    @abstractmethod
    def louder(self, heard: Tensor, decibels: float) -> Tensor:
        """As if the clip were so much louder."""

    @abstractmethod
    def mixed(self, one: Tensor, other: Tensor, share: float) -> Tensor:
        """As if ``share`` of the first clip and the rest of the second sounded together."""

    @abstractmethod
    def inputs(self, heard: Sequence[Tensor], steps: int) -> tuple[Tensor, Tensor]:
        """What the network reads, and how much of each row is no padding.

        Args:
            heard: one or more, at most ``steps`` long.
            steps: to pad to, where the network wants one length.

        Returns:
            ``(clips, steps, bands)`` or ``(clips, steps)`` float32, and ``(clips,)`` int64.
        """

    def steps(self, seconds: float) -> int:
        """Steps of so many seconds, at least 1."""
        return max(1, round(seconds * self.rate))

    def crop(self, heard: Tensor, start: int, steps: int) -> Tensor:
        """``steps`` from ``start`` on, or what there is of them."""
        return heard[start : start + steps]

    def wave(self, clip: Clip) -> Tensor:
        """``(samples,)`` at the network's rate, mono."""
        return clip.mono().resample(self.sample_rate).wave[0]


class Spectrogram(Front):
    """Kaldi's log-mel filter bank in frames of 10 ms, as AST reads it (arXiv 2104.01778).

    Computed by transformers' ``ASTFeatureExtractor``, without its padding and normalisation, which
    come last. Gain adds to the logarithm and mixing adds powers, as if the waves had been mixed and
    were unrelated; only the extractor's floor under silence is not moved.
    """

    def __init__(self, extractor: Any) -> None:
        super().__init__(extractor)
        self.rate = 100.0
        self.bands = int(extractor.num_mel_bins)

    def hear(self, clip: Clip) -> Tensor:
        """``(frames, bands)`` natural logarithms of power."""
        wave = self.wave(clip)
        window, hop = round(0.025 * self.sample_rate), round(0.01 * self.sample_rate)
        wave = F.pad(wave, (0, max(window - len(wave), 0)))
        plain = copy.copy(self.extractor)
        plain.do_normalize = False
        plain.max_length = 1 + (len(wave) - window) // hop
        with warnings.catch_warnings():  # the lowest of its narrow bands are empty in every AST
            warnings.simplefilter("ignore")
            found = plain(wave.numpy(), sampling_rate=self.sample_rate, return_tensors="pt")
        return torch.as_tensor(found["input_values"][0]).float()

    def louder(self, heard: Tensor, decibels: float) -> Tensor:
        """A constant more everywhere."""
        return heard + decibels * _NEPER

    def mixed(self, one: Tensor, other: Tensor, share: float) -> Tensor:
        """Powers of amplitudes ``share`` and ``1 - share``."""
        size = max(len(one), len(other))
        floor = float(min(one.min(), other.min()))
        one, other = (F.pad(x, (0, 0, 0, size - len(x)), value=floor) for x in (one, other))
        low = math.log(torch.finfo(torch.float32).tiny)
        first = 2 * math.log(share) if share > 0 else low
        second = 2 * math.log(1 - share) if share < 1 else low
        return torch.logaddexp(one + first, other + second)

    def inputs(self, heard: Sequence[Tensor], steps: int) -> tuple[Tensor, Tensor]:
        """Padded with zeros and normalised in this order, as the extractor does."""
        lengths = torch.tensor([min(len(x), steps) for x in heard])
        rows = torch.stack([F.pad(x[:steps], (0, 0, 0, steps - len(x[:steps]))) for x in heard])
        if self.extractor.do_normalize:
            rows = (rows - self.extractor.mean) / (2 * self.extractor.std)
        return rows, lengths


class Waveform(Front):
    """Samples, as wav2vec 2.0, HuBERT, WavLM and MERT read them (arXiv 2006.11477).

    Args:
        extractor: transformers' ``Wav2Vec2FeatureExtractor``.
        least: samples that the network needs at the least; shorter clips end in silence.
    """

    def __init__(self, extractor: Any, least: int = 1) -> None:
        super().__init__(extractor)
        self.least = least
        self.rate = float(self.sample_rate)
        self.bands = 0

    def hear(self, clip: Clip) -> Tensor:
        """``(samples,)``."""
        wave = self.wave(clip)
        return F.pad(wave, (0, max(self.least - len(wave), 0)))

    def louder(self, heard: Tensor, decibels: float) -> Tensor:
        """Every sample, so much larger."""
        return heard * 10 ** (decibels / 20)

    def mixed(self, one: Tensor, other: Tensor, share: float) -> Tensor:
        """The sum of both, weighted."""
        size = max(len(one), len(other))
        one, other = (F.pad(x, (0, size - len(x))) for x in (one, other))
        return share * one + (1 - share) * other

    def inputs(self, heard: Sequence[Tensor], steps: int) -> tuple[Tensor, Tensor]:
        """Each at mean 0 and variance 1 where the extractor does so, padded to the longest."""
        lengths = torch.tensor([len(x) for x in heard])
        rows = [self._normal(x) if self.extractor.do_normalize else x for x in heard]
        longest = int(lengths.max())
        return torch.stack([F.pad(x, (0, longest - len(x))) for x in rows]), lengths

    @staticmethod
    def _normal(wave: Tensor) -> Tensor:
        return (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()
