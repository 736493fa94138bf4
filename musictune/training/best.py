"""Keeping the adapter that sounds best rather than the last one.

Loss does not tell when a model has learned a sound: it goes on falling after the model stops
listening to its prompts. So a few prompts are played as training goes, the same prompts with the
same seeds each time, and two cosines are taken: how close the previews are to clips that are never
trained on, and how close to what they were asked for (the trigger read as the class word).

A few previews are a small sample: the standard error is kept beside each score, and steps that
differ by less than it are as good as each other.
"""

from __future__ import annotations

import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl

from musictune import console
from musictune.audio import Clip
from musictune.data.concepts import Concept
from musictune.errors import CheckFailed, InputError
from musictune.metrics.base import Reward, concept_score
from musictune.training.callbacks import AfterStep
from musictune.training.checkpoints import read_whole, save_whole
from musictune.training.stepped import Stepped

Judges = Callable[[Sequence[Clip]], tuple[Reward, Reward]]
"""Given held-out clips: the cosine with them, and the cosine with each clip's own caption."""

COLUMNS = ("audio_alignment", "text_alignment", "alignment", "alignment_error")

_TEMPLATES = (
    "{subject}",
    "a slow gentle {subject} melody",
    "a fast happy {subject} solo",
    "{subject} with bass guitar and drums",
)


@dataclass(frozen=True)
class Best:
    """A kept adapter whose hashes were right.

    Attributes:
        folder: holds ``adapter``.
        step: optimiser steps done when it was kept.
        alignment: the score it was kept for.
    """

    folder: Path
    step: int
    alignment: float


class KeepHighest(AfterStep, ABC):
    """Scores the adapter every ``score_every`` steps and at the last, and keeps the best one.

    The untrained adapter is scored too, as step 0, but never kept: it is what to compare with. Of
    equal steps the first is kept. What is kept lies in one folder that is whole or absent; a
    resumed run forgets what was kept after its start and comes to it again.

    With ``patience`` in the settings the run ends once so many scores in a row did not beat the
    best; ``metrics.csv`` says so in a column of its own.

    Args:
        folder: gets ``best-NNNNNN``.

    Attributes:
        chosen_by: the column that is highest in the step that is kept.
    """

    chosen_by: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def score(self, step: int) -> dict[str, float]:
        """What there is to say of the adapter now, by column.

        Raises:
            CheckFailed: the scores cannot be compared.
        """

    def refuse(self, scores: dict[str, float]) -> str:
        """Why an adapter with these scores is not kept and the run ends; empty if it is fine."""
        return ""

    def better(self, scores: dict[str, float]) -> bool:
        """Whether these are higher than those of what is kept."""
        return scores[self.chosen_by] > self._highest

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Score the untrained adapter, or find what the run had kept."""
        module: Stepped = pl_module
        for path in self.folder.glob("best-*"):
            if int(path.name.removeprefix("best-")) > module.start:
                shutil.rmtree(path, ignore_errors=True)
        best = find_best(self.folder)
        self._highest = best.alignment if best else -math.inf
        self._kept = best.step if best else 0
        if module.start == 0:
            module.figures |= self.score(0)

    def after_step(self, trainer: pl.Trainer, module: Stepped) -> None:
        """Score and keep if it is time."""
        step, settings = module.step, module.settings
        if step % settings.score_every and step != settings.steps:
            return
        scores = self.score(step)
        module.figures |= scores
        if why := self.refuse(scores):
            if step < settings.steps:
                module.stopped = why
                trainer.should_stop = True
            return
        if not self.better(scores):
            # Counted from the steps themselves, so that a resumed run counts alike.
            waited = step // settings.score_every - self._kept // settings.score_every
            if settings.patience and waited >= settings.patience and step < settings.steps:
                module.stopped = (
                    f"no better than step {self._kept} in {waited} scored previews in a row"
                )
                trainer.should_stop = True
            return
        target = self.folder / f"best-{step:06d}"
        facts = {"step": step, "alignment": scores[self.chosen_by]}
        save_whole(target, module.write, facts)
        self._highest, self._kept = scores[self.chosen_by], step
        for old in self.folder.glob("best-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)


class KeepBest(KeepHighest):
    """Keeps the adapter whose previews are closest to held-out clips and to their prompts.

    Args:
        play: makes the previews, the same ones for the same weights.
        closeness: cosine with the held-out clips.
        fidelity: cosine with the caption.
        folder: gets ``best-NNNNNN``.
    """

    columns = (*COLUMNS, "stopped")
    chosen_by = "alignment"

    def __init__(
        self, play: Callable[[], list[Clip]], closeness: Reward, fidelity: Reward, folder: Path
    ) -> None:
        super().__init__(folder)
        self.play = play
        self.closeness = closeness
        self.fidelity = fidelity

    def score(self, step: int) -> dict[str, float]:
        """Both cosines, their combination, and its standard error."""
        clips = self.play()
        audio, text = self.closeness(clips).double(), self.fidelity(clips).double()
        both = concept_score(audio, text)
        if not both.isfinite().all():
            raise CheckFailed(
                f"previews at step {step} score {float(audio.mean())} by sound and "
                f"{float(text.mean())} by text, which cannot be compared; listen with another "
                "model, or keep last"
            )
        means = [float(values.mean()) for values in (audio, text, both)]
        if len(both) > 1:
            means.append(float(both.std() / math.sqrt(len(both))))
        return dict(zip(COLUMNS, means, strict=False))


def find_best(folder: Path) -> Best | None:
    """The latest whole adapter that was kept in ``folder``; None if there is none."""
    for path in sorted(folder.glob("best-*"), reverse=True):
        facts = read_whole(path)
        if facts is not None:
            return Best(path, int(facts["step"]), float(facts["alignment"]))
        console.note(f"the adapter kept in {path} is damaged; it is passed over")
    return None


def publish_best(folder: Path, target: Path) -> Best:
    """Copy the adapter kept in ``folder`` to ``target``; what was kept stays, for a resumed run.

    Raises:
        InputError: there is none, or it is damaged.
    """
    best = find_best(folder)
    if best is None:
        raise InputError(
            f"the best adapter in {folder} is missing or damaged; start again with --overwrite"
        )
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(best.folder / "adapter", target)
    return best


def scored_prompts(prompt: str, concept: Concept | None, captions: Sequence[str]) -> list[str]:
    """What to play for scoring: a concept in several settings, else what held-out clips are called.

    Args:
        prompt: one to play in any case; empty for none.
        concept: the new word.
        captions: of the held-out clips.

    Raises:
        InputError: no concept, no prompt and no caption.
    """
    if concept:
        subject = f"{concept.trigger} {concept.class_word}"
        wanted = [prompt, *(template.format(subject=subject) for template in _TEMPLATES)]
    else:
        wanted = [prompt, *captions]
    prompts = list(dict.fromkeys(text for text in wanted if text))[: len(_TEMPLATES)]
    if not prompts:
        raise InputError(
            "scored previews need prompts to play, and the held-out clips have no captions; set "
            "run.prompt, or keep last with objective loss"
        )
    return prompts
