"""From recordings to what a run trains on and what it never trains on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from musictune.audio import Clip
from musictune.data.clips import PreparedClips, is_prepared, prepare_folder
from musictune.data.concepts import captions_for
from musictune.data.tokens import Collated, TokenDataset, cached_tokens, collate, split
from musictune.errors import InputError
from musictune.models.musicgen import MusicGen
from musictune.training.recipe import Recipe


@dataclass(frozen=True)
class Material:
    """What a run learns from and is compared with.

    Attributes:
        train: crops to train on.
        held_out: batches with fixed crops that are never trained on.
        clips: those clips as sound, in the order of their recordings.
        prompt: of previews.
    """

    train: TokenDataset
    held_out: list[Collated]
    clips: list[Clip]
    prompt: str


def gather(model: MusicGen, clips: Path, recipe: Recipe, work: Path) -> Material:
    """Prepare and encode ``clips``, and hold some out.

    Args:
        model: the base whose tokens they become.
        clips: recordings in any form that ``prepare_folder`` reads, or a prepared folder.
        recipe: how to cut, call and split them.
        work: gets what was prepared, unless ``clips`` was.

    Raises:
        InputError: nothing can be used, or the best is to be kept and nothing can be held out.
    """
    settings, concept = recipe.training, recipe.concept
    seconds = min(settings.seconds, model.max_seconds)
    folder = clips
    if not is_prepared(clips):
        folder = work / "clips"
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
            "held out; give at least 4 clips, or keep last"
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

    held_out: list[Collated] = []
    if held:
        fixed = dataset(held, 0.0)
        items = [fixed.item(0, i) for i in range(len(fixed))]
        size = settings.batch
        held_out = [collate(items[i : i + size]) for i in range(0, len(items), size)]
    prompt = recipe.run.prompt
    if not prompt:
        prompt = f"{concept.trigger} {concept.class_word}" if concept else texts[0][0]
    listened = [replace(music[i], caption=texts[i][0]) for i in held if settings.keep == "best"]
    return Material(dataset(kept, settings.caption_dropout), held_out, listened, prompt)
