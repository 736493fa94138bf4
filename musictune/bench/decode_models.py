"""The models of `musictune bench decode`: the bundled one, and random ones of MusicGen's shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from musictune.console import quiet_transformers
from musictune.errors import InputError
from musictune.models.musicgen import MusicGen

CAPTION = "slow warm piano and strings in a calm minor key with soft drums"
"""The text of every clip: audiocraft listens to the padding of shorter ones, transformers not."""

_SEED = 0
_START = 2048  # what stands for start and padding: the id after the last code
_LONGEST = 1500  # frames that MusicGen was trained on


@dataclass(frozen=True)
class Shape:
    """A model's size.

    Attributes:
        layers, width, heads: of a decoder with random weights, which are as fast as real ones.
        base: a model that is there already, instead.
    """

    layers: int = 0
    width: int = 0
    heads: int = 0
    base: str = ""


SHAPES: dict[str, Shape] = {
    "toy": Shape(base="toy"),
    "mini": Shape(base="mini"),
    "mini-8x384": Shape(8, 384, 6),
    "small": Shape(24, 1024, 16),
    "medium": Shape(48, 1536, 24),
    "large": Shape(48, 2048, 32),
}


_SECONDS = 30.0


def find_shape(name: str) -> Shape:
    """The shape called ``name``.

    Raises:
        InputError: there is none.
    """
    if name not in SHAPES:
        raise InputError(f"--shape {name!r} is not known; give one of {', '.join(SHAPES)}")
    return SHAPES[name]


def build_model(shape: Shape, device: torch.device) -> MusicGen:
    """The model of ``shape`` in float32 on ``device``, the same weights at each call."""
    with quiet_transformers():
        if shape.base == "toy":
            model = MusicGen.toy()
        elif shape.base:
            model = MusicGen.load(shape.base)
            # Beyond what it was trained on a step takes no other time, and peers play 30 s.
            model.max_seconds = max(model.max_seconds, _SECONDS)
        else:
            model = _random_model(shape)
    return model.to(device).requires_grad_(False).eval()


def _random_model(shape: Shape) -> MusicGen:
    """A decoder of ``shape`` beside a codec of MusicGen's own shape.

    The text encoder has the real one's width in a single layer: it runs once per prompt, on every
    side alike.
    """
    from transformers import (
        EncodecModel,
        GenerationConfig,
        MusicgenConfig,
        MusicgenForConditionalGeneration,
        T5Config,
        T5EncoderModel,
    )
    from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig
    from transformers.models.musicgen.modeling_musicgen import MusicgenForCausalLM

    from musictune.models.toy import toy_tokenizer

    tokenizer = toy_tokenizer()
    special: dict[str, Any] = dict.fromkeys(
        ("pad_token_id", "bos_token_id", "decoder_start_token_id"), _START
    )
    text = T5Config(vocab_size=len(tokenizer), d_model=768, d_ff=3072, num_layers=1, num_heads=12)
    decoder = MusicgenDecoderConfig(
        vocab_size=_START,
        num_hidden_layers=shape.layers,
        hidden_size=shape.width,
        num_attention_heads=shape.heads,
        ffn_dim=4 * shape.width,
        is_decoder=True,
        add_cross_attention=True,
        **special,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(_SEED)
        codec = EncodecModel(_codec())
        network = MusicgenForConditionalGeneration(
            config=MusicgenConfig(text_encoder=text, audio_encoder=codec.config, decoder=decoder),
            text_encoder=T5EncoderModel(text),
            audio_encoder=codec,
            decoder=MusicgenForCausalLM(decoder),
        )
    network.generation_config = GenerationConfig(
        do_sample=True, guidance_scale=3.0, max_length=_LONGEST, **special
    )
    return MusicGen(network, tokenizer, "random")


def _codec() -> Any:
    """The shape of the 32 kHz EnCodec beside MusicGen: 50 frames per second, four codebooks."""
    from transformers import EncodecConfig

    return EncodecConfig(
        sampling_rate=32_000,
        target_bandwidths=[2.2],
        upsampling_ratios=[8, 5, 4, 4],
        num_filters=64,
        codebook_size=_START,
        codebook_dim=128,
        norm_type="weight_norm",
        use_causal_conv=False,
        use_conv_shortcut=False,
    )
