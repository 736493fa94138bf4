"""A whole tuning run: clips in, a folder with an adapter, its figures and its card out."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from musictune import audio, console
from musictune.audio import Clip
from musictune.data.concepts import plain
from musictune.data.tokens import TokenDataset
from musictune.errors import InputError
from musictune.files import check_target, move_folder, readable
from musictune.generation import Engine
from musictune.methods import attach_adapter, save_adapter
from musictune.methods.base import TuningMethod
from musictune.models.musicgen import MusicGen
from musictune.training.best import Judges, KeepBest, publish_best, scored_prompts
from musictune.training.callbacks import AfterStep, Previews, read_metrics
from musictune.training.card import draw_alignment, draw_losses, write_card
from musictune.training.checkpoints import Checkpoint, load_checkpoint
from musictune.training.effect import Effect, measure_effect
from musictune.training.loop import Interrupted, computes_in_bf16, fit
from musictune.training.material import Material, gather
from musictune.training.recipe import Recipe
from musictune.training.stream import BatchStream
from musictune.training.tuning import Tuning


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        folder: the finished run.
        facts: matched layers, trained parameters, bytes, seconds, peak memory.
        effect: the proof that the adapter does something.
    """

    folder: Path
    facts: dict[str, int | float | str]
    effect: Effect


def working_folder(out: Path) -> Path:
    """Where a run lies until it is finished."""
    return out.with_name(f".{out.name}.partial")


