"""Training the bundled CLAP: which caption belongs to which clip (arXiv 2211.06687).

Contrast alone learns slowly from some ten thousand clips. What the composer knows about each clip
(its instruments, style and drums) is asked of the audio tower as well while it trains.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.training.pretrain import Corpus, Pretraining, PretrainSettings
from musictune.training.text import train_tokenizer

Drawn = tuple[Tensor, list[str], Tensor]


class ClapPretraining(Pretraining):
    """Learn a small ``ClapModel`` by contrast within the batch.

    Args:
        settings: how long and how fast.
        vocabulary: tokens of the text tower.
        audio: fields of ``ClapAudioConfig``.
        text: fields of ``ClapTextConfig``.
        batch_size: clips per step; each is contrasted with all others.
        seconds: length of a window, as the feature extractor cuts it.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        vocabulary: int = 1500,
        audio: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        batch_size: int = 48,
        seconds: int = 10,
    ) -> None:
        super().__init__()
        from transformers import ClapFeatureExtractor

        self.settings = settings
        self.vocabulary = vocabulary
        self.audio, self.text = audio or {}, text or {}
        self.batch_size = batch_size
        self.extractor = ClapFeatureExtractor(
            feature_size=128,
            sampling_rate=32000,
            hop_length=640,
            max_length_s=seconds,
            fft_window_size=2048,
            frequency_min=30,
            frequency_max=14000,
            truncation="rand_trunc",
            padding="repeatpad",
        )
        filters = torch.tensor(self.extractor.mel_filters_slaney, dtype=torch.float32)
        self.register_buffer("filters", filters, persistent=False)

    def open(self, corpus: Corpus) -> None:
        """Train the tokeniser and build the model."""
        self.corpus = corpus
        captions = [text for i in range(len(corpus.rows)) for text in corpus.captions(i)]
        random.Random(0).shuffle(captions)
        self.tokenizer = train_tokenizer(captions[:50_000], self.vocabulary, first="<s>")
        self.model = self._build()
        facts = [_facts(row) for row in corpus.rows]
        names = sorted({name for known in facts for name in known})
        self.facts = torch.tensor([[float(name in known) for name in names] for known in facts])
        self.ask = torch.nn.Linear(self.model.config.audio_config.hidden_size, len(names))

    def batch(self, rng: np.random.Generator) -> Drawn:
        """``(clips, samples)`` windows under noise and gain, a caption and the facts of each."""
        rate, window = self.extractor.sampling_rate, self.extractor.nb_max_samples
        waves, texts = [], []
        chosen = rng.choice(len(self.corpus.rows), self.batch_size, replace=False)
        hiss = rng.standard_normal(2 * window, dtype=np.float32)
        for index in chosen:
            path = self.corpus.path(int(index))
            with soundfile.SoundFile(path) as file:
                assert file.samplerate == rate, f"{path} is not at {rate} Hz"
                file.seek(int(rng.integers(max(1, file.frames - window + 1))))
                wave = file.read(window, dtype="float32", always_2d=True).mean(1)
            wave = np.pad(wave, (0, window - len(wave)))
            start = int(rng.integers(window))
            noise = 10 ** rng.uniform(-5, -2) * hiss[start : start + window]
            gain = 10 ** (rng.uniform(-12, 3) / 20)
            waves.append(gain * wave + (noise if rng.random() < 0.5 else 0))
            captions = self.corpus.captions(int(index))
            texts.append(captions[int(rng.integers(len(captions)))])
        heard = torch.from_numpy(np.stack(waves).astype(np.float32))
        return heard, texts, self.facts[torch.from_numpy(chosen)]

    def loss(self, batch: Drawn) -> tuple[Tensor, dict[str, float]]:
        """Symmetric InfoNCE, where captions that read the same count as right, and the facts."""
        waves, texts, facts = batch
        with torch.no_grad(), torch.autocast(waves.device.type, enabled=False):
            features = self._equalised(self.mel(waves))
        pooled = self.model.audio_model(input_features=features).pooler_output
        known = F.binary_cross_entropy_with_logits(self.ask(pooled).float(), facts)
        heard = F.normalize(self.model.audio_projection(pooled).float(), dim=-1)
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(waves.device)
        read = self.model.get_text_features(**tokens).pooler_output.float()
        logits = heard @ read.T * self.model.logit_scale_a.exp().clamp(max=100)
        same = torch.tensor([[float(a == b) for b in texts] for a in texts], device=waves.device)
        wanted = same / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2
        rank = (logits.argmax(0) == torch.arange(len(texts), device=waves.device)).float().mean()
        # Few of some hundred facts are true of a clip: the mean is small, the weight makes up.
        return loss + 20 * known, {"contrast": float(loss.detach()), "retrieval": float(rank)}

    def mel(self, waves: Tensor) -> Tensor:
        """The extractor's log-mel ``(clips, 1, frames, mels)``, in torch for speed."""
        spectrum = torch.stft(
            waves,
            self.extractor.fft_window_size,
            self.extractor.hop_length,
            window=torch.hann_window(self.extractor.fft_window_size, device=waves.device),
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        power = spectrum.abs().square().transpose(1, 2) @ self.filters
        return (10 * power.clamp_min(1e-10).log10())[:, None]

    def export(self, folder: Path) -> None:
        """A CLAP folder in half precision: model, tokeniser, feature extractor."""
        self.model.half().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.extractor.save_pretrained(folder)

    def _equalised(self, mel: Tensor) -> Tensor:
        knots = torch.randn(len(mel), 1, 6, device=mel.device) * 4  # decibels
        curve = F.interpolate(knots, mel.shape[-1], mode="linear", align_corners=True)
        chosen = torch.rand(len(mel), 1, 1, device=mel.device) < 0.5
        return mel + torch.where(chosen, curve, 0.0)[:, None]

    def _build(self) -> Any:
        from transformers import ClapConfig, ClapModel

        tokenizer = self.tokenizer
        return ClapModel(
            ClapConfig(
                projection_dim=128,
                audio_config={
                    "num_mel_bins": 128,
                    "spec_size": 256,
                    "patch_size": 8,
                    "patch_stride": [8, 8],
                    "patch_embeds_hidden_size": 48,
                    "depths": [2, 2, 2],
                    "num_attention_heads": [3, 6, 12],
                    "hidden_size": 192,
                    "num_hidden_layers": 3,
                    "hidden_dropout_prob": 0.0,
                    "projection_dim": 128,
                }
                | self.audio,
                text_config={
                    "vocab_size": len(tokenizer),
                    "hidden_size": 128,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 4,
                    "intermediate_size": 512,
                    "max_position_embeddings": 132,
                    "projection_dim": 128,
                    "pad_token_id": tokenizer.pad_token_id,
                    "bos_token_id": tokenizer.bos_token_id,
                    "eos_token_id": tokenizer.eos_token_id,
                }
                | self.text,
            )
        )


def _facts(row: dict[str, Any]) -> set[str]:
    """What the composer knows of a clip, as names of things that are so."""
    facts = {f"instrument {name}" for name in row.get("instruments", [])}
    facts |= {f"lead {row.get('lead_family')}", f"style {row.get('style')}"}
    facts |= {f"texture {row.get('texture')}", f"mode {str(row.get('key'))[-5:]}"}
    facts |= {f"metre {row.get('metre')}"} | {f"mood {mood}" for mood in row.get("moods", [])}
    if tempo := row.get("tempo"):
        facts.add(f"tempo {int(tempo) // 20 * 20}")
    if row.get("has_drums"):
        facts.add("drums")
    return facts
