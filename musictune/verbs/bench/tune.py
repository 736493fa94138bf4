"""`musictune bench tune`: time and memory of a training step beside peft and full tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def tune(
    json_file: Annotated[Path, typer.Option("--json", help="File for the rows.")],
    shape: Annotated[
        list[str] | None,
        typer.Option(help="mini, small, medium or toy; may be repeated. mini and small if none."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="columns, rows, heads, elements or shira; may be repeated."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Clips per step, instead of the shape's own.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Codec frames per clip, likewise.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Measured steps per side, likewise.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch; as many as it likes if not given.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    profile: Annotated[
        bool, typer.Option("--profile", help="Also show where the time of a step goes.")
    ] = False,
    page: Annotated[Path | None, typer.Option(help="File for a page in Markdown.")] = None,
) -> None:
    """Measure a training step of pivotal parameters against peft's LoRA and SHiRA and full tuning.

    All sides of a comparison are stepped in turn in one process, with the same weights, batch and
    loss, in bfloat16: on the bundled model, and on random weights of MusicGen-small's shape. Prints
    a table of times and memory; a ratio over 1 means that ours is better. Wants a quiet machine.

    Example: musictune bench tune --json tune.json --profile --page tune.md
    """
    from musictune.bench.tune_page import page as markdown
    from musictune.bench.tune_speed import CASES, DEFAULT_SHAPES, Wanted, bench_tune
    from musictune.console import say
    from musictune.errors import InputError
    from musictune.files import publish_file

    wanted = Wanted(
        shapes=tuple(dict.fromkeys(shape)) if shape else DEFAULT_SHAPES,
        cases=tuple(dict.fromkeys(only)) if only else CASES,
        batch=batch,
        tokens=tokens,
        repeats=repeats,
        threads=threads,
        device=device,
        profiled=profile,
    )
    if page is not None and (page.is_dir() or not page.absolute().parent.is_dir()):
        raise InputError(f"--page {page} must be a file in a folder that exists")
    document = bench_tune(wanted, json_file)
    if page is not None:
        with publish_file(page) as temporary:
            temporary.write_text(markdown(document, wanted.command), encoding="utf-8")
    judged = [row["met"] for row in document["rows"] if row["met"] is not None]
    say(f"{sum(judged)} of {len(judged)} targets met; rows in {json_file}")
