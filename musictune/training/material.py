"""From recordings to what a run trains on and what it never trains on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from musictune.audio import Clip
from musictune.data.clips import PreparedClips, is_prepared, prepare_folder
from musictune.data.concepts import Concept, captions_for
from musictune.data.tokens import Collated, TokenDataset, cached_tokens, collate, split
from musictune.errors import InputError
from musictune.models.musicgen import MusicGen
from musictune.training.recipe import Recipe


@dataclass(frozen=True)
class Material:
    """What a lesson is learned from and compared with.

    Attributes:
        concept: what it teaches.
        train: crops to train on.
        held_out: batches with fixed crops that are never trained on.
        learned: the clips trained on as sound; only where the objective is to sound like them.
        clips: those held out as sound, in the order of their recordings; only to keep the best.
        prompt: calls for it.
    """

    concept: Concept | None
    train: TokenDataset
    held_out: list[Collated]
    learned: list[Clip]
    clips: list[Clip]
    prompt: str


def gather(model: MusicGen, clips: Path | None, recipe: Recipe, work: Path) -> list[Material]:
    """Prepare and encode the clips of each lesson, and hold some of each out.

    Args:
        model: the base whose tokens they become.
        clips: recordings in any form that ``prepare_folder`` reads, or a prepared folder; None
            where each concept names its own.
        recipe: how to cut, call and split them.
        work: gets what was prepared, unless the clips were.

    Raises:
        InputError: a lesson without clips, nothing in them can be used, or the best is to be kept
            and nothing can be held out.
    """
    lessons = recipe.lessons
    found = []
    for lesson in lessons:
        place = lesson.clips or clips
        if place is None:
            raise InputError("no CLIPS given; name a recording, a folder or a manifest")
        name = lesson.concept.name if lesson.concept and len(lessons) > 1 else ""
        found.append(_gather_one(model, place, lesson.concept, recipe, work, name))
    return found


def _gather_one(
    model: MusicGen, clips: Path, concept: Concept | None, recipe: Recipe, work: Path, name: str
) -> Material:
    settings = recipe.training
    seconds = min(settings.seconds, model.max_seconds)
    folder = clips
    if not is_prepared(clips):
        folder = work / "clips" / name
        if not is_prepared(folder):
            prepare_folder(
                clips, folder, sample_rate=model.sample_rate, seconds=seconds,
                channels=model.channels, concept=concept, overwrite=True,
            )  # fmt: skip
    music = PreparedClips(folder)
    texts, sources = [], []
    for clip in music:
        texts.append(captions_for(clip.caption, concept, settings.captions, settings.seed))
        sources.append(clip.source)
    kept, held = split(len(music), settings.held_out, settings.seed, sources)
    if settings.keep == "best" and not held:
        raise InputError(
            f"keep best compares previews with held-out clips, and of {len(music)} none can be "
            f"held out; give at least 4 clips{f' of {name}' if name else ''}, or keep last"
        )
    # A folder that somebody prepared is only read, unless it holds tokens already.
    shared = folder / "tokens"
    cache = shared if shared.is_dir() or folder != clips else work / "tokens"
    codes = cached_tokens(music, model.encode, model.codec_key, cache)
    frames = model.frames(seconds)

    def dataset(chosen: list[int], dropout: float) -> TokenDataset:
        return TokenDataset(
            [codes[i] for i in chosen], [texts[i] for i in chosen], frames, settings.seed, dropout
        )

    def sound(chosen: list[int], wanted: bool) -> list[Clip]:
        return [replace(music[i], caption=texts[i][0]) for i in chosen if wanted]

    held_out: list[Collated] = []
    if held:
        fixed = dataset(held, 0.0)
        items = [fixed.item(0, i) for i in range(len(fixed))]
        size = settings.batch
        held_out = [collate(items[i : i + size]) for i in range(0, len(items), size)]
    return Material(
        concept,
        dataset(kept, settings.caption_dropout),
        held_out,
        sound(kept, settings.objective == "alignment"),
        sound(held, settings.keep == "best"),
        f"{concept.trigger} {concept.class_word}" if concept else texts[0][0],
    )
