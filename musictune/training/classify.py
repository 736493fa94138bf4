"""Teaching an audio encoder labels: clips in, a folder with an adapter and its figures out."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from musictune import console
from musictune.data.heard import hear_all
from musictune.data.labelled import Example, LabelledClips, Split, read_labelled, targets
from musictune.data.splits import few_shot, k_folds, split
from musictune.errors import InputError
from musictune.files import publish_folder
from musictune.methods import attach_adapter, save_adapter
from musictune.methods.base import TuningMethod
from musictune.methods.tuned_classifier import OWN_BASE
from musictune.metrics.base import NotComputed, Score
from musictune.metrics.classification import classification_scores, confusion
from musictune.metrics.confusion_plot import draw_confusion
from musictune.models.classifier import Classifier
from musictune.training.best import publish_best
from musictune.training.callbacks import read_metrics
from musictune.training.checkpoints import Checkpoint, load_checkpoint
from musictune.training.classify_card import draw_learning, write_card
from musictune.training.classify_recipe import ClassifyRecipe
from musictune.training.classifying import Classifying, KeepMostAccurate
from musictune.training.labelled_stream import LabelledStream, fixed_batches
from musictune.training.loop import fit
from musictune.training.masking import PatchMasking
from musictune.training.run import peak_memory, stopped, summary
from musictune.training.run_folder import Result, check_run, published
from musictune.training.unfused import warm_up

_LONGEST = 60.0  # seconds kept of a training clip, of which crops are drawn

Facts = dict[str, Any]
Sounds = dict[Example, Tensor]
"""What an encoder's front end heard of examples."""


@dataclass(frozen=True)
class Heard:
    """Clips as the encoder hears them, with what they are."""

    examples: tuple[Example, ...]
    sounds: list[Tensor]
    targets: Tensor


def tune_classifier(
    recipe: ClassifyRecipe,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    clips: LabelledClips | None = None,
    sounds: Sounds | None = None,
    callbacks: Sequence[pl.Callback] = (),
    report: bool = True,
) -> Result:
    """Tune the recipe's base on its labelled clips and publish the run as ``out``.

    With folds, ``out`` holds a run for each and the mean over them in ``results.json``.

    Args:
        recipe: what to do.
        out: the run's folder.
        device: ``cpu``, ``cuda`` or ``auto``.
        resume: go on from the newest checkpoint.
        overwrite: replace ``out`` and an interrupted run.
        clips: in place of reading those that the recipe names.
        sounds: what was heard of them by the same base already; what is heard now is added.
        callbacks: for the training loop.
        report: also draw its curves and write the card.

    Raises:
        InputError: bad clips or output, or a method that does not fit the base.
        CheckFailed: a loss or gradient was no number.
        Interrupted: stopped on request; ``resume`` goes on.
    """
    run, out = recipe.run, out.absolute()
    if clips is None and not run.clips:
        raise InputError("no CLIPS given; name a folder of labelled clips, or a CSV")
    reads = [run.clips] * bool(run.clips) + [run.base] * (run.base != "mini")
    check_run(out, recipe.text, reads, resume=resume, overwrite=overwrite)
    known = clips or read_labelled(run.clips, run.layout)
    parts = _parts(known, recipe)
    for part in parts:
        _shots(part, recipe)  # refuses what there is too little of, before anything is loaded
    model = Classifier.load(run.base, device, run.seconds)
    recipe.with_head(known.labels, known.multi_label).check(model)

    heard: Sounds = {} if sounds is None else sounds

    def work_on(work: Path) -> Facts:
        if len(parts) == 1:
            return _tune(model, known, parts[0], heard, recipe, work, resume, callbacks, report)
        return _folds(model, known, parts, heard, recipe, work, resume, device, callbacks, report)

    return Result(out, published(out, recipe.text, resume, work_on))


def _parts(clips: LabelledClips, recipe: ClassifyRecipe) -> list[Split]:
    run, seed = recipe.run, recipe.training.seed
    if run.folds:
        return k_folds(clips, run.folds, seed)
    return [split(clips, run.validation, run.test, seed)]


