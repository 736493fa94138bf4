"""Training the bundled CLAP: which caption belongs to which clip (arXiv 2211.06687).

Contrast alone learns slowly from some ten thousand clips. What the composer knows about each clip
(its instruments, style and drums) is asked of the audio tower as well while it trains. Captions
with one fact made false stand among the wrong answers, as in arXiv 2210.01936: other clips of a
batch differ in so much that tempo and mode need not be heard to tell them apart.
"""

from __future__ import annotations

import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from musictune import console
from musictune.compose.changed import FACTS, changed_caption
from musictune.compose.notes import Truth
from musictune.training.pretrain import Corpus, Pretraining, PretrainSettings
from musictune.training.text import fact_table, train_tokenizer

# Decibels to natural logarithm of power, and the energy of a Hann window of 2048.
_NEPER = np.log(10) / 10
_WINDOW_POWER = 768.0

Drawn = tuple[Tensor, list[str], list[str], Tensor]


class ClapPretraining(Pretraining):
    """Learn a small ``ClapModel`` by contrast within the batch.

    Args:
        settings: how long and how fast.
        vocabulary: tokens of the text tower.
        audio: fields of ``ClapAudioConfig``.
        text: fields of ``ClapTextConfig``.
        batch_size: clips per step; each is contrasted with all others.
        seconds: length of a window, as the feature extractor cuts it.
        start: a CLAP folder whose weights and tokeniser to go on from.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        vocabulary: int = 1500,
        audio: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        batch_size: int = 48,
        seconds: int = 10,
        start: str | None = None,
    ) -> None:
        super().__init__()
        from transformers import ClapFeatureExtractor

        self.settings = settings
        self.vocabulary = vocabulary
        self.audio, self.text = audio or {}, text or {}
        self.batch_size = batch_size
        self.start = start
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
        """Hear the whole corpus once (kept beside it), train the tokeniser and build the model."""
        self.corpus = corpus
        self.heard = self._hear(corpus)
        if self.start:
            self._load(self.start)
        else:
            captions = [text for i in range(len(corpus.rows)) for text in corpus.captions(i)]
            random.Random(0).shuffle(captions)
            self.tokenizer = train_tokenizer(captions[:50_000], self.vocabulary, first="<s>")
            self.model = self._build()
        self.truths = [_truth(row) for row in corpus.rows]
        self.facts, names = fact_table(corpus.rows)
        self.ask = torch.nn.Linear(self.model.config.audio_config.hidden_size, len(names))

    def batch(self, rng: np.random.Generator) -> Drawn:
        """``(clips, frames, mels)`` windows in decibels under gain and noise, captions,
        wrong captions, and facts."""
        frames = self.extractor.nb_max_samples // self.extractor.hop_length + 1
        chosen = rng.choice(len(self.corpus.rows), self.batch_size, replace=False)
        starts = rng.integers(self.heard.shape[1] - frames + 1, size=self.batch_size)
        windows = torch.stack(
            [self.heard[i, s : s + frames] for i, s in zip(chosen, starts, strict=True)]
        ).float()
        size = (self.batch_size, 1, 1)
        windows = windows + torch.from_numpy(rng.uniform(-12, 3, size).astype(np.float32))
        # White noise has about this many decibels in each of the mel bands at level 1.
        bands = 10 * self.filters.sum(0).clamp_min(1e-9).log10() + 10 * np.log10(_WINDOW_POWER)
        level = 20 * rng.uniform(-5, -2, size) - 100 * (rng.random(size) < 0.5)
        hiss = bands + torch.from_numpy(level.astype(np.float32))
        windows = torch.logaddexp(windows * _NEPER, hiss * _NEPER) / _NEPER
        texts, wrong = [], []
        for index in chosen:
            captions = self.corpus.captions(int(index))
            text = captions[int(rng.integers(len(captions)))]
            if rng.random() < 0.5:  # what says more teaches more
                text = max(captions, key=len)
            texts.append(text)
            if truth := self.truths[index]:
                fact = FACTS[int(rng.integers(len(FACTS)))]
                wrong.append(changed_caption(text, truth, fact, rng))
        return (
            windows,
            texts,
            [text for text in wrong if text],
            self.facts[torch.from_numpy(chosen)],
        )

    def loss(self, batch: Drawn) -> tuple[Tensor, dict[str, float]]:
        """Symmetric InfoNCE, where captions that read the same count as right, and the facts."""
        windows, texts, wrong, facts = batch
        features = self._equalised(windows)[:, None]
        pooled = self.model.audio_model(input_features=features).pooler_output
        known = F.binary_cross_entropy_with_logits(self.ask(pooled).float(), facts)
        heard = F.normalize(self.model.audio_projection(pooled).float(), dim=-1)
        tokens = self.tokenizer(texts + wrong, padding=True, return_tensors="pt").to(windows.device)
        read = self.model.get_text_features(**tokens).pooler_output.float()
        logits = heard @ read.T * self.model.logit_scale_a.exp().clamp(max=100)
        same = torch.tensor([[float(a == b) for b in texts] for a in texts], device=windows.device)
        wanted = same / same.sum(1, keepdim=True)
        found = F.cross_entropy(logits, F.pad(wanted, (0, len(wrong))))
        logits = logits[:, : len(texts)]
        loss = (found + F.cross_entropy(logits.T, wanted)) / 2
        # Without this all texts share a direction, and unrelated ones look alike.
        spread = _likeness(read[: len(texts)]) + _likeness(heard)
        rank = (logits.argmax(0) == torch.arange(len(texts), device=windows.device)).float().mean()
        # Few of some hundred facts are true of a clip: the mean is small, the weight makes up.
        figures = {"contrast": float(loss.detach()), "retrieval": float(rank)}
        return loss + 20 * known + 2 * spread, figures

    def mel(self, waves: Tensor) -> Tensor:
        """The extractor's log-mel ``(clips, frames, mels)`` in decibels, in torch for speed."""
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
        return 10 * power.clamp_min(1e-10).log10()

    def export(self, folder: Path) -> None:
        """A CLAP folder in half precision: model, tokeniser, feature extractor."""
        self.model.half().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.extractor.save_pretrained(folder)

    def _equalised(self, mel: Tensor) -> Tensor:
        knots = torch.randn(len(mel), 1, 6, device=mel.device) * 4  # decibels
        curve = F.interpolate(knots, mel.shape[-1], mode="linear", align_corners=True)
        chosen = torch.rand(len(mel), 1, 1, device=mel.device) < 0.5
        return mel + torch.where(chosen, curve, 0.0)

    def _hear(self, corpus: Corpus) -> Tensor:
        """Log-mels of the whole corpus, ``(clips, frames, mels)`` in half precision."""
        from safetensors.torch import load_file, save_file

        cache = corpus.folder / f"mels-{corpus.key}.safetensors"
        if cache.is_file():
            return load_file(cache)["mels"]
        rows = []
        for index in console.track(range(len(corpus.rows)), "log-mels", len(corpus.rows)):
            wave = corpus.wave(index, self.extractor.sampling_rate)
            rows.append(self.mel(wave[None])[0].half())
        frames = min(len(row) for row in rows)
        mels = torch.stack([row[:frames] for row in rows])
        save_file({"mels": mels}, cache)
        return mels

    def _load(self, folder: str) -> None:
        from transformers import AutoTokenizer, ClapModel

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = ClapModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        self.model.train()

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


def _truth(row: dict[str, Any]) -> Truth | None:
    """The truth that a line of metadata holds, if it is all there."""
    names = [field.name for field in fields(Truth)]
    return Truth(**{name: row[name] for name in names}) if set(names) <= set(row) else None


def _likeness(points: Tensor) -> Tensor:
    """Mean cosine between different rows, squared."""
    mean = points.mean(0)
    count = len(points)
    return ((mean @ mean * count - 1) / (count - 1)).clamp_min(0.0).square()
