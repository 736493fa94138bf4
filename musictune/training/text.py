"""A small tokeniser and text encoder for the bundled base, made from its captions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerFast

from musictune import console

if TYPE_CHECKING:
    from musictune.training.pretrain import Corpus

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


def facts(row: dict[str, Any]) -> set[str]:
    """What the composer knows of a clip, as names of things that are so.

    Args:
        row: a line of the corpus's ``metadata.jsonl``.
    """
    known = {f"instrument {name}" for name in row.get("instruments", [])}
    known |= {f"lead {row.get('lead_family')}", f"style {row.get('style')}"}
    known |= {f"texture {row.get('texture')}", f"mode {str(row.get('key'))[-5:]}"}
    known |= {f"metre {row.get('metre')}"} | {f"mood {mood}" for mood in row.get("moods", [])}
    if tempo := row.get("tempo"):
        known.add(f"tempo {int(tempo) // 20 * 20}")
    if row.get("has_drums"):
        known.add("drums")
    return known


def fact_table(rows: Iterable[dict[str, Any]]) -> tuple[torch.Tensor, list[str]]:
    """``(clips, facts)`` of zeros and ones, and the facts' names."""
    sets = [facts(row) for row in rows]
    names = sorted({name for known in sets for name in known})
    return torch.tensor([[float(name in known) for name in names] for known in sets]), names


def teach_facts(
    encoder: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    steps: int,
    seed: int,
    batch_size: int = 96,
) -> None:
    """Let a text encoder tell from captions what the composer knows of their clips.

    MusicGen's text encoder comes pretrained; one that starts from nothing beside the decoder
    finds out so slowly what matters in a text that the decoder has stopped listening by then.
    Besides the facts it tells the key and the tempo, in steps of 4 %, from the mean of its
    states.
    """
    table, names = fact_table(corpus.rows)
    keys = sorted({str(row.get("key")) for row in corpus.rows})
    key = torch.tensor([keys.index(str(row.get("key"))) for row in corpus.rows])
    tempi = torch.tensor([float(row.get("tempo") or 100.0) for row in corpus.rows])
    centres = 40 * 1.04 ** torch.arange(48)
    near = torch.softmax(-(((tempi[:, None] / centres).log() / 0.04) ** 2), -1)
    torch.manual_seed(seed)
    ask = nn.Linear(encoder.config.d_model, len(names) + len(keys) + len(centres))
    weights = [*encoder.parameters(), *ask.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    with console.progress("captions", steps) as advance:
        for step in range(steps):
            rng = np.random.default_rng((seed, 1, step))
            chosen = rng.integers(len(corpus.rows), size=batch_size)
            texts = []
            for index in chosen:
                captions = corpus.captions(int(index))
                texts.append(captions[int(rng.integers(len(captions)))])
            tokens = tokenizer(texts, padding=True, return_tensors="pt")
            mask = tokens["attention_mask"]
            states = encoder(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
            mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            known, tonic, tempo = ask(mean).split([len(names), len(keys), len(centres)], -1)
            index = torch.from_numpy(chosen)
            loss = 20 * F.binary_cross_entropy_with_logits(known, table[index])
            loss = loss + F.cross_entropy(tonic, key[index]) + F.cross_entropy(tempo, near[index])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            advance(1, f"loss {loss.item():.3f}")
