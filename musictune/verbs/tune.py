"""``musictune tune``: learn a sound."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from musictune.audio import Clip
    from musictune.metrics.base import Reward
    from musictune.training.best import Judges
    from musictune.training.recipe import Recipe
    from musictune.training.run import Result


class Keep(StrEnum):
    """Which step's adapter is kept."""

    last = "last"
    best = "best"


def tune(
    clips: Annotated[
        Path | None,
        typer.Argument(help="A recording, a folder of them, a manifest, or a prepared folder."),
    ] = None,
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
            help="pivotal (default), full, concept_tokens, bottleneck, ssf, prefix, prompt_tuning, "
            "or what peft has: lora, dora, rslora, pissa, ia3, miss, oft, vera, shira, and others."
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

    Ctrl-C stops after the current step and keeps a checkpoint for --resume.

    Example: musictune tune my-recordings --concept mybox --class-word "music box" --out runs/mybox
    """
    from musictune import console
    from musictune.errors import InputError
    from musictune.training.recipe import load_recipe

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
