"""What a run plays as it goes: previews for people, and previews that are scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from musictune import audio
from musictune.audio import Clip
from musictune.data.concepts import Concept, plain
from musictune.generation import Engine
from musictune.methods.base import TuningMethod
from musictune.metrics.base import Reward
from musictune.models.musicgen import MusicGen
from musictune.training.best import Judges, scored_prompts
from musictune.training.material import Material
from musictune.training.recipe import Recipe


def preview_seconds(model: MusicGen, recipe: Recipe) -> float:
    """Length of a preview."""
    return min(recipe.training.preview_seconds, model.max_seconds)


def preview_prompts(recipe: Recipe, materials: Sequence[Material]) -> dict[str, str]:
    """What previews are asked for, by the ending of their names: a prompt per concept.

    A prompt of the recipe's own stands for all of them.
    """
    if recipe.run.prompt or len(materials) == 1:
        return {"": recipe.run.prompt or materials[0].prompt}
    return {f"-{m.concept.name}": m.prompt for m in materials if m.concept}


class Player:
    """Writes ``folder/NAME.wav``, or a file per concept, with one seed for all.

    Args:
        model: with ``method`` attached.
        method: what is tuned.
        recipe: the length, seed and concepts.
        prompts: what to play, by the ending of the file's name.
        folder: made when it is needed.
    """

    def __init__(
        self,
        model: MusicGen,
        method: TuningMethod,
        recipe: Recipe,
        prompts: dict[str, str],
        folder: Path,
    ) -> None:
        self.model = model
        self.method = method
        self.recipe = recipe
        self.prompts = prompts
        self.folder = folder

    def __call__(self, name: str) -> None:
        """Play all prompts; ``base`` is the base itself, asked with the class words."""
        if name != "base":
            self._write(name, list(self.prompts.values()))
            return
        concepts = self.recipe.concepts
        with self.method.disabled(self.model):
            self._write(name, [plain(prompt, concepts) for prompt in self.prompts.values()])

    def _write(self, name: str, prompts: Sequence[str]) -> None:
        self.folder.mkdir(exist_ok=True)
        seconds = preview_seconds(self.model, self.recipe)
        seeds = [self.recipe.training.seed] * len(prompts)
        _, made = Engine(self.model).rollout(prompts, seconds, seeds)
        for ending, clip in zip(self.prompts, made, strict=True):
            audio.write(clip, self.folder / f"{name}{ending}.wav")


def scored_previews(
    model: MusicGen, recipe: Recipe, captions: Sequence[Sequence[str]]
) -> Callable[[int], list[Clip]]:
    """What makes the previews that are scored, at a seed: as many for each concept, in turn.

    They carry what was asked as their caption, with class words for the concepts' names.

    Args:
        model: as it is when they are made.
        recipe: the prompts, how many seeds each, and the length.
        captions: of the clips of each lesson, to ask for where there is no concept.
    """
    concepts: list[Concept] = recipe.concepts
    asked: list[str] = []
    for place, texts in enumerate(captions):
        concept = concepts[place] if concepts else None
        prompts = scored_prompts(recipe.run.prompt, concept, texts)
        asked += [prompt for prompt in prompts for _ in range(recipe.training.score_seeds)]
    texts_read = [plain(prompt, concepts) for prompt in asked]
    seconds = preview_seconds(model, recipe)

    def play(seed: int) -> list[Clip]:
        _, made = Engine(model).rollout(asked, seconds, seed)
        return [replace(clip, caption=text) for clip, text in zip(made, texts_read, strict=True)]

    return play


def judged(judges: Judges, clips: Sequence[Sequence[Clip]]) -> tuple[Reward, Reward]:
    """Closeness to the clips of each lesson, and to the captions, of previews made in turn."""
    pairs = [judges(part) for part in clips]
    if len(pairs) == 1:
        return pairs[0]
    return _InTurn([close for close, _ in pairs]), pairs[0][1]


class _InTurn:
    """Each reward for its own share of the clips, in their order."""

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self.rewards = rewards

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        size = len(clips) // len(self.rewards)
        parts = [clips[at : at + size] for at in range(0, len(clips), size)]
        return torch.cat([r(part) for r, part in zip(self.rewards, parts, strict=True)])