def _shots(part: Split, recipe: ClassifyRecipe) -> tuple[Example, ...]:
    """What is trained on with its labels."""
    shots = recipe.run.shots
    return few_shot(part.train, shots, recipe.training.seed) if shots else part.train


def _folds(
    model: Classifier,
    clips: LabelledClips,
    parts: Sequence[Split],
    heard: Sounds,
    recipe: ClassifyRecipe,
    work: Path,
    resume: bool,
    device: str,
    callbacks: Sequence[pl.Callback],
    report: bool,
) -> Facts:
    """A run per fold, from the same base each time, and what they come to together."""
    every: list[Facts] = []
    for number, part in enumerate(parts):
        folder = work / f"fold-{number}"
        done = folder / "results.json"
        if resume and done.is_file():
            every.append(json.loads(done.read_text(encoding="utf-8")))
            continue
        if number:
            model = Classifier.load(recipe.run.base, device, recipe.run.seconds)
        console.say(f"fold {number + 1} of {len(parts)}")
        folder.mkdir(parents=True, exist_ok=True)
        going = resume and (folder / "checkpoints").is_dir()
        every.append(_tune(model, clips, part, heard, recipe, folder, going, callbacks, report))
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    facts: Facts = {"folds": len(parts), "method": every[0]["method"]}
    for name in every[0]["test"]:
        values = [fold["test"].get(name, {}).get("value") for fold in every]
        if all(isinstance(value, float) for value in values):
            facts[f"test_{name}_mean"] = statistics.fmean(values)
            facts[f"test_{name}_deviation"] = statistics.stdev(values)
    facts["each"] = every
    _write(facts, work)
    return facts


def _tune(
    model: Classifier,
    clips: LabelledClips,
    part: Split,
    heard: Sounds,
    recipe: ClassifyRecipe,
    work: Path,
    resume: bool,
    callbacks: Sequence[pl.Callback],
    report: bool,
) -> Facts:
    began, run = time.monotonic(), recipe.run
    train = _hear(model, clips, _shots(part, recipe), heard)
    validation = _hear(model, clips, part.validation, heard)
    test = _hear(model, clips, part.test, heard)
    settings = _settled(recipe, len(train.examples), bool(validation.examples))
    checkpoint = load_checkpoint(work / "checkpoints") if resume else None
    warmed = _warmed(model, clips, part, heard, recipe, work)
    method = _attached(model, recipe, clips, train, checkpoint)
    facts: Facts = dict(method.describe())
    console.say(summary(facts))
    held_out = fixed_batches(model, validation.sounds, validation.targets, settings.batch)
    start, state = (checkpoint.step, checkpoint.optimizer) if checkpoint else (0, None)
    module = Classifying(model, method, settings, held_out, run.head_lr, start, state)
    module.last_checkpoint = checkpoint.folder if checkpoint else None
    place = start * settings.accumulate
    stream = LabelledStream(
        model, train.sounds, train.targets, settings.batch, settings.seed, place, recipe.augment
    )
    keeping = [KeepMostAccurate(module, work / "checkpoints")] if settings.keep == "best" else []
    masking = PatchMasking(run.mask_patches)
    masking.attach(model)
    model.train()
    try:
        fit(module, stream, work, model.device, [*keeping, *callbacks])
    finally:
        masking.detach()
    model.eval()
    if keeping:
        facts |= _kept(work)
    else:
        save_adapter(model, method, work / "adapter")
    # From here on the files speak, not the memory: what was saved is what gets measured.
    method.detach(model)
    attach_adapter(model, work / "adapter")
    facts |= warmed | {
        "labels": list(clips.labels),
        "clips": {"train": len(train.examples), "validation": len(validation.examples),
                  "test": len(test.examples)},
        "refused": len(clips.refused),
        "validation": _measured(model, validation, work, ""),
        "test": _measured(model, test, work, "confusion.png" if report else ""),
        "adapter_bytes": sum(
            p.stat().st_size for p in (work / "adapter").rglob("*") if p.is_file()
        ),
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_bytes": peak_memory(model.device),
    }  # fmt: skip
    _write(facts, work)
    if report:
        draw_learning(work)
        write_card(work, recipe, facts)
    return facts


