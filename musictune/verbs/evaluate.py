"""`musictune evaluate`: made music to scores and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from musictune.metrics.folder import ClipSet
    from musictune.metrics.suite import Evaluation


def evaluate(
    made: Annotated[Path, typer.Argument(help="Folder of made music, as `generate` writes it.")],
    reference: Annotated[
        Path, typer.Option(help="The sound to compare with: an audio file, folder or manifest.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the report.")],
    against: Annotated[
        Path | None,
        typer.Option(
            help="A second folder, such as the base's music of the same prompts and seed."
        ),
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(help="CLAP that listens: a folder or Hugging Face id; bundled if not given."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the report if it is there.")
    ] = False,
) -> None:
    """Measure made music: how close to the reference, how true to its prompts, how varied.

    Writes report.html (a page to hear, see and compare, which needs no network), metrics.json and
    clips.csv. Audio alignment and text alignment are cosines of CLAP embeddings, where higher is
    better; the Fréchet audio distance compares the sets as wholes and self-similarity shows a model
    that repeats itself, where lower is better. Each value comes with the 95 % interval it can be
    trusted to, and a value that cannot be computed with the reason.

    With --against, clips of equal prompt and seed are compared one by one. Any folder of audio can
    be measured; without the manifest that `generate` writes there is no text alignment.

    Example: musictune evaluate out/tuned --reference my-recordings --against out/base --out report
    """
    from musictune.console import say

    measure(made, reference, out, against, embedder, overwrite)
    say(f"report: {out / 'report.html'}")


def measure(
    made: Path,
    reference: Path,
    out: Path,
    against: Path | None = None,
    embedder: str | None = None,
    overwrite: bool = False,
) -> None:
    """All that ``evaluate`` does but for naming the report's place."""
    from dataclasses import replace

    from musictune.console import note, say, track
    from musictune.data.sources import discover
    from musictune.files import check_target, publish_folder
    from musictune.metrics.embedders import ClapEmbedder
    from musictune.metrics.folder import ClipFile, ClipSet, pair, read_made, reference_clips
    from musictune.metrics.report import write_report
    from musictune.metrics.suite import score_sets

    reads = [path for path in (made, reference, against) if path]
    check_target(out, overwrite=overwrite, inputs=reads)
    made_name, against_name = _names(made, against)
    made_set = ClipSet(made_name, read_made(made))
    known = tuple(ClipFile(source.path, source.name) for source in discover(reference))
    reference_set = ClipSet(_name(reference), known)
    against_set, pairs = None, []
    if against:
        others = list(read_made(against))
        pairs = pair(made_set.files, others)
        for i, j in pairs:
            # A base that never met the concept kept its trigger; the judge reads the same for both.
            others[j] = replace(others[j], text=made_set.files[i].text)
        against_set = ClipSet(against_name, tuple(others))

    listener = ClapEmbedder.load(embedder)
    evaluation = score_sets(
        listener,
        (file.read() for file in track(made_set.files, f"listening to {made_name}")),
        reference_clips(track(known, "listening to the reference")),
        (file.read() for file in track(against_set.files, f"listening to {against_name}"))
        if against_set
        else None,
        pairs,
    )
    with publish_folder(out, overwrite=overwrite) as folder:
        write_report(folder, evaluation, listener, made_set, reference_set, against_set)
    for line in _table(evaluation, made_set, against_set):
        say(line)
    for name, reason in evaluation.not_computed.items():
        note(f"{name} not computed: {reason}")


def _names(made: Path, against: Path | None) -> tuple[str, str]:
    """What to call the sets: their folders, unless these have one name."""
    names = _name(made), _name(against) if against else ""
    return names if names[0] != names[1] else ("made", "against")


def _name(path: Path) -> str:
    resolved = path.resolve()
    return resolved.name if resolved.is_dir() else resolved.stem


def _table(evaluation: Evaluation, made: ClipSet, against: ClipSet | None) -> list[str]:
    """One line per score with the value of each set, and the paired difference."""
    from musictune.metrics.report import MEANINGS

    header = ["", made.name] + ([against.name, "difference", "p"] if against else []) + ["better"]
    rows = [header]
    for name, (title, _) in MEANINGS.items():
        score = evaluation.scores.get(name)
        row = [title, _value(evaluation, name)]
        if against:
            p = evaluation.p.get(f"difference/{name}")
            row += [_value(evaluation, f"against/{name}")]
            row += [_value(evaluation, f"difference/{name}", sign="+")]
            row += ["" if p is None else f"{p:.2g}"]
        rows.append([*row, score.better if score else ""])
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _value(evaluation: Evaluation, name: str, sign: str = "") -> str:
    score = evaluation.scores.get(name)
    if not score:
        return "-"
    interval = "" if score.low != score.low else f" ({score.low:.3f} to {score.high:.3f})"
    return f"{score.value:{sign}.3f}{interval}"
