"""Training the spectral codec: principal components, then regression through the quantiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musictune.errors import InputError
from musictune.models.codec import SpectralCodec, SpectralCodecConfig
from musictune.training.codec_data import Crops, MagnitudeLoss, equalised
from musictune.training.pretrain import Corpus, Pretraining, PretrainSettings


class CodecPretraining(Pretraining):
    """Learn :class:`SpectralCodec` on crops of audio.

    Args:
        settings: how long and how fast.
        config: fields of :class:`SpectralCodecConfig`.
        batch_size: crops per step.
        seconds: length of a crop.
        first_crops: crops whose principal components and clusters it starts from.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        config: dict[str, Any] | None = None,
        batch_size: int = 16,
        seconds: float = 2.0,
        first_crops: int = 1600,
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
        # Both begin as what the corpus itself says they should be, see `open`.
        for part in (self.codec.analyse, self.codec.synthesise, self.codec.codebooks):
            part.requires_grad_(False)
        for head in (self.codec.to_latent[-1], self.codec.write[-1]):
            torch.nn.init.zeros_(head.weight)
        self.quantiser = ResidualVQ(
            dim=self.codec.config.latent_size,
            num_quantizers=self.codec.config.num_quantizers,
            codebook_size=self.codec.config.codebook_size,
            # A batch has fewer frames than a codebook entries: entries that are only rare stay.
            threshold_ema_dead_code=0.05,  # type: ignore[arg-type]
            decay=0.99,
            commitment_weight=0.25,
        )
        self.batch_size = batch_size
        self.first_crops = first_crops
        self.samples = round(seconds * self.codec.config.sampling_rate)
        self.distance = MagnitudeLoss(self.codec.config)

    def open(self, corpus: Corpus) -> None:
        """Keep the corpus; start from its principal components and their clusters."""
        self.crops = Crops(corpus, self.batch_size, self.samples)
        stride = self.codec.config.stride
        rng = np.random.default_rng((self.settings.seed, 0, 0))
        chosen = range(self.first_crops)
        with torch.no_grad():
            spectra = [
                self.codec.spectrum(torch.from_numpy(self.crops.one(rng))[None]) for _ in chosen
            ]
            frames = torch.cat(spectra).unflatten(1, (-1, stride)).flatten(2).flatten(0, 1)
            weight = self.distance.weight.sqrt().repeat(stride)
            mean = frames.mean(0)
            centred = ((frames - mean) * weight).double()
            components = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(-1).float()
            basis = components[:, : self.codec.config.latent_size].T
            self.codec.analyse.weight.copy_(basis * weight)
            self.codec.analyse.bias.copy_(-basis @ (mean * weight))
            self.codec.synthesise.weight.copy_((basis / weight).T)
            self.codec.synthesise.bias.copy_(mean)
            rest = self.codec.analyse(frames)
            for layer in self.quantiser.layers:
                book, counts = cluster(rest, self.codec.config.codebook_size)
                layer._codebook.embed.copy_(book[None])
                layer._codebook.embed_avg.copy_((book * counts[:, None])[None])
                layer._codebook.cluster_size.copy_(counts[None])
                rest = rest - book[nearest(rest, book)]

    def batch(self, rng: np.random.Generator) -> Tensor:
        """``(clips, samples)`` crops."""
        return self.crops.draw(rng)

    def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Weighted L1 and L2 of the compressed magnitudes, and the quantiser's commitment."""
        with torch.no_grad(), torch.autocast(batch.device.type, enabled=False):
            target = equalised(self.codec.spectrum(batch))
        latents = self.codec.latents(target)
        with torch.autocast(batch.device.type, enabled=False):
            quantised, codes, commitment = self.quantiser(latents.float())
        made = self.codec.reconstruct(quantised).float()
        loss, figures = self.distance(made, target)
        used = float(len(codes[..., -1].unique()))
        return loss + commitment.sum(), figures | {"codes_used": used}

    def export(self, folder: Path) -> None:
        """A folder that ``AutoModel.from_pretrained`` loads."""
        books = [layer._codebook.embed[0] for layer in self.quantiser.layers]
        self.codec.codebooks.data.copy_(torch.stack(books))
        self.codec.save_pretrained(folder)


def cluster(points: Tensor, count: int, rounds: int = 10) -> tuple[Tensor, Tensor]:
    """k-means: centres ``(count, size)`` and how many points each has, ``(count,)``.

    A centre that loses all of its points moves to a point at random.
    """
    generator = torch.Generator().manual_seed(0)
    centres = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    for _ in range(rounds):
        owner = nearest(points, centres)
        counts = torch.bincount(owner, minlength=count).float()
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        spare = points[torch.randint(len(points), (count,), generator=generator)]
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], spare)
    return centres, counts.clamp_min(1)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index of the closest centre of each point."""
    return (points @ centres.T - centres.square().sum(-1) / 2).argmax(-1)
