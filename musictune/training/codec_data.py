"""What both trainings of the codec share: crops of the corpus, and how far spectra lie apart."""

from __future__ import annotations

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musictune.models.codec import SpectralCodecConfig
from musictune.training.pretrain import Corpus


class Crops:
    """Draws training crops, some of them mixed, at random speed and gain and with noise.

    Args:
        corpus: what to cut from.
        batch_size: crops per draw.
        samples: length of a crop.
    """

    def __init__(self, corpus: Corpus, batch_size: int, samples: int) -> None:
        self.corpus = corpus
        self.batch_size = batch_size
        self.samples = samples

    def draw(self, rng: np.random.Generator) -> Tensor:
        """``(clips, samples)``."""
        crops = [self.one(rng) for _ in range(self.batch_size)]
        for i in np.flatnonzero(rng.random(self.batch_size) < 0.2):
            crops[i] = crops[i] + crops[rng.integers(self.batch_size)] * rng.uniform(0.2, 1)
        wave = torch.from_numpy(np.stack(crops))
        decibels = torch.from_numpy(rng.uniform(-18, 6, (self.batch_size, 1)).astype(np.float32))
        wave = wave * 10 ** (decibels / 20)
        noise = 10 ** rng.uniform(-5, -2.5, (self.batch_size, 1)) * (rng.random() < 0.5)
        return wave + torch.from_numpy((noise * rng.standard_normal(wave.shape)).astype(np.float32))

    def one(self, rng: np.random.Generator) -> np.ndarray:
        """``(samples,)``, as it is in the corpus but for its speed."""
        index = int(rng.integers(len(self.corpus.rows)))
        # Other speeds stand for other tunings and other bodies of the same instrument.
        speed = float(np.exp(rng.uniform(-0.17, 0.17))) if rng.random() < 0.5 else 1.0
        wanted = int(self.samples * speed)
        with soundfile.SoundFile(self.corpus.path(index)) as file:
            file.seek(int(rng.integers(max(1, file.frames - wanted))))
            wave = file.read(wanted, dtype="float32", always_2d=True).mean(1)
        wave = np.pad(wave, (0, wanted - len(wave)))
        if wanted == self.samples:
            return wave
        return F.interpolate(
            torch.from_numpy(wave)[None, None], self.samples, mode="linear"
        ).numpy()[0, 0]


class MagnitudeLoss(nn.Module):
    """How far compressed magnitudes ``(clips, frames, bins)`` lie from those wanted."""

    def __init__(self, config: SpectralCodecConfig) -> None:
        super().__init__()
        # Bins at high frequencies are many and matter less: weight them about as the ear's
        # frequency scale does.
        hertz = torch.linspace(0, config.sampling_rate / 2, config.bins)
        weight = 1 / (1 + hertz / 1000)
        self.compression = config.compression
        self.register_buffer("weight", weight / weight.mean(), persistent=False)
        self.register_buffer("semitones", semitone_bands(hertz), persistent=False)

    def forward(self, made: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss, and its parts by name."""
        absolute = ((made - target).abs() * self.weight).mean() / target.mean().clamp_min(0.05)
        # Loud partials carry pitch: the squares, nearer to true magnitudes, listen to them.
        squared = _relative(made.square(), target.square(), self.weight)
        pitch = self._pitch(made, target)
        loss = absolute + _relative(made, target, self.weight) + squared + pitch
        parts = {"relative_l1": absolute, "relative_l2": squared, "pitch": pitch}
        return loss, {name: float(part.detach()) for name, part in parts.items()}

    def _pitch(self, made: Tensor, target: Tensor) -> Tensor:
        """How far the power of each frame lies on other notes and other pitch classes.

        Half the L1 distance of the two distributions, 0 to 1 each, over frames that sound.
        """
        power = 2 / self.compression
        notes = [x.clamp_max(20.0) ** power @ self.semitones for x in (made, target)]
        sounding = (notes[1].sum(-1) > 1e-2).float()
        total: Tensor = made.new_zeros(())
        for fold in (False, True):
            shares = []
            for note in notes:
                x = note.unflatten(-1, (-1, 12)).sum(-2) if fold else note
                shares.append((x + 1e-6) / (x + 1e-6).sum(-1, keepdim=True))
            apart = (shares[0] - shares[1]).abs().sum(-1) / 2
            total = total + (apart * sounding).sum() / sounding.sum().clamp_min(1.0)
        return total


def equalised(spectrum: Tensor) -> Tensor:
    """Smooth random filters, so that unknown rooms and microphones are no surprise."""
    knots = torch.randn(len(spectrum), 1, 8, device=spectrum.device) * 0.12
    curve = F.interpolate(knots, spectrum.shape[-1], mode="linear", align_corners=True)
    chosen = torch.rand(len(spectrum), 1, 1, device=spectrum.device) < 0.5
    return spectrum * torch.where(chosen, curve.exp(), 1.0)


def semitone_bands(hertz: Tensor) -> Tensor:
    """Triangular filters ``(bins, 60)`` on the notes C3 to B7, no narrower than two bins."""
    centres = 440 * 2 ** ((torch.arange(48, 108) - 69) / 12)
    width = (centres * (2 ** (1 / 12) - 1)).clamp_min(float(hertz[1]) * 1.5)
    return (1 - (hertz[:, None] - centres).abs() / width).clamp_min(0.0)


def _relative(made: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean over clips of the weighted squared error as a share of the clip's energy."""
    error = ((made - target).square() * weight).sum((1, 2))
    return (error / (target.square() * weight).sum((1, 2)).clamp_min(1.0)).mean()
