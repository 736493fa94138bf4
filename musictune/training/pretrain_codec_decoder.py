"""Training the codec's decoder further, its tokens as they are: regression and an adversary.

Tokens stay what they were, so a language model over them can be trained at the same time. The
adversary (hinge loss and feature matching, as in arXiv 2210.13438) looks at compressed magnitudes
at three resolutions of time and frequency, for magnitudes are all that this codec makes.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from musictune.models.codec import SpectralCodec
from musictune.training.codec_data import Crops, MagnitudeLoss, equalised
from musictune.training.pretrain import Corpus, Pretraining, PretrainSettings

_BANDS = 640  # of the spectrum, up to 10 kHz: what lies above is noise to the ear
_POOLED = ((1, 1), (1, 4), (4, 1))  # frames and bins that each discriminator sees as one


class DecoderPretraining(Pretraining):
    """Learn to make better magnitudes of the tokens that a codec already has.

    Args:
        settings: how long and how fast.
        start: a folder with a trained :class:`SpectralCodec`.
        batch_size: crops per step.
        seconds: length of a crop.
        adversary: weight of the adversarial loss; feature matching has twice this.
        mel: weight of the log-mel distance.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        start: str,
        batch_size: int = 16,
        seconds: float = 2.0,
        adversary: float = 0.05,
        mel: float = 0.2,
    ) -> None:
        super().__init__()
        from librosa.filters import mel as mel_filters

        self.settings = settings
        torch.manual_seed(settings.seed)
        self.codec = SpectralCodec.from_pretrained(start, use_safetensors=True)
        self.codec.train()
        decoder = ("from_latent", "decode_coarse", "spread", "decode_fine", "write", "synthesise")
        for name, weight in self.codec.named_parameters():
            weight.requires_grad_(name.startswith(decoder))
        config = self.codec.config
        self.discriminators = nn.ModuleList(Discriminator(*pooled) for pooled in _POOLED)
        self.distance = MagnitudeLoss(config)
        filters = mel_filters(sr=config.sampling_rate, n_fft=config.window_length, n_mels=160)
        self.register_buffer("mels", torch.from_numpy(filters).T, persistent=False)
        self.batch_size = batch_size
        self.samples = round(seconds * config.sampling_rate)
        self.adversary, self.mel = adversary, mel

    def open(self, corpus: Corpus) -> None:
        """Keep the corpus; crops are read as they are needed."""
        self.crops = Crops(corpus, self.batch_size, self.samples)

    def batch(self, rng: np.random.Generator) -> Tensor:
        """``(clips, samples)`` crops."""
        return self.crops.draw(rng)

    def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Regression, log-mel and adversary; the discriminators' own loss on top.

        Their two losses share a step: each holds the other side fixed.
        """
        with torch.no_grad():
            with torch.autocast(batch.device.type, enabled=False):
                target = equalised(self.codec.spectrum(batch))
            latents = self.codec.latents(target).float()
            with torch.autocast(batch.device.type, enabled=False):
                latents = self.codec.dequantise(self.codec.quantise(latents))
        made = self.codec.reconstruct(latents).float()
        loss, figures = self.distance(made, target)
        mel = (self._log_mel(made) - self._log_mel(target)).abs().mean()
        real, fake = target[..., :_BANDS], made[..., :_BANDS]
        fooled, matched, caught = (made.new_zeros(()) for _ in range(3))
        for judge in self.discriminators:
            fixed = {name: weight.detach() for name, weight in judge.named_parameters()}
            verdict, seen = functional_call(judge, fixed, (fake,))
            truth, known = judge(real)
            fooled = fooled + F.relu(1 - verdict).mean()
            for ours, theirs in zip(seen, known, strict=True):
                scale = theirs.detach().abs().mean().clamp_min(1e-3)
                matched = matched + (ours - theirs.detach()).abs().mean() / scale
            rejected, _ = judge(fake.detach())
            caught = caught + F.relu(1 - truth).mean() + F.relu(1 + rejected).mean()
        strength = self.adversary * min(1.0, self.global_step / max(1, self.settings.warmup))
        loss = loss + self.mel * mel + strength * (fooled + 2 * matched) + caught
        parts = {"mel": mel, "fooled": fooled, "matched": matched, "caught": caught}
        return loss, figures | {name: float(part.detach()) for name, part in parts.items()}

    def export(self, folder: Path) -> None:
        """A folder that ``AutoModel.from_pretrained`` loads."""
        self.codec.save_pretrained(folder)

    def _log_mel(self, spectrum: Tensor) -> Tensor:
        """Natural logarithm of mel magnitudes, where those of silence are all alike."""
        magnitude = spectrum ** (1 / self.codec.config.compression)
        return (magnitude @ self.mels).clamp_min(1e-4).log()


class Discriminator(nn.Module):
    """Real or made, for each patch of a spectrogram, at a coarser grain of time or frequency."""

    def __init__(self, frames: int, bins: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d((frames, bins))
        sizes = (1, 16, 32, 48)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, (3, 9), stride=(1, 4) if a == 1 else (2, 2), padding=(1, 4))
            for a, b in itertools.pairwise(sizes)
        )
        self.verdict = nn.Conv2d(sizes[-1], 1, 3, padding=1)

    def forward(self, spectrum: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``(clips, frames, bins)`` to a map of verdicts and the layers' features."""
        x = self.pool(spectrum[:, None])
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.verdict(x), features
