"""What all cells of one concept share, and the music that models make of prompts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from musictune import audio, console
from musictune.audio import Clip
from musictune.bench.asked import Method, concept_digest
from musictune.bench.cells import claimed
from musictune.bench.concept_set import BenchConcept
from musictune.bench.copying import CopyCheck
from musictune.data.clips import PreparedClips, is_prepared, prepare_folder, read_clips
from musictune.data.concepts import Concept, captions_for, plain
from musictune.data.sources import discover
from musictune.data.tokens import cached_tokens
from musictune.errors import InputError
from musictune.generation import Engine
from musictune.methods.concept_tokens import ConceptTokens
from musictune.metrics.alignment import audio_alignment, text_alignment
from musictune.metrics.diversity import self_similarity
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.frechet import frechet_score
from musictune.models.base import Batch, MusicModel
from musictune.models.musicgen import MusicGen

PER_CLIP = ("audio_alignment", "text_alignment")
SEEDS_APART = 10_000
"""Between the first clips of two seeds, so that none is made with the luck of another's."""

_PREPARED_SECONDS = 10.0
_SHORTEST = 1.0  # seconds; less says nothing about music
_TOGETHER = 8  # clips in one forward pass


@dataclass(frozen=True)
class Music:
    """Clips with the codec tokens they were decoded from, each ``(codebooks, frames)``."""

    clips: list[Clip]
    codes: list[Tensor]


@dataclass(frozen=True)
class Unheard:
    """Clips of a concept that were never trained on, to take the loss of.

    Attributes:
        codes: per clip ``(codebooks, frames)``.
        tuned, plain: what is said of each: with the trigger, and with the class word alone.
    """

    codes: list[Tensor]
    tuned: list[str]
    plain: list[str]

    @classmethod
    def of(cls, clips: Sequence[Clip], codes: Sequence[Tensor], word: Concept) -> Unheard:
        """Clips under their first captions."""
        tuned = [captions_for(clip.caption, word, 1, 0)[0] for clip in clips]
        return cls(list(codes), tuned, [plain(text, [word]) for text in tuned])

    def losses(self, model: MusicGen, *, tuned: bool) -> list[float]:
        """Nats per token of each clip; only a ``tuned`` model is told the trigger."""
        return losses(model, self.tuned if tuned else self.plain, self.codes)


@dataclass(frozen=True)
class Material:
    """A concept ready to be learned and measured.

    Attributes:
        concept: what it is.
        word: the concept as the model is to know it.
        prepared: folder of its clips, cut and with codec tokens.
        held_out: embeddings of clips never trained on, per clip ``(windows, dim)``.
        unheard: those clips as the model reads them.
        copies: finds excerpts of the training clips.
    """

    concept: BenchConcept
    word: Concept
    prepared: Path
    held_out: list[Tensor]
    unheard: Unheard
    copies: CopyCheck


def read_material(
    concept: BenchConcept,
    word: Concept,
    model: MusicGen,
    embedder: ClapEmbedder,
    cache: Path,
    reference_seconds: float | None = None,
) -> Material:
    """Cut and tokenise the reference, listen to it and to the held-out clips.

    Args:
        word: as it is learned.
        model: the base; its codec makes the tokens.
        embedder: what hears.
        cache: folder in which the prepared clips are kept.
        reference_seconds: how much of the reference is there to learn from; all if None.

    Raises:
        InputError: audio that cannot be used, or a folder that cannot be written.
    """
    amount = f" ({reference_seconds:g} s)" if reference_seconds else ""
    console.say(f"{concept.name}: reading its clips{amount}")
    seconds = min(_PREPARED_SECONDS, model.max_seconds)
    key = f"{concept_digest(concept)} {word} {model.codec_key} {seconds} {model.sample_rate}"
    if reference_seconds:
        key += f" {reference_seconds:g}"
    folder = cache / f"{concept.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def tokenize(clips: Sequence[Clip], place: Path) -> None:
        cached_tokens(clips, model.encode, model.codec_key, place)

    with claimed(folder), _beginning(concept.reference, reference_seconds) as reference:
        if not is_prepared(folder):
            prepare_folder(
                reference, folder, sample_rate=model.sample_rate, seconds=seconds,
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
        Unheard.of(held_out, [row[:, : model.frames(seconds)] for row in held_out_codes], word),
        CopyCheck(embedder, model.frame_rate, list(training), codes, held_out, held_out_codes),
    )


def check_reference(concept: BenchConcept, method: Method) -> None:
    """Refuse a method that is to learn from more of the reference than there is.

    Raises:
        InputError: it is, or a file cannot be used.
    """
    if method.reference_seconds is None:
        return
    length = sum(audio.info(source.path).seconds for source in discover(concept.reference))
    if method.reference_seconds > length + 0.5:
        raise InputError(
            f"method {method.text!r}: concept {concept.name} has only {length:g} seconds to learn "
            f"from; choose a smaller reference.seconds, or leave it out"
        )


@contextlib.contextmanager
def _beginning(reference: Path, seconds: float | None) -> Iterator[Path]:
    """A folder with the first ``seconds`` of audio and their captions; the folder itself if None.

    Half a clip is taken rather than none, so that equal numbers are equal lengths.
    """
    if seconds is None:
        yield reference
        return
    with tempfile.TemporaryDirectory() as name:
        folder, left = Path(name), seconds
        lines: list[str] = []
        for clip in read_clips(reference):
            if left < _SHORTEST:
                break
            clip = clip.crop(0, min(left, clip.seconds))
            left -= clip.seconds
            row = {"file_name": f"{len(lines):06d}.flac", "text": clip.caption}
            audio.write(clip, folder / row["file_name"])
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
        yield folder


@torch.no_grad()
def losses(model: MusicModel, texts: Sequence[str], codes: Sequence[Tensor]) -> list[float]:
    """Nats per token of each clip's true tokens under what is said of it.

    Args:
        model: in evaluation mode.
        texts: one for each clip.
        codes: per clip ``(codebooks, frames)``.
    """
    found: list[float] = []
    for first in range(0, len(texts), _TOGETHER):
        rows = list(codes[first : first + _TOGETHER])
        lengths = torch.tensor([row.shape[1] for row in rows])
        longest = int(lengths.max())
        padded = [torch.nn.functional.pad(row, (0, longest - row.shape[1])) for row in rows]
        together = tuple(texts[first : first + _TOGETHER])
        found += model.nll(Batch(torch.stack(padded), lengths, together)).tolist()
    return found


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
