"""``musictune tune``: learn a sound."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from musictune.audio import Clip
    from musictune.metrics.base import Reward
    from musictune.training.best import Judges
    from musictune.training.recipe import Recipe
    from musictune.training.run import Result


Settled = tuple[list[Path], list[str], dict[str, Any], str | None]


class Task(StrEnum):
    """What a model is taught."""

    music = "music"
    classify = "classify"
    contrast = "contrast"


class Keep(StrEnum):
    """Which step's adapter is kept."""

    last = "last"
    best = "best"


def tune(
    clips: Annotated[
        Path | None,
        typer.Argument(
            help="A recording, a folder of them, a manifest, or a prepared folder; for classify "
            "labelled clips, for contrast captioned ones."
        ),
    ] = None,
    task: Annotated[
        Task,
        typer.Option(
            help="music: a music model learns the sound (default). classify: an audio transformer "
            "learns labels. contrast: a CLAP learns which caption belongs to which clip."
        ),
    ] = Task.music,
    out: Annotated[Path, typer.Option(help="Folder for the run.")] = Path("out/tune"),
    concept: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of the sound; prompts then call it `<name>`. Several: NAME=FOLDER each, "
            "and no CLIPS. Repeatable."
        ),
    ] = None,
    class_word: Annotated[
        list[str] | None,
        typer.Option(
            help="What kind of sound it is, such as 'piano'; NAME=WORD for each of several."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="pivotal (default), full, concept_tokens, bottleneck, compacter, ssf, bitfit, "
            "prefix, prompt_tuning, or what peft has: lora, dora, rslora, pissa, ia3, miss, oft, "
            "vera, shira, and others. For classify also linear_probe, convolution, soft_moa, "
            "deep_prompt, shallow_prompt."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="mini (default), a model folder, or a Hugging Face id."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps; 300 by default.")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate; the method's own by default.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Clips per step; 4 by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random; 0 by default.")] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Tokens that carry each concept; 1 by default.")
    ] = None,
    preview_every: Annotated[
        int | None, typer.Option(help="Steps between previews in samples/; 0 for none.")
    ] = None,
    keep: Annotated[
        Keep | None,
        typer.Option(help="The last step's adapter (default), or the best by scored previews."),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto (default), fp32 or bf16.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    config: Annotated[
        list[Path] | None, typer.Option(help="A recipe in YAML; later ones win. Repeatable.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a recipe: method.fraction=0.02. Repeatable."),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show the resolved recipe and stop.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run, to the bit.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run if it is there.")
    ] = False,
) -> None:
    """Teach a base model the sound of some recordings.

    Two minutes of audio are enough. With --concept the model learns a new word for the sound,
    which prompts then use. Recordings are cut and captioned first; to look at that yourself, run
    `prepare` and give its folder.

    The run holds adapter/ (what was learned), config.yaml (the recipe, to run it again),
    metrics.csv and losses.png, samples/ and a README.md. At the end one prompt is played with and
    without the adapter; if nothing changed, the command fails.

    With --keep best, previews are scored every 50 steps (--set training.score_every=25): how close
    they are to held-out clips of the recordings, and to their prompts. The adapter of the step that
    does best at both is kept; alignment.png shows the curve.

    Several sounds are learned together, with equal shares of every step, and can then be asked for
    alone or in one prompt; several --tokens give each more room:

        musictune tune --concept a=DIR_A --concept b=DIR_B --class-word a=harp --class-word b=style

    More with --set; --print-config shows every key there is:

    method.selection=sensitivity, method.granularity=row, method.targets=value,output and one of
    method.fraction=0.01, method.count=50000 or method.kilobytes=200: which weights pivotal trains,
    and how many. Other methods have options of their own, such as method.options.r=8 for lora.

    training.prior=16: keeps the class word's old meaning by training on music that the base made of
    it, too (training.prior_weight=1).

    training.patience=3: with --keep best, stops after so many scored previews without a better one.

    training.optimizer=mezo: tunes without gradients, in the memory of playing;
    training.objective=alignment then raises the previews' scores themselves in place of lowering
    the loss. Slow: see training.mezo_eps and --lr.

    training.weight_decay=0.1: pulls what is learned back towards the base.

    With --task classify an audio transformer (mini's own, AST, wav2vec 2.0, HuBERT) learns labels
    from a folder per class, a CSV, or the layouts of ESC-50, UrbanSound8K, Speech Commands, GTZAN
    and NSynth. The step that does best on validation clips is kept and measured on test clips;
    results.json and confusion.png say how well:

        musictune tune --task classify recordings/ --method convolution --set run.shots=8

    run.folds=5 trains once per fold; run.epochs, run.seconds, augment.mixup, run.mask_patches and
    more: --print-config. With --task contrast a CLAP learns your captions.

    Ctrl-C stops after the current step and keeps a checkpoint for --resume.

    Example: musictune tune my-recordings --concept mybox --class-word "music box" --out runs/mybox
    """
    from musictune import console
    from musictune.errors import InputError
    from musictune.training.recipe import load_recipe

    if task is not Task.music:
        given = {
            "--concept": concept, "--class-word": class_word, "--tokens": tokens,
            "--preview-every": preview_every,
        }  # fmt: skip
        _refuse(given, task)
        overrides = {
            "run.clips": str(clips) if clips else None,
            "run.base": base,
            "training.steps": steps,
            "training.lr": lr,
            "training.batch": batch,
            "training.seed": seed,
            "training.keep": keep.value if keep else None,
            "training.precision": precision,
        }
        settled = (config or [], set_ or [], overrides, method)
        teach = _classify if task is Task.classify else _contrast
        teach(settled, out, device, resume, overwrite, print_config)
        return
    recipe = load_recipe(
        config or [],
        set_ or [],
        {
            "run.clips": str(clips) if clips else None,
            "run.concept": _one_or_all(concept),
            "run.class_word": _one_or_all(class_word),
            "run.base": base,
            "run.tokens": tokens,
            "training.steps": steps,
            "training.lr": lr,
            "training.batch": batch,
            "training.seed": seed,
            "training.preview_every": preview_every,
            "training.keep": keep.value if keep else None,
            "training.precision": precision,
        },
        method,
    )
    if print_config:
        console.say(recipe.text.rstrip())
        return
    places = [lesson.clips or recipe.run.clips for lesson in recipe.lessons]
    for place in places:
        if not place:
            raise InputError("no CLIPS given; name a recording, a folder or a manifest")
        if not Path(place).exists():
            raise InputError(f"clips {place} do not exist; name a recording or a folder")
    _report(_run(recipe, out, device, resume, overwrite), recipe)


