"""`musictune compose`: captioned music with known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compose(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    count: Annotated[int, typer.Option(min=1, help="How many clips.")] = 100,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 12.0,
    seed: Annotated[int, typer.Option(min=0, help="Clip number N is composed from seed + N.")] = 0,
    program: Annotated[
        int | None, typer.Option(help="Lead: General MIDI program, 0 to 127.")
    ] = None,
    style: Annotated[str | None, typer.Option(help="Such as 'jazz swing'.")] = None,
    texture: Annotated[str | None, typer.Option(help="solo, duo or band.")] = None,
    tempo: Annotated[float | None, typer.Option(help="Beats per minute.")] = None,
    key: Annotated[str | None, typer.Option(help="Such as 'A minor'.")] = None,
    suffix: Annotated[
        str, typer.Option(help="flac, or wav: larger, and faster to train from.")
    ] = "flac",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    soundfont: Annotated[Path | None, typer.Option(help="An .sf2 or .sf3 file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
) -> None:
    """Compose music whose tempo, key, chords and instruments are known, with captions.

    Writes an AudioFolder: audio/000000.flac and so on, and metadata.jsonl with a line per clip.
    What is not asked for is drawn at random. The same command writes the same files. Needs the
    extra 'compose' and a General MIDI SoundFont (Debian: fluidr3mono-gm-soundfont).

    Example: musictune compose --out corpus --count 1000 --seconds 12 --workers 2
    """
    import json
    from dataclasses import asdict

    from musictune import audio
    from musictune.compose.render import render_many
    from musictune.console import say, track
    from musictune.errors import InputError
    from musictune.files import check_target, publish_folder

    if suffix not in ("flac", "wav"):
        raise InputError(f"--suffix {suffix!r} is not known; give flac or wav")
    check_target(out, overwrite=overwrite)
    made = render_many(
        range(seed, seed + count),
        seconds=seconds,
        workers=workers,
        soundfont=soundfont,
        program=program,
        style=style,
        texture=texture,
        tempo=tempo,
        key=key,
    )
    with publish_folder(out, overwrite=overwrite) as folder:
        (folder / "audio").mkdir()
        with (folder / "metadata.jsonl").open("w", encoding="utf-8") as lines:
            for number, (score, clip) in enumerate(track(made, "composing", count)):
                name = f"audio/{number:06d}.{suffix}"
                audio.write(clip, folder / name)
                row = {"file_name": name, "text": clip.caption, "seconds": seconds}
                row |= {"seed": seed + number, **asdict(score.truth)}
                lines.write(json.dumps(row) + "\n")
    say(f"{out}: {count} clips, {count * seconds / 60:.1f} minutes")
