"""``musictune bench concepts``: how well methods learn sounds the base has never heard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def concepts(
    out: Annotated[Path, typer.Option(help="Folder for cells and tables.")],
    data: Annotated[
        Path | None,
        typer.Option(help="A concept set, as datasets/concepts20/prepare.py makes it."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="As for `tune`, or a recipe in YAML; with changes: pivotal:method.fraction=0.02, "
            "lora:reference.seconds=30 (of the clips to learn from). Repeatable."
        ),
    ] = None,
    concept: Annotated[
        list[str] | None, typer.Option(help="Only this one. Repeatable; all by default.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Of everything random. Repeatable; 0 by default.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Training steps; the recipe's own by default.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change every recipe: training.lr=0.001. Repeatable."),
    ] = None,
    prompts: Annotated[
        int, typer.Option(help="Prompts of each concept: half keep its class, half move it.")
    ] = 20,
    seconds: Annotated[float, typer.Option(help="Length of each clip made.")] = 10.0,
    general: Annotated[
        int, typer.Option(help="Clips that forgetting is measured on; 0: not measured.")
    ] = 24,
    general_music: Annotated[
        int | None,
        typer.Option(help="How many of them are played too; all by default, 0: only their loss."),
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(help="Two concepts at once, such as koto+reggae. Repeatable."),
    ] = None,
    joint: Annotated[
        list[int] | None,
        typer.Option(
            help="Learn each pair in one run too, with this many tokens per concept. Repeatable."
        ),
    ] = None,
    base: Annotated[str, typer.Option(help="mini, a model folder, or a Hugging Face id.")] = "mini",
    embedder: Annotated[
        str | None, typer.Option(help="CLAP that listens; the bundled one by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    jobs: Annotated[
        int, typer.Option(help="Processes that make cells at once, with one thread each.")
    ] = 1,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Folder for RESULTS.md and plots of all cells in OUT, whichever commands made "
            "them. Without --data nothing new is made."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away what OUT holds and start again.")
    ] = False,
) -> None:
    """Tune on each concept with each method and seed, and measure what was learned and lost.

    Audio is compared with clips of the concept that were never trained on. The table also says how
    true the music stays to its prompts, what the model forgot, whether it copies, and what tuning
    cost. Its first row is the base, asked for the class word. Writes table.html, table.csv and
    table.json, and the music and adapter of each cell.

    It can be stopped at any time: the same command goes on after the last finished cell, and more
    methods, concepts or seeds can be added to the same OUT. Several commands may share one OUT.

    Example: musictune bench concepts --data concepts20 --method pivotal --method lora --out bench
    """
    import shlex

    from musictune.bench.asked import Plan, read_methods
    from musictune.bench.concept_set import read_concept_set
    from musictune.bench.jobs import Work
    from musictune.bench.pairs import pair_names, read_pairs
    from musictune.bench.run import failures, printed, run_bench
    from musictune.console import say
    from musictune.errors import CheckFailed, InputError
    from musictune.generation.engine import check_seconds

    def report() -> None:
        from musictune.bench.results import write_results

        if results is not None:
            written = write_results(out, results)
            say(f"{len(written)} files in {results}: {results / 'RESULTS.md'}")

    if data is None:
        if results is None or method:
            raise InputError("no --data given; name a concept set, or give --results alone")
        report()
        return
    seeds = list(dict.fromkeys(seed or [0]))
    if any(number < 0 for number in seeds):
        raise InputError(f"seed {min(seeds)} must be 0 or more")
    check_seconds(seconds)
    methods = read_methods(method or [])
    if jobs < 1:
        raise InputError(f"{jobs} jobs cannot work; give 1 or more")
    if joint and not pairs:
        raise InputError("--joint is about pairs; give some, such as --pairs koto+reggae")
    for tokens in joint or []:
        if not 1 <= tokens <= 32:
            raise InputError(f"{tokens} tokens cannot carry a concept; give --joint 1 to 32")
    plan = Plan(
        base, device, embedder, steps, tuple(set_ or ()), prompts, seconds, general, general_music
    )
    names = list(concept or [])
    if names:
        # A pair needs both its concepts learned apart.
        names += [name for pair in pairs or [] for name in pair_names(pair)]
    found = read_concept_set(data, names)
    given: dict[str, object] = {
        "--data": data, "--method": method, "--concept": concept, "--seed": seed,
        "--steps": steps, "--set": set_, "--prompts": prompts, "--seconds": seconds,
        "--general": general, "--general-music": general_music, "--pairs": pairs,
        "--joint": joint, "--base": base, "--embedder": embedder, "--out": out,
        "--jobs": jobs if jobs > 1 else None,
    }  # fmt: skip
    words = ["musictune", "bench", "concepts"]
    for flag, value in given.items():
        for item in value if isinstance(value, list) else [value]:
            words += [] if item is None else [flag, f"{item}"]
    work = Work(
        tuple(found),
        tuple(methods),
        tuple(seeds),
        tuple(read_pairs(pairs or [], found)),
        tuple(dict.fromkeys(joint or [])),
        plan,
    )
    tables = run_bench(work, out, command=shlex.join(words), jobs=jobs, overwrite=overwrite)
    for line in printed(tables):
        say(line)
    say(f"with intervals, and each concept: {out / 'table.html'}")
    report()
    if failed := failures(tables):
        total = len(tables.cells) + len(tables.pair_cells)
        raise CheckFailed(
            f"{failed} of {total} cells failed and are left out of the means; "
            f"{out / 'table.html'} says why"
        )