def _refuse(given: Mapping[str, object], task: Task) -> None:
    """What is about music has no meaning for another task."""
    from musictune.errors import InputError

    for option, value in given.items():
        if value is not None:
            raise InputError(f"{option} is about music; leave it out with --task {task.value}")


def _classify(
    settled: Settled, out: Path, device: str, resume: bool, overwrite: bool, show: bool
) -> None:
    from musictune.console import say
    from musictune.errors import InputError
    from musictune.training.classify_recipe import load_classify_recipe

    if settled[2].pop("training.steps") is not None:
        raise InputError("--steps is counted in epochs here; use --set run.epochs=30")
    recipe = load_classify_recipe(*settled)
    if show:
        say(recipe.text.rstrip())
        return
    from musictune.models.devices import find_device
    from musictune.training.classify import tune_classifier

    find_device(device)
    result = tune_classifier(recipe, out, device=device, resume=resume, overwrite=overwrite)
    for line in said(result.facts):
        say(line)
    model = result.folder if "each" not in result.facts else result.folder / "fold-0"
    again = ["musictune", "classify", "RECORDING", "--model", str(model)]
    say(f"{result.folder}: try  {shlex.join(again)}")


def said(facts: dict[str, Any]) -> list[str]:
    """What a run that learned labels came to, in lines for people."""
    if "each" in facts:
        figures = [name.removesuffix("_mean") for name in facts if name.endswith("_mean")]
        return [
            f"{name.removeprefix('test_').replace('_', ' ')} over {facts['folds']} folds: "
            f"{facts[f'{name}_mean']:.3f}, deviation {facts[f'{name}_deviation']:.3f}"
            for name in figures
        ]
    lines = [
        f"adapter {int(facts['adapter_bytes']) / 1e3:,.0f} kB, {facts['seconds']} s, peak memory "
        f"{int(facts['peak_memory_bytes']) / 1e9:.2f} GB"
    ]
    if "kept_step" in facts:
        lines.append(f"kept step {facts['kept_step']}: validation {facts['validation_kept']}")
    for name, score in facts["test"].items():
        if score.get("value") is not None:
            lines.append(
                f"test {name.replace('_', ' ')} {score['value']:.3f} "
                f"(95 % {_ends(score)}, {score['n']} clips)"
            )
    return lines


