"""Training the bundled MusicGen: a T5 text encoder and a MusicGen decoder over codec tokens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from musictune import console
from musictune.models.base import Batch
from musictune.models.codec import SpectralCodec
from musictune.models.musicgen import MusicGen
from musictune.training.pretrain import Corpus, Pretraining, PretrainSettings
from musictune.training.text import teach_facts, train_tokenizer


class LanguageModelPretraining(Pretraining):
    """Learn text to codec tokens.

    Args:
        settings: how long and how fast.
        codec: a folder with a trained :class:`SpectralCodec`.
        vocabulary: tokens of the text encoder.
        text: fields of ``T5Config``.
        decoder: fields of ``MusicgenDecoderConfig``.
        batch_size: clips per step.
        seconds: length of a clip; the longest music the model will know.
        short_share: share of steps, at first, on crops of about a second, as many more as are
            shorter. In a long crop all but the first frames can be told from the music before
            them, and the text, which only helps with those first ones, is hardly ever needed. The
            share falls to a fifth of this, for rhythm and form are learned from long crops.
        text_steps: steps on captions alone that the text encoder gets first, see `teach_facts`.
        caption_dropout: share of clips heard without their text, for classifier-free guidance.
        start: a MusicGen folder of the same codec to go on from, instead of from nothing.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        codec: str,
        vocabulary: int = 1500,
        text: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        batch_size: int = 16,
        seconds: float = 10.0,
        short_share: float = 0.75,
        text_steps: int = 800,
        caption_dropout: float = 0.1,
        start: str | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.codec = SpectralCodec.from_pretrained(codec, use_safetensors=True)
        self.vocabulary = vocabulary
        self.text, self.decoder = text or {}, decoder or {}
        self.batch_size = batch_size
        self.seconds = seconds
        self.frames = round(seconds * self.codec.config.frame_rate)
        self.short_share = short_share
        self.text_steps = text_steps
        self.caption_dropout = caption_dropout
        self.start = start

    def open(self, corpus: Corpus) -> None:
        """Tokenise the whole corpus once (kept beside it), train the tokeniser, build the model."""
        self.corpus = corpus
        self.codes = self._tokens(corpus)
        if self.start:
            self.model = MusicGen.load(self.start)
            self.model.network.audio_encoder.requires_grad_(False)
            return
        captions = [text for i in range(len(corpus.rows)) for text in corpus.captions(i)]
        random.Random(0).shuffle(captions)
        tokenizer = train_tokenizer(captions[:50_000], self.vocabulary)
        self.model = self._build(tokenizer)
        encoder = self.model.text_encoder
        teach_facts(encoder, tokenizer, corpus, self.text_steps, self.settings.seed)

    def batch(self, rng: np.random.Generator) -> Batch:
        """Random crops with one of their captions, sometimes none."""
        short = max(1, self.frames // 8)
        share = self.short_share * (1 - 0.8 * min(1.0, 2 * self.progress))
        frames = short if rng.random() < share else self.frames
        clips = self.batch_size * self.frames // frames
        chosen = rng.integers(len(self.codes), size=clips)
        starts = rng.integers(self.codes.shape[-1] - frames + 1, size=clips)
        codes = torch.stack(
            [self.codes[i, :, s : s + frames] for i, s in zip(chosen, starts, strict=True)]
        ).long()
        texts = []
        for i in chosen:
            options = self.corpus.captions(int(i))
            text = options[int(rng.integers(len(options)))]
            if rng.random() < 0.5:  # what says more teaches more
                text = max(options, key=len)
            texts.append("" if rng.random() < self.caption_dropout else text)
        return Batch(codes, torch.full((clips,), frames), tuple(texts))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The model's own loss."""
        return self.model.nll(batch.to(self.device)).mean(), {}

    def export(self, folder: Path) -> None:
        """A MusicGen folder in half precision that plain transformers loads."""
        network = self.model.network.half()
        network.save_pretrained(folder, max_shard_size="14MB")
        self.model.tokenizer.save_pretrained(folder)

    def _tokens(self, corpus: Corpus) -> Tensor:
        from safetensors.torch import load_file, save_file

        key = f"{corpus.key}-{abs(self.codec.codebooks.sum().item()):.5f}"
        cache = corpus.folder / f"tokens-{key}.safetensors"
        if cache.is_file():
            return load_file(cache)["codes"]
        rows = []
        for index in console.track(range(len(corpus.rows)), "tokenising", len(corpus.rows)):
            wave = corpus.wave(index, self.codec.config.sampling_rate)
            rows.append(self.codec.encode(wave[None, None]).audio_codes[0, 0].to(torch.int16))
        frames = min(row.shape[-1] for row in rows)
        codes = torch.stack([row[:, :frames] for row in rows])
        save_file({"codes": codes}, cache)
        return codes

    def _build(self, tokenizer: Any) -> MusicGen:
        from transformers import MusicgenConfig, MusicgenForConditionalGeneration, T5Config
        from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

        size = self.codec.config.codebook_size
        text = T5Config(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
            **{"d_model": 192, "d_kv": 48, "d_ff": 768, "num_layers": 3, "num_heads": 4}
            | self.text,
        )
        decoder = MusicgenDecoderConfig(
            vocab_size=size,
            num_codebooks=self.codec.config.num_quantizers,
            audio_channels=1,
            pad_token_id=size,
            bos_token_id=size,
            **{
                "hidden_size": 256,
                "ffn_dim": 1024,
                "num_hidden_layers": 7,
                "num_attention_heads": 4,
                "max_position_embeddings": 2048,
                "dropout": 0.0,
                "attention_dropout": 0.0,
                "activation_dropout": 0.0,
                "layerdrop": 0.0,
            }
            | self.decoder,
        )
        network = MusicgenForConditionalGeneration(
            MusicgenConfig(
                text_encoder=text.to_dict(),
                audio_encoder=self.codec.config.to_dict(),
                decoder=decoder.to_dict(),
            )
        )
        network.audio_encoder.load_state_dict(self.codec.state_dict())
        network.audio_encoder.requires_grad_(False)
        # Started as small as in a wide model, the tokens would drown in the position signal.
        for embedding in network.decoder.model.decoder.embed_tokens:
            nn.init.normal_(embedding.weight, std=0.5)
        _open_to_text(network)
        generation = network.generation_config
        generation.pad_token_id = generation.bos_token_id = size
        generation.decoder_start_token_id = size
        generation.do_sample = True
        generation.guidance_scale = 3.0
        generation.max_length = self.frames
        network.train()
        return MusicGen(network, tokenizer, base="mini")


def _open_to_text(network: Any) -> None:
    """Start the text encoder and its way to the decoder so that texts differ and are heard.

    transformers' start is made for wide, pretrained encoders. In one this small every text came
    out alike and some fifty times weaker than what the decoder hears of itself: it learned music
    for 2,000 steps and never found out that there was a text.
    """
    encoder = network.text_encoder
    nn.init.normal_(encoder.shared.weight, std=1.0)
    for block in encoder.encoder.block:
        block.layer[0].SelfAttention.o.weight.data.mul_(0.3)
        block.layer[1].DenseReluDense.wo.weight.data.mul_(0.3)
    bridge = getattr(network, "enc_to_dec_proj", None)  # only between unequal widths
    if bridge is not None:
        nn.init.normal_(bridge.weight, std=bridge.in_features**-0.5)
    for layer in network.decoder.model.decoder.layers:
        nn.init.normal_(layer.encoder_attn.v_proj.weight, std=0.04)
        nn.init.normal_(layer.encoder_attn.out_proj.weight, std=0.04)
