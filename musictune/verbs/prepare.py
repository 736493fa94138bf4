"""`musictune prepare`: recordings to clips that can be learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from musictune.audio import Clip


def prepare(
    clips: Annotated[
        Path, typer.Argument(help="An audio file, a folder, or a manifest (.jsonl, .jsonl.gz).")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    concept: Annotated[
        str | None, typer.Option(help="Name of the sound, which every caption then holds.")
    ] = None,
    class_word: Annotated[
        str | None,
        typer.Option(help="What kind of sound it is, such as 'piano'; goes with --concept."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Longest clip, 1 to 120.")] = 10.0,
    sample_rate: Annotated[int, typer.Option(help="Hz of the clips.")] = 32_000,
    channels: Annotated[int, typer.Option(help="1, or 2 to keep stereo.")] = 1,
    cut: Annotated[str, typer.Option(help="Where clips end: 'silence' or 'evenly'.")] = "silence",
    max_windows: Annotated[
        int | None,
        typer.Option(help="Most clips from one recording, spread evenly over it; all by default."),
    ] = None,
    tokens: Annotated[
        str, typer.Option(help="Base model whose codec tokens are kept beside; 'none' for none.")
    ] = "mini",
    overwrite: Annotated[bool, typer.Option(help="Replace the folder if it exists.")] = False,
) -> None:
    """Turn recordings into a folder of short, captioned clips for `tune` and `evaluate`.

    Reads wav, flac, ogg, opus, mp3, aiff, m4a and aac of any length, rate and up to eight channels.
    Cuts them at quiet places, brings them to one loudness, leaves out silence and near-duplicates,
    and describes each clip: from a .txt or .json of the same name, from the manifest, or from what
    can be heard (tempo, key, brightness, percussiveness). Files that cannot be used are skipped;
    report.json says which and why.

    Example: musictune prepare my-recordings --out clips --concept mypiano --class-word piano
    """
    from musictune.console import note, say
    from musictune.data.clips import prepare_folder
    from musictune.data.concepts import Concept
    from musictune.data.tokens import cached_tokens
    from musictune.errors import InputError
    from musictune.files import check_target

    if cut not in ("silence", "evenly"):
        raise InputError(f"--cut {cut!r} is unknown; choose silence or evenly")
    if concept and not class_word:
        raise InputError(f"--concept {concept} needs --class-word, such as --class-word piano")
    check_target(out, overwrite=overwrite)
    tokenize = None
    if tokens != "none":
        # Loaded first: an unknown base is then found before minutes of work.
        from musictune.models import load_model

        model = load_model(tokens)

        def tokenize(made: Sequence[Clip], folder: Path) -> None:
            cached_tokens(made, model.encode, model.codec_key, folder)

    report = prepare_folder(
        clips,
        out,
        sample_rate=sample_rate,
        seconds=seconds,
        channels=channels,
        concept=Concept(concept, class_word or "") if concept else None,
        subject=class_word or "piece of music",
        on_silence=cut == "silence",
        max_windows=max_windows,
        tokenize=tokenize,
        overwrite=overwrite,
    )
    if report.refused:
        note(f"files skipped: {len(report.refused)}; {out / 'report.json'} says why")
    left_out = report.silent + report.duplicate + report.short
    say(
        f"{out}: {report.windows} clips, {report.seconds:.1f} s, "
        f"recordings used: {len(report.used)}"
    )
    if left_out:
        say(
            f"left out: {report.silent} silent, {report.duplicate} duplicate, "
            f"{report.short} short windows"
        )
