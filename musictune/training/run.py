"""A whole tuning run: clips in, a folder with an adapter, its figures and its card out."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from musictune import audio, console
from musictune.audio import Clip
from musictune.errors import InputError
from musictune.methods import attach_adapter, save_adapter
from musictune.methods.base import TuningMethod
from musictune.metrics.base import concept_score
from musictune.models.musicgen import MusicGen
from musictune.training.best import Judges, KeepBest, publish_best
from musictune.training.callbacks import AfterStep, Previews, read_metrics
from musictune.training.card import draw_alignment, draw_losses, write_card
from musictune.training.checkpoints import Checkpoint, load_checkpoint
from musictune.training.diagnostic_plots import write_diagnostics
from musictune.training.effect import Effect, measure_effect
from musictune.training.loop import computes_in_bf16, fit
from musictune.training.material import Material, gather
from musictune.training.mezo import GradientFree, Score
from musictune.training.previews import (
    Player,
    judged,
    preview_prompts,
    preview_seconds,
    scored_previews,
)
from musictune.training.prior import prior_music
from musictune.training.recipe import Recipe
from musictune.training.run_folder import check_run, own_base, published
from musictune.training.stream import BatchStream
from musictune.training.tuning import Tuning


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        folder: the finished run.
        facts: matched layers, trained parameters, bytes, seconds, peak memory.
        effect: the proof that the adapter does something; of several concepts, the one with the
            smallest share of changed tokens.
    """

    folder: Path
    facts: dict[str, int | float | str]
    effect: Effect


def tune(
    model: MusicGen,
    clips: Path | None,
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    judges: Judges | None = None,
    callbacks: Sequence[pl.Callback] = (),
    report: bool = True,
) -> Result:
    """Tune ``model`` on ``clips`` and publish the run as ``out``.

    The run is made in a sibling folder and renamed at the end. If it is interrupted or its loss
    stops being a number, that folder stays as long as it has a checkpoint; else it is removed.

    Args:
        model: an untouched base; has the adapter attached afterwards, and its backbone in bf16
            where that is how it was held.
        clips: recordings in any form that ``prepare_folder`` reads, or a prepared folder; None
            where the recipe's concepts name theirs.
        recipe: what to do.
        out: the run's folder.
        resume: go on from the newest checkpoint.
        overwrite: replace ``out`` and an interrupted run.
        judges: what scores previews; needed to keep the best adapter, and by objective alignment.
        callbacks: for the training loop.
        report: also draw its curves, look at the change matrix by matrix, and write the card.

    Raises:
        InputError: bad clips, names, or output, or nothing to choose the best adapter by.
        CheckFailed: a loss or gradient was no number, or the adapter has no effect.
        Interrupted: stopped on request; ``resume`` goes on.
    """
    out = out.absolute()
    check_out(out, recipe, resume=resume, overwrite=overwrite)
    if needs_judges(recipe) and judges is None:
        raise InputError(
            "keep best and objective alignment need something that scores previews; give judges, "
            "or keep last with objective loss"
        )
    result = published(
        out,
        recipe.text,
        resume,
        lambda work: _tune(model, clips, recipe, work, resume, judges, callbacks, report),
    )
    return replace(result, folder=out)


