"""Random small parts of a MusicGen, built offline in a moment: for tests and dry runs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    EncodecConfig,
    EncodecModel,
    GenerationConfig,
    MusicgenConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)
from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig
from transformers.models.musicgen.modeling_musicgen import MusicgenForCausalLM
from transformers.models.musicgen_melody.configuration_musicgen_melody import (
    MusicgenMelodyDecoderConfig,
)
from transformers.models.musicgen_melody.modeling_musicgen_melody import MusicgenMelodyForCausalLM

from musictune.console import quiet_transformers

CODEBOOK = 64
"""Entries per codebook; the id after the last stands for start and padding."""

_SPECIAL: dict[str, Any] = dict.fromkeys(
    ("pad_token_id", "bos_token_id", "decoder_start_token_id"), CODEBOOK
)
_WORDS = """
a an and the in of with for at by on to by music song track piece tune melody rhythm beat bass
piano guitar violin cello flute organ drums drum strings brass choir synth bell harp orchestra
slow fast calm bright dark soft loud warm gentle happy sad heavy light major minor key tempo bpm
solo jazz rock pop folk classical ambient electronic style sound instrument recording playing
. , : ! ? - < > 0 1 2 3 4 5 6 7 8 9
"""


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """Words, case-folded, each text closed by an end token as T5's is."""
    special = ["<pad>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(special + _WORDS.split()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=128,
    )


def _built_once(build: Callable[[int, int], Any]) -> Callable[[int, int], Any]:
    """Copies of what ``build`` makes: a copy takes a fifth of the time."""
    built = functools.cache(build)

    @functools.wraps(build)
    def copied(vocabulary: int, channels: int) -> Any:
        return copy.deepcopy(built(vocabulary, channels))

    return copied


@_built_once
def toy_network(vocabulary: int, channels: int) -> MusicgenForConditionalGeneration:
    """A MusicGen whose text encoder is narrower than its decoder, as the real ones are.

    Args:
        vocabulary: size of the tokenizer's.
        channels: 1, or 2 for a stereo decoder.
    """
    with quiet_transformers(), torch.random.fork_rng([]):
        torch.manual_seed(0)
        text, codec, encodec = _ends(vocabulary)
        decoder = MusicgenDecoderConfig(**_decoder(channels), add_cross_attention=True)
        network = MusicgenForConditionalGeneration(
            config=MusicgenConfig(
                text_encoder=text, audio_encoder=codec, decoder=decoder, initializer_factor=0.3
            ),
            text_encoder=T5EncoderModel(text),
            audio_encoder=encodec,
            decoder=MusicgenForCausalLM(decoder),
        )
    return _ready(network)


@_built_once
def toy_melody_network(vocabulary: int, channels: int) -> MusicgenMelodyForConditionalGeneration:
    """The same with a decoder that reads melody and text as the beginning of its sequence.

    Args:
        vocabulary: size of the tokenizer's.
        channels: 1, or 2 for a stereo decoder.
    """
    with quiet_transformers(), torch.random.fork_rng([]):
        torch.manual_seed(0)
        text, codec, encodec = _ends(vocabulary)
        decoder = MusicgenMelodyDecoderConfig(**_decoder(channels))
        network = MusicgenMelodyForConditionalGeneration(
            config=MusicgenMelodyConfig(
                text_encoder=text,
                audio_encoder=codec,
                decoder=decoder,
                chroma_length=16,
                initializer_factor=0.3,
            ),
            text_encoder=T5EncoderModel(text),
            audio_encoder=encodec,
            decoder=MusicgenMelodyForCausalLM(decoder),
        )
    return _ready(network)


def _ends(vocabulary: int) -> tuple[T5Config, EncodecConfig, EncodecModel]:
    """What is before and after the decoder."""
    text = T5Config(
        vocab_size=vocabulary,
        d_model=12,
        d_kv=6,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    codec = EncodecConfig(
        sampling_rate=16_000,
        target_bandwidths=[1.2],  # four codebooks of six bits at 50 frames per second
        upsampling_ratios=[8, 8, 5],
        codebook_size=CODEBOOK,
        hidden_size=8,
        num_filters=2,
        num_lstm_layers=1,
        kernel_size=3,
        last_kernel_size=3,
    )
    encodec = EncodecModel(codec)
    _open_ears(encodec)
    return text, codec, encodec


def _decoder(channels: int) -> dict[str, Any]:
    return dict(
        vocab_size=CODEBOOK,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=32,
        num_codebooks=4 * channels,
        audio_channels=channels,
        max_position_embeddings=512,
        # The usual 0.02 makes so small a network deaf to its text and its own past.
        initializer_factor=0.3,
        is_decoder=True,
        **_SPECIAL,
    )


def _ready(network: Any) -> Any:
    network.generation_config = GenerationConfig(
        do_sample=True, guidance_scale=3.0, max_length=500, **_SPECIAL
    )
    return network.eval()


@torch.no_grad()
def _open_ears(codec: EncodecModel) -> None:
    """Make the tokens follow the sound: as built, biases drown it and all entries are zero."""
    for name, weight in codec.named_parameters():
        if name.endswith("bias"):
            weight.zero_()
    loudness = torch.logspace(-2, 0, 8)[:, None, None]
    rest = codec.encoder(torch.randn(8, 1, 16_000) * loudness).transpose(1, 2).flatten(0, 1)
    for layer in codec.quantizer.layers:
        layer.codebook.embed.copy_(rest[torch.randperm(len(rest))[:CODEBOOK]])
        rest = rest - layer.codebook.embed[torch.cdist(rest, layer.codebook.embed).argmin(-1)]
    made = codec.decode(torch.randint(CODEBOOK, (1, 1, len(codec.quantizer.layers), 50)), [None])
    # The magnitude of a weight-normalised layer: brings what it says to a hearable level.
    codec.decoder.layers[-1].conv.parametrizations.weight.original0 *= 0.2 / made[0].std()
