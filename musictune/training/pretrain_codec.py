"""Training the spectral codec: plain regression of compressed magnitudes through the quantiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.errors import InputError
from musictune.models.codec import SpectralCodec, SpectralCodecConfig
from musictune.training.pretrain import Corpus, Pretraining, PretrainSettings


class CodecPretraining(Pretraining):
    """Learn :class:`SpectralCodec` on crops of audio.

    Args:
        settings: how long and how fast.
        config: fields of :class:`SpectralCodecConfig`.
        batch_size: crops per step.
        seconds: length of a crop.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        config: dict[str, Any] | None = None,
        batch_size: int = 16,
        seconds: float = 2.0,
    ) -> None:
        super().__init__()
        try:
            from vector_quantize_pytorch import ResidualVQ
        except ImportError as error:
            raise InputError(
                "training a codec needs vector-quantize-pytorch; pip install 'musictune[pretrain]'"
            ) from error
        self.settings = settings
        torch.manual_seed(settings.seed)  # the weights it starts from are part of the recipe
        self.codec = SpectralCodec(SpectralCodecConfig(**(config or {})))
        # Training has codebooks of its own (moving averages); `export` copies them into the codec.
        self.codec.codebooks.requires_grad_(False)
        self.quantiser = ResidualVQ(
            dim=self.codec.config.latent_size,
            num_quantizers=self.codec.config.num_quantizers,
            codebook_size=self.codec.config.codebook_size,
            kmeans_init=True,
            kmeans_iters=10,
            threshold_ema_dead_code=1,
            decay=0.98,
            commitment_weight=0.25,
        )
        self.batch_size = batch_size
        self.samples = round(seconds * self.codec.config.sampling_rate)
        # Bins at high frequencies are many and matter less: weight them about as the ear's
        # frequency scale does.
        hertz = torch.linspace(0, self.codec.config.sampling_rate / 2, self.codec.config.bins)
        weight = 1 / (1 + hertz / 1000)
        self.register_buffer("weight", weight / weight.mean(), persistent=False)

    def open(self, corpus: Corpus) -> None:
        """Keep the corpus; crops are read as they are needed."""
        self.corpus = corpus

    def batch(self, rng: np.random.Generator) -> Tensor:
        """``(clips, samples)`` crops, some mixed, at random speed and gain."""
        crops = [self._crop(rng) for _ in range(self.batch_size)]
        for i in np.flatnonzero(rng.random(self.batch_size) < 0.2):
            crops[i] = crops[i] + crops[rng.integers(self.batch_size)] * rng.uniform(0.2, 1)
        wave = torch.from_numpy(np.stack(crops))
        decibels = torch.from_numpy(rng.uniform(-18, 6, (self.batch_size, 1)).astype(np.float32))
        wave = wave * 10 ** (decibels / 20)
        noise = 10 ** rng.uniform(-5, -2.5, (self.batch_size, 1)) * (rng.random() < 0.5)
        return wave + torch.from_numpy((noise * rng.standard_normal(wave.shape)).astype(np.float32))

    def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Weighted L1 and L2 of the compressed magnitudes, and the quantiser's commitment."""
        with torch.no_grad(), torch.autocast(batch.device.type, enabled=False):
            target = self._equalised(self.codec.spectrum(batch))
        latents = self.codec.latents(target)
        if self.global_step < self.settings.warmup:
            # k-means on the latents of an untrained encoder would place the codebooks badly.
            quantised, used, commitment = latents, 0.0, latents.new_zeros(1)
        else:
            with torch.autocast(batch.device.type, enabled=False):
                quantised, codes, commitment = self.quantiser(latents.float())
            used = float(len(codes[..., -1].unique()))
        made = self.codec.reconstruct(quantised).float()
        absolute = ((made - target).abs() * self.weight).mean() / target.mean().clamp_min(0.05)
        # Loud partials carry pitch: the squares, nearer to true magnitudes, listen to them.
        squared = _relative(made.square(), target.square(), self.weight)
        loss = absolute + _relative(made, target, self.weight) + squared + commitment.sum()
        figures = {
            "relative_l1": float(absolute.detach()),
            "relative_l2": float(squared.detach()),
            "codes_used": used,
        }
        return loss, figures

    def export(self, folder: Path) -> None:
        """A folder that ``AutoModel.from_pretrained`` loads."""
        books = [layer._codebook.embed[0] for layer in self.quantiser.layers]
        self.codec.codebooks.data.copy_(torch.stack(books))
        self.codec.save_pretrained(folder)

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
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

    def _equalised(self, spectrum: Tensor) -> Tensor:
        """Smooth random filters, so that unknown rooms and microphones are no surprise."""
        knots = torch.randn(len(spectrum), 1, 8, device=spectrum.device) * 0.12
        curve = F.interpolate(knots, spectrum.shape[-1], mode="linear", align_corners=True)
        chosen = torch.rand(len(spectrum), 1, 1, device=spectrum.device) < 0.5
        return spectrum * torch.where(chosen, curve.exp(), 1.0)


def _relative(made: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean over clips of the weighted squared error as a share of the clip's energy."""
    error = ((made - target).square() * weight).sum((1, 2))
    return (error / (target.square() * weight).sum((1, 2)).clamp_min(1.0)).mean()
