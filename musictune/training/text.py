"""A small tokeniser and text encoder for the bundled base, made from its captions."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerFast

# Words that people type and captions may not have: split less finely when they are known.
_MORE_WORDS = """
a an the and or with without no of in at by for on from like over under into then plus but very
music song track piece tune melody theme loop riff groove beat rhythm harmony chord chords
arpeggio scale solo duo trio band ensemble orchestra instrumental recording performance played
playing sound sounds sounding style genre mood slow fast quick lively gentle soft loud quiet dark
bright warm cold sad happy melancholic joyful energetic calm relaxed dreamy epic dramatic romantic
mysterious playful tense aggressive smooth heavy light simple complex minimal acoustic electric
electronic synthetic vintage modern classic cinematic ambient lo-fi lofi chill upbeat downtempo
major minor sharp flat bpm tempo key time signature verse chorus bridge intro outro ending morning
night rain summer winter ocean forest city space dream dance film game children wedding church
"""


def train_tokenizer(
    captions: Iterable[str], vocabulary: int, *, first: str | None = None
) -> PreTrainedTokenizerFast:
    """A lower-casing byte-level BPE tokeniser that can spell any text.

    Args:
        captions: what it learns from.
        vocabulary: how many tokens.
        first: a token put before every text (CLAP's text tower pools its first position).
    """
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<unk>"] + ([first] if first else [])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    numbers = " ".join(str(n) for n in range(40, 221))
    tokenizer.train_from_iterator([*captions, *([_MORE_WORDS, numbers] * 20)], trainer)
    template = f"{first} $A </s>" if first else "$A </s>"
    names = [name for name in (first, "</s>") if name]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(n, tokenizer.token_to_id(n)) for n in names]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token=first,
        model_max_length=128,
    )
