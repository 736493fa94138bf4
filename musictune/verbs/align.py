"""``musictune align``: learn what people, or a reward, prefer."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from musictune.metrics.base import Reward
    from musictune.training.align import Towards
    from musictune.training.align_recipe import AlignRecipe
    from musictune.training.run import Result


def align(
    objective: Annotated[
        str | None,
        typer.Option(
            help="With votes: dpo (default), ipo, kto, simpo, cpo, orpo, dpo_winner, conditional. "
            "On what it plays itself: rloo, grpo, reinforce, expert."
        ),
    ] = None,
    votes: Annotated[
        list[Path] | None,
        typer.Option(help="A store of `listen`, or votes in JSONL or CSV. Repeatable."),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="What to praise: text_alignment, audio_alignment, quality, tempo, key, novelty, "
            "aesthetics, or reward:FOLDER of `musictune reward`; NAME=WEIGHT. Repeatable."
        ),
    ] = None,
    then: Annotated[
        list[str] | None,
        typer.Option(help="Rewards of a second stage. Repeatable."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of prompts, one a line: to play and to score.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the run.")] = Path("out/align"),
    adapter: Annotated[
        Path | None,
        typer.Option(help="Go on training the adapter of this run; stay near to it."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="What is trained, as for `tune`: pivotal (default), lora...")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="mini (default), a model folder, or a Hugging Face id.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Recordings of the sound wanted, for audio_alignment.")
    ] = None,
    training: Annotated[
        Path | None, typer.Option(help="Recordings not to repeat, for novelty.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps; 100 by default.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Of each clip, played or compared; 10 by default.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate; the method's own by default.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Pairs, or played clips, per pass; 4 by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random; 0 by default.")] = None,
    embedder: Annotated[
        str | None, typer.Option(help="The CLAP that hears: a folder or Hugging Face id.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    config: Annotated[
        list[Path] | None, typer.Option(help="A recipe in YAML; later ones win. Repeatable.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a recipe: objective.beta=0.05. Repeatable."),
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
    """Steer a model by votes or by a reward, and see what it costs.

    Three ways:

        musictune align --votes votes.db --objective dpo            from people's votes
        musictune align --reward text_alignment --prompts prompts.txt --objective rloo
        musictune align --reward text_alignment --prompts prompts.txt --objective dpo

    The second plays and learns in turn; the third has the model play some pairs first, which the
    reward compares. `musictune listen` collects votes; `musictune reward` makes a reward of them.
    With no training at all, `musictune generate --best-of 8 --reward NAME` picks the best of some.

    The run holds adapter/, metrics.csv with reward, divergence (KL), entropy, variety, text and
    audio alignment side by side, alignment.png, reward_kl.png, samples/ and a README.md. Every 25
    steps held-out prompts are scored; with a reward the best step is kept. The run ends early when
    the clips of a prompt become alike (--set align.least_diversity=0.5) or, with --set
    training.patience=3, when the held-out reward no longer rises.

    More with --set; --print-config shows every key there is:

    objective.beta=0.1: how dear the distance from the model as it was is; align.target_kl=0.05
    moves it so that the distance stays there.

    align.prompts_per_step=4, align.group=4: what on-policy objectives play in every step.

    Guidance: a model is trained as it is without guidance; align.guidance=3 trains it as it is
    played, for twice the time.

    Ctrl-C stops after the current step and keeps a checkpoint for --resume.
    """
    from musictune.console import say
    from musictune.training.align_recipe import load_align_recipe

    recipe = load_align_recipe(
        config or [],
        set_ or [],
        {
            "run.base": base,
            "run.embedder": embedder,
            "training.steps": steps,
            "training.seconds": seconds,
            "training.lr": lr,
            "training.batch": batch,
            "training.seed": seed,
            "align.votes": [str(path) for path in votes] if votes else None,
            "align.reward": reward,
            "align.then": then,
            "align.prompts": _text(prompts),
            "align.adapter": _text(adapter),
            "align.reference": _text(reference),
            "align.training_clips": _text(training),
        },
        method,
        objective,
    )
    if print_config:
        say(recipe.text.rstrip())
        return
    _report(_run(recipe, out, device, resume, overwrite), recipe)


def _text(path: Path | None) -> str | None:
    return str(path) if path else None


def _run(recipe: AlignRecipe, out: Path, device: str, resume: bool, overwrite: bool) -> Result:
    from musictune.models import checkpoint, load_model
    from musictune.models.devices import find_device
    from musictune.training.align import align as run
    from musictune.training.align import check_align

    checkpoint.check(recipe.run.base)
    find_device(device)
    check_align(out, recipe, resume=resume, overwrite=overwrite)
    # Before the base: votes and rewards that cannot be used are said at once.
    towards = _towards(recipe)
    model = load_model(recipe.run.base, device)
    return run(model, recipe, towards, out, resume=resume, overwrite=overwrite)


def _towards(recipe: AlignRecipe) -> Towards:
    from musictune.console import note
    from musictune.data.clips import read_clips
    from musictune.data.preferences import comparisons, read_all, remarks
    from musictune.errors import InputError
    from musictune.evaluation.rewards import load_reward
    from musictune.generation.folder import read_prompts
    from musictune.metrics.alignment import AudioAlignment, TextAlignment
    from musictune.metrics.diversity import prompt_diversity
    from musictune.metrics.embedders import ClapEmbedder
    from musictune.training.align import Towards

    align = recipe.align
    if not align.votes and not align.reward:
        raise InputError("nothing to align to; give --votes, or --reward with --prompts")
    if align.reward and not align.prompts:
        raise InputError("a reward needs prompts to play; give --prompts FILE, one a line")
    found = []
    if align.votes:
        read = [read_all(Path(path)) for path in align.votes]
        votes = [vote for given, _ in read for vote in given]
        for remark in remarks(votes):
            note(remark)
        found = comparisons(votes, [rating for _, rated in read for rating in rated])
    clap = ClapEmbedder.load(recipe.run.embedder or None)

    def load(names: Sequence[str]) -> Reward:
        return load_reward(
            names,
            embedder=recipe.run.embedder,
            reference=Path(align.reference) if align.reference else None,
            training=Path(align.training_clips) if align.training_clips else None,
        )

    beside: dict[str, Reward] = {"text_alignment": TextAlignment(clap)}
    if align.reference:
        beside["audio_alignment"] = AudioAlignment(clap, read_clips(Path(align.reference)))
    return Towards(
        prompts=read_prompts(Path(align.prompts)) if align.prompts else (),
        comparisons=found,
        rewards=[load(names) for names in (align.reward, align.then) if names],
        beside=beside,
        diversity=lambda clips, groups: prompt_diversity(clap.audio(clips), groups),
    )


def _report(result: Result, recipe: AlignRecipe) -> None:
    from musictune.console import say

    facts = result.facts
    say(
        f"adapter {int(facts['adapter_bytes']) / 1e3:,.0f} kB, {facts['seconds']} s, "
        f"peak memory {int(facts['peak_memory_bytes']) / 1e9:.2f} GB"
    )
    if "stopped_step" in facts:
        say(f"stopped early, after step {facts['stopped_step']}: {facts['stopped_because']}")
    names = [name.removesuffix("_kept") for name in facts if name.endswith("_kept")]
    for name in names:
        say(
            f"{name.replace('_', ' ')}: {facts[f'{name}_before']} before, "
            f"{facts[f'{name}_kept']} at step {facts['kept_step']}, which is kept"
        )
    says = f"{recipe.concepts[0].trigger} a prompt" if recipe.concepts else "a prompt"
    again = ["musictune", "generate", says, "--adapter", str(result.folder)]
    if recipe.run.base != "mini":
        again += ["--base", recipe.run.base]
    say(f"{result.folder}: try  {shlex.join(again)}")