def check_out(out: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Refuse, before any work, an output that would lose something.

    Raises:
        InputError: ``out`` exists, an interrupted run lies beside it, or there is none to resume.
    """
    clips = [str(lesson.clips) for lesson in recipe.lessons if lesson.clips]
    check_run(
        out, recipe.text, [*(clips or [recipe.run.clips]), *own_base(recipe)],
        resume=resume, overwrite=overwrite,
    )  # fmt: skip


def needs_judges(recipe: Recipe) -> bool:
    """Whether the run scores previews."""
    return recipe.training.keep == "best" or recipe.training.objective == "alignment"


def holds_in_bf16(recipe: Recipe, device: torch.device) -> bool:
    """Whether the base's own weights become bf16, once, in place of a copy at every step.

    Only where none of them is trained. On a CPU only if the recipe says bf16: see dev/LOG.md.
    """
    precision = recipe.training.precision
    wanted = device.type == "cuda" or precision == "bf16"
    return wanted and recipe.method.frozen_base and computes_in_bf16(precision, device)


def _tune(
    model: MusicGen,
    clips: Path | None,
    recipe: Recipe,
    work: Path,
    resume: bool,
    judges: Judges | None,
    callbacks: Sequence[pl.Callback],
    report: bool,
) -> Result:
    settings, began = recipe.training, time.monotonic()
    recipe.method.check(model)
    lessons = gather(model, clips, recipe, work)
    prior = prior_music(model, recipe.concepts, settings, work)
    checkpoint = load_checkpoint(work / "checkpoints") if resume else None
    if holds_in_bf16(recipe, model.device):
        model.half_backbone()
    method = _attached(model, recipe, lessons, checkpoint)
    facts = method.describe()
    console.say(summary(facts))
    if settings.gradient_checkpointing:
        save_memory(model)
    module = _module(model, method, recipe, lessons, checkpoint, judges)
    prompts = preview_prompts(recipe, lessons)
    play = Player(model, method, recipe, prompts, work / "samples")
    if settings.preview_every:
        play("base")
    train = [lesson.train for lesson in lessons]
    place = module.start * settings.accumulate
    stream = BatchStream(train, settings.batch, settings.seed, place, prior)
    model.train()
    scoring = _scoring(model, recipe, lessons, judges, work / "checkpoints")
    fit(module, stream, work, model.device, [*scoring, Previews(play), *callbacks])
    model.eval()
    if settings.keep == "best":
        facts |= _kept(work)
    else:
        save_adapter(model, method, work / "adapter")
    # From here on the files speak, not the memory: what was saved is what gets proved.
    method.detach(model)
    method = attach_adapter(model, work / "adapter")
    effect = _proved(model, method, recipe, prompts, work / "samples")
    if not any((work / "samples").glob("base*.wav")):
        Player(model, method, recipe, prompts, work / "samples")("base")
    facts |= {
        "adapter_bytes": sum(
            p.stat().st_size for p in (work / "adapter").rglob("*") if p.is_file()
        ),
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_bytes": peak_memory(model.device),
        "tokens_changed": round(effect.tokens_changed, 4),
        "mel_distance_db": round(effect.mel_distance, 2),
    }
    if not report:
        return Result(work, facts, effect)
    facts |= write_diagnostics(model, method, work)
    draw_losses(work)
    if settings.keep == "best":
        draw_alignment(work, int(facts["kept_step"]))
    write_card(work, recipe, facts, list(prompts.values()))
    return Result(work, facts, effect)


def _attached(
    model: MusicGen, recipe: Recipe, lessons: Sequence[Material], checkpoint: Checkpoint | None
) -> TuningMethod:
    if checkpoint:
        return attach_adapter(model, checkpoint.folder / "adapter")
    settings = recipe.training
    torch.manual_seed(settings.seed)
    # Other draws than training will make, so that the choice of weights is not fitted to them.
    look = BatchStream([lesson.train for lesson in lessons], settings.batch, settings.seed + 1)
    mixed = computes_in_bf16(settings.precision, model.device)
    mixed = mixed and not holds_in_bf16(recipe, model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=mixed):
        recipe.method.prepare(model, look.batches())
    recipe.method.attach(model)
    return recipe.method


def _module(
    model: MusicGen,
    method: TuningMethod,
    recipe: Recipe,
    lessons: Sequence[Material],
    checkpoint: Checkpoint | None,
    judges: Judges | None,
) -> Tuning:
    settings = recipe.training
    held_out = [batch for lesson in lessons for batch in lesson.held_out]
    start, state = (checkpoint.step, checkpoint.optimizer) if checkpoint else (0, None)
    if settings.optimizer == "adamw":
        module = Tuning(model, method, settings, held_out, start, state)
    else:
        score = None
        if settings.objective == "alignment" and judges:
            score = _score(model, recipe, [lesson.learned for lesson in lessons], judges)
        module = GradientFree(model, method, settings, held_out, start, score=score)
    module.last_checkpoint = checkpoint.folder if checkpoint else None
    return module


def _score(
    model: MusicGen, recipe: Recipe, clips: Sequence[Sequence[Clip]], judges: Judges
) -> Score:
    """How close previews at a seed sound to ``clips`` of each lesson and to their prompts."""
    play = scored_previews(model, recipe, [[c.caption for c in part] for part in clips])
    closeness, fidelity = judged(judges, clips)

    def score(seed: int) -> Tensor:
        made = play(seed)
        return concept_score(closeness(made), fidelity(made))

    return score


def _scoring(
    model: MusicGen,
    recipe: Recipe,
    lessons: Sequence[Material],
    judges: Judges | None,
    folder: Path,
) -> list[AfterStep]:
    """What scores previews and keeps the best; nothing where the last is kept."""
    if recipe.training.keep != "best" or judges is None:
        return []
    clips = [lesson.clips for lesson in lessons]
    play = scored_previews(model, recipe, [[c.caption for c in part] for part in clips])
    return [KeepBest(lambda: play(recipe.training.seed), *judged(judges, clips), folder)]


def _proved(
    model: MusicGen, method: TuningMethod, recipe: Recipe, prompts: dict[str, str], folder: Path
) -> Effect:
    """Play each prompt with and without what was learned; the least effect of all."""
    folder.mkdir(exist_ok=True)
    seconds, seed = preview_seconds(model, recipe), recipe.training.seed
    effects = []
    for ending, prompt in prompts.items():
        effect = measure_effect(model, method, prompt, seconds, seed)
        effect.check()
        audio.write(effect.tuned, folder / f"tuned{ending}.wav")
        effects.append(effect)
    return min(effects, key=lambda effect: effect.tokens_changed)


def _kept(work: Path) -> dict[str, int | float | str]:
    """Make the best adapter the run's own; say which one it is."""
    best = publish_best(work / "checkpoints", work / "adapter")
    rows = [row for row in read_metrics(work / "metrics.csv") if row["alignment"]]
    before, after = float(rows[0]["alignment"]), float(rows[-1]["alignment"])
    error = next(row["alignment_error"] for row in rows if int(row["step"]) == best.step)
    if best.alignment <= before:
        console.note(
            f"no scored step sounds closer than the untrained step 0 ({best.alignment:.4f} against "
            f"{before:.4f}); kept the best of them, step {best.step}: try a longer run, another "
            "class word or another rate"
        )
    return {
        "kept_step": best.step,
        "alignment_before": round(before, 4),
        "alignment_kept": round(best.alignment, 4),
        "alignment_standard_error": round(float(error), 4) if error else "unknown",
        "alignment_last": round(after, 4),
        **stopped(rows[-1]),
    }


def stopped(row: dict[str, str]) -> dict[str, int | float | str]:
    """Where and why the run ended early, from its last row; nothing if it did not."""
    if not row.get("stopped"):
        return {}
    return {"stopped_step": int(row["step"]), "stopped_because": row["stopped"]}


def save_memory(model: MusicGen) -> None:
    enable: Any = getattr(model.backbone, "gradient_checkpointing_enable", None)
    if enable is None:
        console.note("this base has no gradient checkpointing; going on without it")
        return
    enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def summary(facts: dict[str, int | float | str]) -> str:
    parts = [str(facts["method"])]
    if "matched_layers" in facts:
        parts.append(f"{facts['matched_layers']} matched layers")
    parts.append(f"{int(facts['trained_parameters']):,} trained parameters")
    if "share_of_backbone" in facts:
        parts.append(f"{float(facts['share_of_backbone']):.2%} of the backbone")
    return ", ".join(parts)


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU where there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
