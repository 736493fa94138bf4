"""`musictune bench mini`: how good the bundled base is, part by part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def mini(
    json_file: Annotated[Path, typer.Option("--json", help="File for the rows.")],
    part: Annotated[
        list[str] | None,
        typer.Option(help="codec, language or clap; may be repeated. All if not given."),
    ] = None,
    base: Annotated[
        str, typer.Option(help="mini, a folder or Hugging Face id of a MusicGen.")
    ] = "mini",
    codec: Annotated[
        Path | None, typer.Option(help="Folder of a codec, instead of the base's own.")
    ] = None,
    clap: Annotated[
        Path | None, typer.Option(help="Folder of a CLAP, instead of the bundled one.")
    ] = None,
    recordings: Annotated[
        Path | None, typer.Option(help="Folder of real recordings for the codec's rows.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=2, help="Clips per part; 24, 200 and 500 if not given."),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="First seed of the held-out clips.")
    ] = 70_000_000,
    soundfont: Annotated[Path | None, typer.Option(help="An .sf2 or .sf3 file.")] = None,
) -> None:
    """Measure a base on music it has never met: codec, language model and CLAP.

    Composes clips from seeds that no corpus used, and prints a table per part: the codec's round
    trips beside Opus at 6 and 12 kbit/s, whether the language model plays what it is asked, and
    whether CLAP finds a clip by its caption. A ratio over 1 means that ours is better. The JSON
    holds the same rows with what made them.

    Needs the extra 'compose' and a General MIDI SoundFont (Debian: fluidr3mono-gm-soundfont).

    Example: musictune bench mini --json mini.json --part codec --recordings my-recordings
    """
    from musictune.bench.mini import PARTS, Wanted, bench_mini
    from musictune.console import say

    wanted = Wanted(
        parts=tuple(dict.fromkeys(part)) if part else PARTS,
        base=base,
        codec=codec,
        clap=clap,
        recordings=recordings,
        count=count,
        seed=seed,
        soundfont=soundfont,
    )
    rows = bench_mini(wanted, json_file)
    judged = [row.met for row in rows if row.met is not None]
    say(f"{json_file}: {len(rows)} rows, {sum(judged)} of {len(judged)} targets met")