def check_out(out: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Refuse, before any work, an output that would lose something.

    Raises:
        InputError: ``out`` exists, an interrupted run lies beside it, or there is none to resume.
    """
    out = out.absolute()
    work = working_folder(out)
    held = _held(work)
    if resume:
        if not held:
            raise InputError(f"nothing to resume for {out}; run again without --resume")
        _check_same(recipe.text, (work / "config.yaml").read_text(encoding="utf-8"), out)
        return
    reads = [recipe.run.clips] + [recipe.run.base] * (recipe.run.base != "mini")
    check_target(out, overwrite=overwrite, inputs=reads)
    if held and not overwrite:
        raise InputError(
            f"an interrupted run for {out} has checkpoints; go on with --resume, or pass "
            "--overwrite to start again"
        )


def tune(
    model: MusicGen,
    clips: Path,
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    judges: Judges | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> Result:
    """Tune ``model`` on ``clips`` and publish the run as ``out``.

    The run is made in a sibling folder and renamed at the end. If it is interrupted or its loss
    stops being a number, that folder stays as long as it has a checkpoint; else it is removed.

    Args:
        model: an untouched base; has the adapter attached afterwards.
        clips: recordings in any form that ``prepare_folder`` reads, or a prepared folder.
        recipe: what to do.
        out: the run's folder.
        resume: go on from the newest checkpoint.
        overwrite: replace ``out`` and an interrupted run.
        judges: what scores previews; needed to keep the best adapter.
        callbacks: for the training loop.

    Raises:
        InputError: bad clips, names, or output, or nothing to choose the best adapter by.
        CheckFailed: a loss or gradient was no number, or the adapter has no effect.
        Interrupted: stopped on request; ``resume`` goes on.
    """
    out = out.absolute()
    check_out(out, recipe, resume=resume, overwrite=overwrite)
    if recipe.training.keep == "best" and judges is None:
        raise InputError("keep best needs something that scores previews; give judges or keep last")
    work = working_folder(out)
    try:
        if not resume:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            (work / "config.yaml").write_text(recipe.text, encoding="utf-8")
        result = _tune(model, clips, recipe, work, resume, judges, callbacks)
    except BaseException as error:
        if not _held(work):
            shutil.rmtree(work, ignore_errors=True)
        elif isinstance(error, KeyboardInterrupt):
            said = str(error) or "stopped"
            raise Interrupted(f"{said}; go on with the same command and --resume") from None
        if isinstance(error, OSError):
            raise readable(error, out) from error
        raise
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    move_folder(work, out)
    return Result(out, result.facts, result.effect)


def _tune(
    model: MusicGen,
    clips: Path,
    recipe: Recipe,
    work: Path,
    resume: bool,
    judges: Judges | None,
    callbacks: Sequence[pl.Callback],
) -> Result:
    settings, began = recipe.training, time.monotonic()
    recipe.method.check(model)
    material = gather(model, clips, recipe, work)
    train, prompt = material.train, material.prompt
    checkpoint = load_checkpoint(work / "checkpoints") if resume else None
    method = _attached(model, recipe, train, checkpoint)
    facts = method.describe()
    console.say(_summary(facts))
    if settings.gradient_checkpointing:
        _save_memory(model)
    start = checkpoint.step if checkpoint else 0
    module = Tuning(
        model,
        method,
        settings,
        material.held_out,
        start,
        checkpoint.optimizer if checkpoint else None,
    )
    module.last_checkpoint = checkpoint.folder if checkpoint else None
    play = _player(model, method, recipe, prompt, work / "samples")
    if settings.preview_every:
        play("base")
    stream = BatchStream(train, settings.batch, settings.seed, start * settings.accumulate)
    model.train()
    scoring = _scoring(model, recipe, material, judges, work / "checkpoints")
    fit(module, stream, work, model.device, [*scoring, Previews(play), *callbacks])
    model.eval()
    if settings.keep == "best":
        facts |= _kept(work)
    else:
        save_adapter(model, method, work / "adapter")
    # From here on the files speak, not the memory: what was saved is what gets proved.
    method.detach(model)
    method = attach_adapter(model, work / "adapter")
    play = _player(model, method, recipe, prompt, work / "samples")
    effect = measure_effect(model, method, prompt, _preview_seconds(model, recipe), settings.seed)
    effect.check()
    (work / "samples").mkdir(exist_ok=True)
    audio.write(effect.tuned, work / "samples" / "tuned.wav")
    if not (work / "samples" / "base.wav").exists():
        play("base")
    facts |= {
        "adapter_bytes": sum(
            p.stat().st_size for p in (work / "adapter").rglob("*") if p.is_file()
        ),
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_bytes": _peak_memory(model.device),
        "tokens_changed": round(effect.tokens_changed, 4),
        "mel_distance_db": round(effect.mel_distance, 2),
    }
    draw_losses(work)
    if settings.keep == "best":
        draw_alignment(work, int(facts["kept_step"]))
    write_card(work, recipe, facts, prompt)
    return Result(work, facts, effect)


def _attached(
    model: MusicGen, recipe: Recipe, train: TokenDataset, checkpoint: Checkpoint | None
) -> TuningMethod:
    if checkpoint:
        return attach_adapter(model, checkpoint.folder / "adapter")
    settings = recipe.training
    torch.manual_seed(settings.seed)
    # Other draws than training will make, so that the choice of weights is not fitted to them.
    look = BatchStream(train, settings.batch, settings.seed + 1)
    half = computes_in_bf16(settings.precision, model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        recipe.method.prepare(model, look.batches())
    recipe.method.attach(model)
    return recipe.method


def _player(
    model: MusicGen, method: TuningMethod, recipe: Recipe, prompt: str, folder: Path
) -> Callable[[str], None]:
    """Writes ``folder/name.wav``; ``base`` is the base itself, asked with the class word."""
    seconds, seed = _preview_seconds(model, recipe), recipe.training.seed

    def play(name: str) -> None:
        folder.mkdir(exist_ok=True)
        if name == "base":
            concepts = [recipe.concept] if recipe.concept else []
            with method.disabled(model):
                _, made = Engine(model).rollout([plain(prompt, concepts)], seconds, seed)
        else:
            _, made = Engine(model).rollout([prompt], seconds, seed)
        audio.write(made[0], folder / f"{name}.wav")

    return play


def _scoring(
    model: MusicGen, recipe: Recipe, material: Material, judges: Judges | None, folder: Path
) -> list[AfterStep]:
    """What scores previews and keeps the best; nothing where the last is kept."""
    settings, concepts = recipe.training, [recipe.concept] if recipe.concept else []
    if settings.keep != "best" or judges is None:
        return []
    captions = [clip.caption for clip in material.clips]
    prompts = scored_prompts(recipe.run.prompt, recipe.concept, captions)
    asked = [prompt for prompt in prompts for _ in range(settings.score_seeds)]
    seconds = _preview_seconds(model, recipe)

    def previews() -> list[Clip]:
        _, made = Engine(model).rollout(asked, seconds, settings.seed)
        texts = [plain(prompt, concepts) for prompt in asked]
        return [replace(clip, caption=text) for clip, text in zip(made, texts, strict=True)]

    return [KeepBest(previews, *judges(material.clips), folder)]


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
    }


def _preview_seconds(model: MusicGen, recipe: Recipe) -> float:
    return min(recipe.training.preview_seconds, model.max_seconds)


def _save_memory(model: MusicGen) -> None:
    enable: Any = getattr(model.backbone, "gradient_checkpointing_enable", None)
    if enable is None:
        console.note("this base has no gradient checkpointing; going on without it")
        return
    enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _summary(facts: dict[str, int | float | str]) -> str:
    parts = [str(facts["method"])]
    if "matched_layers" in facts:
        parts.append(f"{facts['matched_layers']} matched layers")
    parts.append(f"{int(facts['trained_parameters']):,} trained parameters")
    if "share_of_backbone" in facts:
        parts.append(f"{float(facts['share_of_backbone']):.2%} of the backbone")
    return ", ".join(parts)


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU where there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _held(work: Path) -> bool:
    """Whether an interrupted run has a checkpoint."""
    return any((work / "checkpoints").glob("step-*"))


def _check_same(ours: str, theirs: str, out: Path) -> None:
    for now, before in zip(ours.splitlines(), theirs.splitlines(), strict=False):
        if now != before:
            raise InputError(
                f"the run to resume for {out} was started with {before.strip()!r}, not "
                f"{now.strip()!r}; give the same options"
            )
