"""`musictune bench decode`: our engine beside transformers and audiocraft."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def decode(
    json_file: Annotated[Path, typer.Option("--json", help="File for the rows.")],
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="mini, mini-8x384, small, medium, large or toy; may be repeated. mini if none."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 30.0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Decode so many steps instead, for slow shapes.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips at once.")] = 1,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help="float32, float16, bfloat16 or int8 of our engine; may be repeated. All that the "
            "device has if none."
        ),
    ] = None,
    audiocraft: Annotated[
        Path | None,
        typer.Option(
            help="Source of audiocraft 1.3.0, a folder or .tar.gz as `pip download --no-deps "
            "--no-binary :all: audiocraft==1.3.0` leaves it; needs a checkout of musictune."
        ),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compiled", help="Also transformers with its decoder through torch.compile."
        ),
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch; as many as it likes if not given.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="Measured runs of each side.")] = 3,
) -> None:
    """Measure a decoding step of our engine against transformers' generate and audiocraft.

    All sides play in turn in one process: same weights, same text, guidance 3, top-k 250. First it
    is checked that all choose the same likeliest tokens. Language model and codec are timed apart
    and together; a ratio over 1 means that ours is better. Random weights are as fast as real ones.
    Wants a quiet machine.

    Example: musictune bench decode --json decode.json --shape small --steps 50 --batch 8
    """
    from musictune.bench.decode import Wanted, bench_decode
    from musictune.console import say

    wanted = Wanted(
        shapes=tuple(dict.fromkeys(shape)) if shape else ("mini",),
        seconds=seconds,
        steps=steps,
        batch=batch,
        precisions=tuple(precision or ()),
        audiocraft=audiocraft,
        compiled=compiled,
        threads=threads,
        device=device,
        repeats=repeats,
    )
    document = bench_decode(wanted, json_file)
    judged = [row["met"] for row in document["rows"] if row["met"] is not None]
    say(f"{sum(judged)} of {len(judged)} targets met; rows in {json_file}")
