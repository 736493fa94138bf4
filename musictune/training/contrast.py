"""Teaching a CLAP captions: clips in, a folder with an adapter and its figures out."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from musictune import audio, console
from musictune.data.captioned import CaptionedClip, by_recording, read_captioned
from musictune.data.sequences import longest_wording, said
from musictune.errors import InputError
from musictune.methods import attach_adapter, save_adapter
from musictune.methods.adapter import live_methods
from musictune.methods.base import TuningMethod
from musictune.models.contrastive import Contrastive
from musictune.models.contrastive_reading import find_clap
from musictune.training.best import publish_best
from musictune.training.callbacks import read_metrics
from musictune.training.checkpoints import Checkpoint, load_checkpoint
from musictune.training.contrast_card import draw_contrast, headlines, write_card
from musictune.training.contrast_recipe import ContrastRecipe
from musictune.training.contrast_scores import Figures, Searched, Sequences, kept
from musictune.training.contrasting import (
    CaptionStream,
    Contrasting,
    KeepClosest,
    Sounds,
    held_out_batches,
)
from musictune.training.loop import fit
from musictune.training.run import peak_memory, stopped, summary
from musictune.training.run_folder import Result, check_run, published
from musictune.training.settings import TrainingSettings

CLAP = "clap"
"""The folder of a run with the tuned towers as a plain CLAP."""

Facts = dict[str, Any]


@dataclass(frozen=True)
class _Measures:
    """What is asked of the model before and after: by name, something with ``figures(model)``."""

    searched: dict[str, Searched]
    sequences: Sequences | None

    def __call__(self, model: Contrastive) -> dict[str, Figures]:
        found = {name: measure.figures(model) for name, measure in self.searched.items()}
        return found if self.sequences is None else found | {"order": self.sequences.figures(model)}


def tune_contrast(
    recipe: ContrastRecipe,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    report: bool = True,
) -> Result:
    """Tune the recipe's CLAP on its captioned clips and publish the run as ``out``.

    Besides what every run holds, ``results.json`` has retrieval before and after on held-out clips
    and on those of ``run.retention``, and how often order is told; ``clap/`` is the tuned CLAP as a
    plain folder, where the method can be folded in.

    Args:
        recipe: what to do.
        out: the run's folder.
        device: ``cpu``, ``cuda`` or ``auto``.
        resume: go on from the newest checkpoint.
        overwrite: replace ``out`` and an interrupted run.
        report: also draw its curve and write the card.

    Raises:
        InputError: bad clips, captions or output, or a method that does not fit.
        CheckFailed: a loss or gradient was no number.
        Interrupted: stopped on request; ``resume`` goes on.
    """
    run, out = recipe.run, out.absolute()
    if not run.clips:
        raise InputError("no CLIPS given; name a folder of captioned clips or a manifest")
    reads = [
        run.clips,
        *([run.retention] * bool(run.retention)),
        *([run.base] * (run.base != "mini")),
    ]
    check_run(out, recipe.text, reads, resume=resume, overwrite=overwrite)
    find_clap(run.base)
    clips = read_captioned(run.clips)
    general = read_captioned(run.retention) if run.retention else []
    train, held_out = by_recording(clips, recipe.training.held_out, recipe.training.seed)
    model = Contrastive.load(run.base, device, run.tower)
    _check_captions(model, [*clips, *general], run.ordered)
    recipe.method.check(model)
    facts = published(
        out,
        recipe.text,
        resume,
        lambda work: _tune(model, recipe, train, held_out, general, work, resume, report),
    )
    for line in headlines(facts):
        console.say(line)
    return Result(out, facts)


def _tune(
    model: Contrastive,
    recipe: ContrastRecipe,
    train: Sequence[CaptionedClip],
    held_out: Sequence[CaptionedClip],
    general: Sequence[CaptionedClip],
    work: Path,
    resume: bool,
    report: bool,
) -> Facts:
    began, run = time.monotonic(), recipe.run
    sounds, kept_out = _heard(model, train), _heard(model, held_out)
    measures = _measures(model, recipe, held_out, general)
    before = measures(model)
    # The loss on one caption says nothing: whatever the model does, it is the same.
    fixed = len(set(kept_out.meanings)) >= 2
    settings = _settled(recipe, fixed)
    batches = held_out_batches(kept_out, settings.batch, settings.seed, run.stages) if fixed else []
    checkpoint = load_checkpoint(work / "checkpoints") if resume else None
    method = _attached(model, recipe, sounds, checkpoint)
    facts: Facts = dict(method.describe())
    console.say(summary(facts))
    start, state = (checkpoint.step, checkpoint.optimizer) if checkpoint else (0, None)
    module = Contrasting(model, method, settings, batches, start, state)
    module.last_checkpoint = checkpoint.folder if checkpoint else None
    place = start * settings.accumulate
    stream = CaptionStream(sounds, settings.batch, settings.seed, place, recipe.passes)
    keeping = [KeepClosest(module, work / "checkpoints")] if settings.keep == "best" else []
    model.train()
    fit(module, stream, work, model.device, keeping)
    model.eval()
    if keeping:
        facts |= _kept(work)
    else:
        save_adapter(model, method, work / "adapter")
    # From here on the files speak, not the memory: what was saved is what gets measured.
    method.detach(model)
    method = attach_adapter(model, work / "adapter")
    after = measures(model)
    facts |= {
        "clips": {"train": len(train), "held_out": len(held_out), "retention": len(general)},
        "before": before,
        "after": after,
        "adapter_bytes": sum(
            p.stat().st_size for p in (work / "adapter").rglob("*") if p.is_file()
        ),
        "clap": not live_methods(work / "adapter"),
    }
    if "retention" in after:
        facts["retention"] = kept(before["retention"], after["retention"])
    if facts["clap"]:
        method.merge(model)
        model.save(work / CLAP)
    facts |= {
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_bytes": peak_memory(model.device),
    }
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    (work / "results.json").write_text(text + "\n", encoding="utf-8")
    if report:
        draw_contrast(work)
        write_card(work, recipe, facts)
    return facts


def _check_captions(model: Contrastive, clips: Sequence[CaptionedClip], ordered: bool) -> None:
    """Refuse what the text tower would cut: of two captions in a row the second would be lost."""
    room = model.most_tokens
    if ordered:
        around = model.tokens(said(longest_wording(), "", ""))
        room = (room - around) // 2
    seen: set[str] = set()
    for clip in clips:
        for text in clip.captions:
            if text in seen:
                continue
            seen.add(text)
            if (size := model.tokens(text)) > room:
                why = ", as order needs two in a row" if ordered else ""
                raise InputError(
                    f"caption {text[:40]!r}... of {clip.path.name} has {size} tokens and the text "
                    f"tower has room for {room}{why}; shorten it"
                )


def _heard(model: Contrastive, clips: Sequence[CaptionedClip]) -> Sounds:
    """Every window once; about a quarter of a megabyte each."""
    features, captions = [], []
    for clip in console.track(clips, "clips heard", len(clips)) if clips else ():
        for block in audio.stream(clip.path, 6 * model.seconds):
            for window in model.windows(block):
                features.append(model.hear(window))
                captions.append(clip.captions)
    return Sounds(features, captions)


def _measures(
    model: Contrastive,
    recipe: ContrastRecipe,
    held_out: Sequence[CaptionedClip],
    general: Sequence[CaptionedClip],
) -> _Measures:
    named = {"held_out": held_out, "retention": general}
    searched = {name: Searched(model, clips) for name, clips in named.items() if clips}
    sequences = None
    if recipe.run.ordered and len({clip.captions[0] for clip in held_out}) >= 2:
        count, seed = recipe.run.sequences, recipe.training.seed
        sequences = Sequences(model, held_out, count, seed)
    return _Measures(searched, sequences)


def _settled(recipe: ContrastRecipe, fixed: bool) -> TrainingSettings:
    settings = recipe.training
    if fixed or settings.keep == "last":
        return settings
    console.note("fewer than two different captions are held out, so the last step is kept")
    return replace(settings, keep="last", patience=0)


def _attached(
    model: Contrastive, recipe: ContrastRecipe, sounds: Sounds, checkpoint: Checkpoint | None
) -> TuningMethod:
    if checkpoint:
        return attach_adapter(model, checkpoint.folder / "adapter")
    settings = recipe.training
    torch.manual_seed(settings.seed)
    # Other draws than training will make, so that the choice of weights is not fitted to them.
    look = CaptionStream(sounds, settings.batch, settings.seed + 1, 0, recipe.passes)
    recipe.method.prepare(model, iter(look))
    recipe.method.attach(model)
    return recipe.method


def _kept(work: Path) -> Facts:
    """Make the best adapter the run's own; say which one it is."""
    best = publish_best(work / "checkpoints", work / "adapter")
    rows = [row for row in read_metrics(work / "metrics.csv") if row["held_out_loss"]]
    before, last = float(rows[0]["held_out_loss"]), float(rows[-1]["held_out_loss"])
    if -best.alignment >= before:
        console.note(
            f"no step did better on held-out clips than the untrained step 0 "
            f"({-best.alignment:.4f} against {before:.4f}); kept step {best.step}: try a lower "
            "rate, or more clips"
        )
    return {
        "kept_step": best.step,
        "held_out_before": round(before, 4),
        "held_out_kept": round(-best.alignment, 4),
        "held_out_last": round(last, 4),
        **stopped(rows[-1]),
    }
