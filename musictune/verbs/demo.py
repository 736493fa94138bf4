"""``musictune demo``: the whole way in one go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from musictune.training.recipe import Recipe

DEMOS = Path(__file__).resolve().parents[2] / "demos"
PROMPTS = DEMOS / "prompts.txt"


def demo(
    clips: Annotated[
        Path | None, typer.Argument(help="Recordings to learn; the demo's own if not given.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("out/demo"),
    concept: Annotated[str, typer.Option(help="Name of the sound.")] = "steelpan",
    class_word: Annotated[str, typer.Option(help="What kind of sound it is.")] = "marimba",
    method: Annotated[str, typer.Option(help="As for `tune`.")] = "pivotal",
    base: Annotated[str, typer.Option(help="As for `tune`.")] = "mini",
    steps: Annotated[int, typer.Option(help="Training steps.")] = 300,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    prompts: Annotated[
        Path | None,
        typer.Option(help="One prompt per line, the sound written {concept}; or the demo's own."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder if it is there.")
    ] = False,
) -> None:
    """Tune on a reference clip, play the same prompts before and after, score both, make a page.

    Writes adapter/ (what was learned), base/ and tuned/ (the same prompts and seeds without and
    with it; the base reads the class word in place of the new one), metrics.json, clips.csv,
    report.html and tuning/ (the run itself). With recordings of your own:

        musictune demo my-recordings --concept mybox --class-word "music box" --out out/mybox
    """
    import time

    from musictune import console
    from musictune.data.concepts import plain
    from musictune.errors import InputError
    from musictune.evaluation.plan import Plan
    from musictune.files import check_target, publish_folder
    from musictune.generation.folder import read_prompts, write_music
    from musictune.methods import load_adapter
    from musictune.models import load_model
    from musictune.training.recipe import load_recipe
    from musictune.training.run import tune
    from musictune.verbs.evaluate import measure

    began = time.monotonic()
    clips = clips or DEMOS / "steelpan.flac"
    if not clips.exists():
        raise InputError(f"clips {clips} do not exist; name a recording or a folder of them")
    check_target(out, overwrite=overwrite)
    recipe = load_recipe(
        [],
        [],
        {
            "run.clips": str(clips),
            "run.base": base,
            "run.concept": concept,
            "run.class_word": class_word,
            "training.steps": steps,
            "training.seed": seed,
        },
        method,
    )
    wanted = _with_trigger(read_prompts(prompts or PROMPTS), recipe)
    with publish_folder(out, overwrite=overwrite) as folder:
        model = load_model(base)
        concepts = [recipe.concept] if recipe.concept else []
        asked = [plain(prompt, concepts) for prompt in wanted]
        console.say(f"base: {len(asked)} prompts")
        write_music(model, asked, folder / "base", seconds=seconds, seed=seed)
        console.say(f"tuning on {clips}")
        result = tune(model, clips, recipe, folder / "tuning")
        (folder / "tuning" / "adapter").rename(folder / "adapter")
        console.say(f"tuned: {len(wanted)} prompts")
        model = load_model(base)
        load_adapter(model, folder / "adapter")
        used = {"path": str(out / "adapter"), "weight": 1.0}
        write_music(model, wanted, folder / "tuned", seconds=seconds, seed=seed, adapters=[used])
        plan = Plan(folder / "tuned", clips, against=folder / "base", base=base)
        measure(plan, folder / "report")
        for file in (folder / "report").iterdir():
            file.rename(folder / file.name)
        (folder / "report").rmdir()
    facts = result.facts
    console.say(
        f"adapter {int(facts['adapter_bytes']) / 1e3:,.0f} kB, "
        f"peak memory {int(facts['peak_memory_bytes']) / 1e9:.2f} GB, "
        f"{time.monotonic() - began:.0f} s in all"
    )
    console.say(f"hear and see it: {out / 'report.html'}")


def _with_trigger(prompts: list[str], recipe: Recipe) -> list[str]:
    trigger = recipe.concept.trigger if recipe.concept else ""
    return [prompt.replace("{concept}", trigger) for prompt in prompts]
