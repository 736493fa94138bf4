"""Prior preservation: the base's own music of a class word, kept in mind while it learns a name.

DreamBooth (Ruiz et al. 2023, arXiv 2208.12242) trains on images that the untuned model made of the
class noun, so that the noun goes on meaning what it did; here they are codec tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from musictune import console
from musictune.data.concepts import TEMPLATES, Concept, plain
from musictune.data.tokens import TokenDataset
from musictune.files import publish_file, system_errors
from musictune.generation import Engine
from musictune.models.musicgen import MusicGen
from musictune.training.settings import TrainingSettings

_SEEDS = 1_000_000  # from those of previews, so that the two never share their luck


def prior_music(
    model: MusicGen, concepts: Sequence[Concept], settings: TrainingSettings, folder: Path
) -> list[TokenDataset]:
    """``settings.prior`` clips of each class word as the base makes them, a dataset per concept.

    They are made once and kept in ``folder/prior.safetensors``; a resumed run reads them there, and
    one that finds them missing or damaged makes the same ones again.

    Args:
        model: the untouched base.
        concepts: whose class words to play.
        settings: how many, how long, and their seed.
        folder: where to keep them.

    Raises:
        InputError: the folder cannot be written, or the base's scores are not numbers.
    """
    if not settings.prior:
        return []
    path = folder / "prior.safetensors"
    asked = [_prompts(concept, settings.prior) for concept in concepts]
    seconds = min(settings.seconds, model.max_seconds)
    key = f"{asked} {seconds} {settings.seed} {model.codec_key}"
    key = hashlib.sha256(key.encode()).hexdigest()
    codes = _read(path, key)
    if codes is None:
        codes = _made(model, [text for texts in asked for text in texts], seconds, settings.seed)
        with publish_file(path) as temporary, system_errors():
            save_file({"codes": codes.to(torch.int16)}, temporary, {"key": key})
    frames, size = codes.shape[-1], settings.prior
    return [
        TokenDataset(
            list(codes[place * size : (place + 1) * size].long()), [[text] for text in texts],
            frames, settings.seed + _SEEDS + place, settings.caption_dropout,
        )
        for place, texts in enumerate(asked)
    ]  # fmt: skip


def _prompts(concept: Concept, count: int) -> list[str]:
    """What a class word is called in training captions, without the concept's name."""
    named = [
        template.format(trigger=concept.trigger, class_word=concept.class_word)
        for template in TEMPLATES
    ]
    prompts = list(dict.fromkeys(plain(text, [concept]) for text in named))
    return [prompts[index % len(prompts)] for index in range(count)]


def _made(model: MusicGen, prompts: Sequence[str], seconds: float, seed: int) -> Tensor:
    """``(clips, codebooks, frames)``."""
    engine = Engine(model)
    with console.progress("prior clips", engine.steps(len(prompts), seconds)) as advance:
        batch, _ = engine.rollout(prompts, seconds, seed + _SEEDS, on_step=advance)
    return batch.codes.cpu()


def _read(path: Path, key: str) -> Tensor | None:
    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("key")
            return file.get_tensor("codes") if found == key else None
    except (OSError, SafetensorError):
        return None
