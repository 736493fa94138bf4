"""Make the audio of concepts20, or a concept in the same layout from recordings of your own.

    python datasets/concepts20/prepare.py --out out/concepts20 --workers 2
    python datasets/concepts20/prepare.py --out out/concepts20 --only koto --only reggae
    python datasets/concepts20/prepare.py --out out/mine --recordings FOLDER --name mybox \
        --class-word "music box"

Composing needs the extra 'compose' and a General MIDI SoundFont: make compose-setup, and on
Debian apt-get install fluidr3mono-gm-soundfont.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

HERE = Path(__file__).resolve().parent
CONCEPTS = HERE / "concepts.json"
CHECKSUMS = HERE / "checksums.txt"


def prepare(
    out: Annotated[Path, typer.Option(help="Folder of the set; each concept is a folder in it.")],
    only: Annotated[list[str] | None, typer.Option(help="A concept by name. Repeatable.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    soundfont: Annotated[Path | None, typer.Option(help="An .sf2 or .sf3 file.")] = None,
    recordings: Annotated[
        Path | None, typer.Option(help="Recordings of your own: a file or folder.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call the sound in them.")] = None,
    class_word: Annotated[
        str | None, typer.Option(help="What kind of sound it is, such as 'music box'.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace concepts.")] = False,
    publish: Annotated[
        bool, typer.Option("--publish", help="Rewrite checksums.txt here: a new edition.")
    ] = False,
) -> None:
    """Make the audio of concepts20, or a concept from recordings of your own."""
    from musictune.bench.concept_audio import write_sums
    from musictune.errors import InputError

    if recordings is None:
        if name or class_word:
            raise InputError("--name and --class-word describe --recordings; give those too")
        if publish and only:
            raise InputError("--publish is for the whole set; leave out --only")
        made = _compose(out, only or [], workers, soundfont, overwrite)
        _compare(made, out, soundfont, publish)
    elif not name or not class_word or only or publish:
        raise InputError("--recordings goes with --name and --class-word, not --only or --publish")
    else:
        _record(recordings, out, name, class_word, overwrite)
    write_sums(out)


def _compose(
    out: Path, only: list[str], workers: int, soundfont: Path | None, overwrite: bool
) -> dict[str, str]:
    from musictune.bench.concept_audio import read_plans, render_set

    plans = read_plans(CONCEPTS, out, only)
    return render_set(plans, workers=workers, soundfont=soundfont, overwrite=overwrite)


def _compare(made: dict[str, str], out: Path, soundfont: Path | None, publish: bool) -> None:
    """Say whether the audio is that of the published checksums, to the sample."""
    from musictune.compose.render import find_soundfont
    from musictune.console import note, say
    from musictune.files import publish_file, sha256

    font = f"{sha256(find_soundfont(soundfont))}  soundfont"
    lines = [f"{digest}  {folder}" for folder, digest in made.items()]
    if publish:
        with publish_file(CHECKSUMS) as temporary:
            temporary.write_text("\n".join([font, *lines]) + "\n", encoding="utf-8")
    published = CHECKSUMS.read_text(encoding="utf-8").splitlines()
    differing = [line.split()[1] for line in lines if line not in published]
    say(f"{out}: {len(lines) - len(differing)} of {len(lines)} folders of audio as published")
    if differing:
        which = "the same" if font in published else "another"
        note(
            f"warning: {', '.join(differing)} differ from the published checksums, made with "
            f"{which} SoundFont (sha256 {font.split()[0]}); compare figures only with sets alike"
        )


def _record(recordings: Path, out: Path, name: str, class_word: str, overwrite: bool) -> None:
    from musictune.bench.concept_recordings import cut_recordings
    from musictune.bench.concept_set import parse_concept, read_concept_set
    from musictune.console import say

    prompts = json.loads(CONCEPTS.read_text(encoding="utf-8"))["recordings"]
    entry = {"name": name, "kind": "recordings", "class_word": class_word, **prompts}
    entry["source"] = f"recordings in {recordings.name}"
    cut_recordings(recordings, parse_concept(entry, out / name, "--name"), overwrite=overwrite)
    concept = read_concept_set(out, [name])[0]
    counts = [
        len((folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
        for folder in (concept.reference, concept.heldout)
    ]
    say(f"{out / name}: {counts[0]} clips to learn from, {counts[1]} held out")


def main() -> None:
    from musictune.errors import MusictuneError
    from musictune.files import readable

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(prepare)
    try:
        app()
    except MusictuneError as error:
        print(f"musictune: error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"musictune: error: {readable(error, error.filename or 'the set')}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


if __name__ == "__main__":
    main()