def _ends(score: dict[str, Any]) -> str:
    if score["low"] is None:
        return "unknown"
    return f"{score['low']:.3f} to {score['high']:.3f}"


def _contrast(
    settled: Settled, out: Path, device: str, resume: bool, overwrite: bool, show: bool
) -> None:
    from musictune.console import say
    from musictune.training.contrast_recipe import load_contrast_recipe

    recipe = load_contrast_recipe(*settled)
    if show:
        say(recipe.text.rstrip())
        return
    from musictune.training.contrast import tune_contrast

    tune_contrast(recipe, out, device=device, resume=resume, overwrite=overwrite)


def _one_or_all(values: list[str] | None) -> list[str] | str | None:
    """A recipe holds a plain text where there is one."""
    return values[0] if values and len(values) == 1 else values


def _run(recipe: Recipe, out: Path, device: str, resume: bool, overwrite: bool) -> Result:
    from musictune.models import checkpoint, load_model
    from musictune.models.devices import find_device
    from musictune.training.run import check_out, needs_judges, tune

    checkpoint.check(recipe.run.base)
    find_device(device)
    check_out(out, recipe, resume=resume, overwrite=overwrite)
    # Before the base: a CLAP that cannot be used is said at once.
    judges = _judges(recipe.run.embedder) if needs_judges(recipe) else None
    model = load_model(recipe.run.base, device)
    return tune(
        model,
        Path(recipe.run.clips) if recipe.run.clips else None,
        recipe,
        out,
        resume=resume,
        overwrite=overwrite,
        judges=judges,
    )


def _judges(embedder: str) -> Judges:
    from musictune.metrics.alignment import AudioAlignment, TextAlignment
    from musictune.metrics.embedders import ClapEmbedder

    clap = ClapEmbedder.load(embedder or None)

    def judges(held_out: Sequence[Clip]) -> tuple[Reward, Reward]:
        return AudioAlignment(clap, held_out), TextAlignment(clap)

    return judges


def _report(result: Result, recipe: Recipe) -> None:
    from musictune.console import say

    facts = result.facts
    say(
        f"adapter {int(facts['adapter_bytes']) / 1e3:,.0f} kB, {facts['seconds']} s, "
        f"peak memory {int(facts['peak_memory_bytes']) / 1e9:.2f} GB"
    )
    if "stopped_step" in facts:
        say(
            f"stopped early, after step {facts['stopped_step']} of {recipe.training.steps}: "
            f"{facts['stopped_because']}"
        )
    if "kept_step" in facts:
        say(
            f"kept step {facts['kept_step']} of "
            f"{facts.get('stopped_step', recipe.training.steps)}: alignment "
            f"{facts['alignment_kept']} (standard error {facts['alignment_standard_error']}), "
            f"untrained {facts['alignment_before']}, last {facts['alignment_last']}"
        )
    say(
        f"proof of effect: {result.effect.tokens_changed:.0%} of the tokens differ with the "
        f"adapter, {result.effect.mel_distance:.1f} dB apart"
    )
    call = " with ".join(concept.trigger for concept in recipe.concepts) or "a prompt"
    again = ["musictune", "generate", call, "--adapter", str(result.folder)]
    if recipe.run.base != "mini":
        again += ["--base", recipe.run.base]
    say(f"{result.folder}: try  {shlex.join(again)}")
