"""What all cells of one concept share, and the music that models make of prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from musictune import console
from musictune.audio import Clip
from musictune.bench.asked import concept_digest
from musictune.bench.concept_set import BenchConcept
from musictune.bench.copying import CopyCheck
from musictune.data.clips import PreparedClips, is_prepared, prepare_folder, read_clips
from musictune.data.concepts import Concept
from musictune.data.tokens import cached_tokens
from musictune.errors import InputError
from musictune.generation import Engine
from musictune.methods.concept_tokens import ConceptTokens
from musictune.metrics.alignment import audio_alignment, text_alignment
from musictune.metrics.diversity import self_similarity
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.frechet import frechet_score
from musictune.models.musicgen import MusicGen

PER_CLIP = ("audio_alignment", "text_alignment")
_PREPARED_SECONDS = 10.0


@dataclass(frozen=True)
class Music:
    """Clips with the codec tokens they were decoded from, each ``(codebooks, frames)``."""

    clips: list[Clip]
    codes: list[Tensor]


@dataclass(frozen=True)
class Material:
    """A concept ready to be learned and measured.

    Attributes:
        concept: what it is.
        word: the concept as the model is to know it.
        prepared: folder of its clips, cut and with codec tokens.
        held_out: embeddings of clips never trained on, per clip ``(windows, dim)``.
        copies: finds excerpts of the training clips.
    """

    concept: BenchConcept
    word: Concept
    prepared: Path
    held_out: list[Tensor]
    copies: CopyCheck


def read_material(
    concept: BenchConcept, word: Concept, model: MusicGen, embedder: ClapEmbedder, cache: Path
) -> Material:
    """Cut and tokenise the reference, listen to it and to the held-out clips.

    Args:
        word: as it is learned.
        model: the base; its codec makes the tokens.
        embedder: what hears.
        cache: folder in which the prepared clips are kept.

    Raises:
        InputError: audio that cannot be used, or a folder that cannot be written.
    """
    console.say(f"{concept.name}: reading its clips")
    seconds = min(_PREPARED_SECONDS, model.max_seconds)
    key = f"{concept_digest(concept)} {word} {model.codec_key} {seconds} {model.sample_rate}"
    folder = cache / f"{concept.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def tokenize(clips: Sequence[Clip], place: Path) -> None:
        cached_tokens(clips, model.encode, model.codec_key, place)

    if not is_prepared(folder):
        prepare_folder(
            concept.reference, folder, sample_rate=model.sample_rate, seconds=seconds,
            channels=model.channels, concept=word, on_silence=False, tokenize=tokenize,
            overwrite=True,
        )  # fmt: skip
    training = PreparedClips(folder)
    codes = cached_tokens(training, model.encode, model.codec_key, folder / "tokens")
    held_out = read_clips(concept.heldout)
    held_out_codes = [model.encode([clip]).codes[0].cpu() for clip in held_out]
    console.say(f"{concept.name}: listening to its clips")
    return Material(
        concept,
        word,
        folder,
        embedder.audio(held_out),
        CopyCheck(embedder, model.frame_rate, list(training), codes, held_out, held_out_codes),
    )


def learnable_word(model: MusicGen, concept: BenchConcept) -> Concept:
    """The concept under its own name, or under another where the base knows that word already.

    Raises:
        InputError: neither can be used.
    """
    word = Concept(concept.name, concept.class_word)
    try:
        ConceptTokens([word]).check(model)
    except InputError:
        word = Concept(f"{concept.name[:27]}_new", concept.class_word)
        ConceptTokens([word]).check(model)
    return word


def play(
    model: MusicGen, prompts: Sequence[str], texts: Sequence[str], seconds: float, first_seed: int
) -> Music:
    """Music for each prompt, with a seed of its own, captioned with what a judge reads.

    Args:
        model: with its adapters in it.
        prompts: what the model reads.
        texts: what a judge of text reads.
        seconds: length of each clip.
        first_seed: of the first prompt; each next one has one more.
    """
    engine = Engine(model)
    with console.progress("making music", engine.steps(len(prompts), seconds)) as advance:
        batch, clips = engine.rollout(prompts, seconds, first_seed, on_step=advance)
    captioned = [replace(clip, caption=text) for clip, text in zip(clips, texts, strict=True)]
    return Music(captioned, list(batch.codes.cpu()))


def alignments(
    embedder: ClapEmbedder, made: Sequence[Tensor], texts: Sequence[str], held_out: Sequence[Tensor]
) -> dict[str, list[float]]:
    """Per clip its cosine with the held-out clips and with its own text.

    Args:
        made: embeddings per clip ``(windows, dim)``.
    """
    return {
        "audio_alignment": audio_alignment(made, held_out).tolist(),
        "text_alignment": text_alignment(embedder.text(texts), made).tolist(),
    }


def set_scores(
    per_clip: dict[str, list[float]], made: Sequence[Tensor], held_out: Sequence[Tensor]
) -> dict[str, float | None]:
    """Mean alignments, Fréchet distance to the held-out clips, and self-similarity of a set.

    None where a set is too small for a score.
    """
    scores: dict[str, float | None] = {
        name: float(torch.tensor(values, dtype=torch.float64).mean())
        for name, values in per_clip.items()
    }
    for name, measure in (
        ("frechet_distance", lambda: frechet_score(made, held_out)),
        ("self_similarity", lambda: self_similarity(made)),
    ):
        try:
            scores[name] = measure().value
        except InputError:
            scores[name] = None
    return scores