def _hear(
    model: Classifier, clips: LabelledClips, examples: Sequence[Example], known: Sounds
) -> Heard:
    new = [example for example in examples if example not in known]
    if new:
        longest = max(_LONGEST, model.seconds)
        known.update(zip(new, hear_all(new, model.front.hear, longest), strict=True))
    sounds = [known[example] for example in examples]
    return Heard(tuple(examples), sounds, targets(examples, clips.labels))


def _settled(recipe: ClassifyRecipe, clips: int, validated: bool) -> Any:
    """The run's numbers with its steps, and a score after every so many epochs."""
    settings = recipe.training
    each = settings.batch * settings.accumulate
    epoch = max(1, math.ceil(clips / each))
    every = epoch * recipe.run.validate_every
    keep = settings.keep if validated else "last"
    if keep != settings.keep:
        console.note("no validation clips, so the last epoch is kept")
    return replace(
        settings, steps=epoch * recipe.run.epochs, score_every=every, held_out_every=every,
        keep=keep, patience=settings.patience if validated else 0,
        checkpoint_every=settings.checkpoint_every or epoch * max(1, recipe.run.epochs // 5),
    )  # fmt: skip


def _warmed(
    model: Classifier,
    clips: LabelledClips,
    part: Split,
    heard: Sounds,
    recipe: ClassifyRecipe,
    work: Path,
) -> Facts:
    """The encoder after self-distillation, if that is switched on; kept as the run's own base.

    All training clips are heard, those beyond ``shots`` too: labels are not looked at.
    """
    if not recipe.unfused.epochs:
        return {}
    own = work / OWN_BASE
    if own.is_dir():  # an interrupted run had done it
        again = Classifier.load(own, str(model.device), recipe.run.seconds)
        model.backbone.load_state_dict(again.backbone.state_dict())
        model.base = OWN_BASE
        return {"unfused": "done before the interruption"}
    sounds = _hear(model, clips, part.train, heard).sounds
    facts = warm_up(
        model, sounds, recipe.unfused, recipe.training, work / "unfused", recipe.augment
    )
    with publish_folder(own, overwrite=True) as folder:
        model.save(folder)
    model.base = OWN_BASE
    return {"unfused": facts}


def _attached(
    model: Classifier,
    recipe: ClassifyRecipe,
    clips: LabelledClips,
    train: Heard,
    checkpoint: Checkpoint | None,
) -> TuningMethod:
    if checkpoint:
        return attach_adapter(model, checkpoint.folder / "adapter")
    settings = recipe.training
    torch.manual_seed(settings.seed)
    method = recipe.with_head(clips.labels, clips.multi_label)
    # Other draws than training will make, so that the choice of weights is not fitted to them.
    look = LabelledStream(
        model, train.sounds, train.targets, settings.batch, settings.seed + 1, 0, recipe.augment
    )
    method.prepare(model, iter(look))
    method.attach(model)
    return method


def _measured(model: Classifier, part: Heard, work: Path, picture: str) -> Facts:
    """Scores of whole clips, each the mean over its windows."""
    if not part.examples:
        return {}
    rows = [model.probabilities(list(model.windows(sound))).mean(0) for sound in part.sounds]
    answers = torch.stack(rows)
    scores = classification_scores(answers, part.targets, model.multi_label)
    if picture and not model.multi_label:
        draw_confusion(confusion(answers, part.targets), model.labels, work / picture)
    return {
        name: score.as_json() if isinstance(score, Score) else asdict(score)
        for name, score in scores.items()
        if isinstance(score, (Score, NotComputed))
    }


def _kept(work: Path) -> Facts:
    """Make the best adapter the run's own; say which one it is."""
    best = publish_best(work / "checkpoints", work / "adapter")
    rows = [row for row in read_metrics(work / "metrics.csv") if row["validation_accuracy"]]
    found = next(r["validation_accuracy"] for r in rows if int(r["step"]) == best.step)
    return {
        "kept_step": best.step,
        "validation_kept": round(float(found), 4),
        "validation_last": round(float(rows[-1]["validation_accuracy"]), 4),
        **stopped(rows[-1]),
    }


def _write(facts: Facts, work: Path) -> None:
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    (work / "results.json").write_text(text + "\n", encoding="utf-8")
