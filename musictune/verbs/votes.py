"""``musictune votes``: what people have said so far, and moving it in and out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from musictune.evaluation.votes import VoteReport


def votes(
    store: Annotated[
        Path, typer.Argument(help="A store of `listen` (.db), or an export (.jsonl, .csv).")
    ],
    export: Annotated[
        Path | None,
        typer.Option(help="Write the votes here as .jsonl or .csv, ratings into NAME-ratings."),
    ] = None,
    import_file: Annotated[
        Path | None,
        typer.Option("--import", help="First take over the votes or ratings of this file."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what --export names.")
    ] = False,
) -> None:
    """Count votes, measure how far raters agree, and rank the systems.

    Example: musictune votes votes.db --export votes.csv
    """
    import json

    from musictune.console import note, say
    from musictune.data.preferences import read_ratings, read_votes, write_ratings, write_votes
    from musictune.errors import InputError
    from musictune.evaluation.votes import vote_report
    from musictune.files import publish_file

    for path in (json_file, export):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise InputError(f"output {path} cannot be; name a file in a folder that exists")
    targets = [] if export is None else [export, export.with_stem(f"{export.stem}-ratings")]
    for target in targets:
        if target.suffix not in (".jsonl", ".csv"):
            raise InputError(f"export {target} must end in .jsonl or .csv")
        if target.exists() and not overwrite:
            raise InputError(f"export {target} already exists; name another or pass --overwrite")
    if import_file is not None:
        note(_take_over(store, import_file))
    tabled = store.suffix in (".jsonl", ".csv")
    rated = tabled and _has_ratings(store)
    given = [] if rated else read_votes(store)
    ratings = [] if tabled and not rated else read_ratings(store)
    report = vote_report(given, ratings)
    if export is not None:
        if given:
            write_votes(given, targets[0])
            say(f"{len(given)} votes written to {targets[0]}")
        if ratings:
            write_ratings(ratings, targets[1])
            say(f"{len(ratings)} ratings written to {targets[1]}")
    if json_file is not None:
        with publish_file(json_file) as temporary:
            temporary.write_text(json.dumps(report.plain(), indent=1) + "\n", encoding="utf-8")
    for line in _lines(report):
        say(line)
    for remark in report.remarks:
        note(remark)


def _has_ratings(path: Path) -> bool:
    from musictune.data.vote_files import holds_ratings
    from musictune.errors import InputError

    if not path.is_file():
        raise InputError(f"votes {path} do not exist; name a .db, .jsonl or .csv file")
    return holds_ratings(path)


def _take_over(store: Path, file: Path) -> str:
    from musictune.data.preferences import read_ratings, read_votes
    from musictune.data.vote_store import VoteStore
    from musictune.errors import InputError

    if store.suffix in (".jsonl", ".csv"):
        raise InputError(f"--import needs a store; {store} is a file of votes, name a .db")
    tabled = file.suffix in (".jsonl", ".csv")
    rated = tabled and _has_ratings(file)
    given = [] if rated else read_votes(file)
    ratings = [] if tabled and not rated else read_ratings(file)
    if not given and not ratings:
        raise InputError(f"{file} has no votes and no ratings; nothing was imported")
    fresh = not store.exists()
    try:
        with VoteStore(store) as kept:
            new = kept.add_votes(given), kept.add_ratings(ratings)
    except InputError:
        if fresh:
            store.unlink(missing_ok=True)
        raise
    return (
        f"{new[0]} of {len(given)} votes and {new[1]} of {len(ratings)} ratings of {file} are new"
    )


def _lines(report: VoteReport) -> list[str]:
    from musictune.metrics.base import NotComputed

    counts = report.counts
    lines = []
    if counts["votes"]:
        lines.append(
            f"{counts['votes']} votes on {counts['pairs']} pairs: {counts['a']} a, "
            f"{counts['b']} b, {counts['tie']} ties, {counts['skip']} skipped"
        )
    if counts["ratings"]:
        lines.append(f"{counts['ratings']} ratings of {counts['clips']} clips")
    lines.append(f"{counts['raters']} rater{'s' * (counts['raters'] != 1)}")
    for what, alpha in report.agreement.items():
        if isinstance(alpha, NotComputed):
            lines.append(f"agreement of {what}: not computed, {alpha.reason}")
            continue
        lines.append(
            f"agreement of {what} (Krippendorff's alpha): {alpha.value:.2f} "
            f"({alpha.low:.2f} to {alpha.high:.2f}, {alpha.n} answered by two or more)"
        )
    if report.position.n:
        place = report.position
        lines.append(
            f"shown first and chosen: {place.value:.0%} ({place.low:.0%} to {place.high:.0%})"
        )
    if counts["votes"] and isinstance(report.ranking, NotComputed):
        lines.append(f"ranking: not computed, {report.ranking.reason}")
    elif not isinstance(report.ranking, NotComputed):
        lines += ["", f"{'system':24} {'Elo':>6} {'95 %':>16} {'won':>5} {'lost':>5} {'tied':>5}"]
        for each in report.ranking:
            ends = f"{each.elo.low:+.0f} to {each.elo.high:+.0f}"
            lines.append(
                f"{each.system:24} {each.elo.value:>+6.0f} {ends:>16} "
                f"{each.wins:>5} {each.losses:>5} {each.ties:>5}  {each.elo.note}".rstrip()
            )
    if report.ratings:
        lines += ["", f"{'system':24} {'mean':>6} {'95 %':>16} {'rated':>5}"]
        for system, score in report.ratings.items():
            ends = f"{score.low:.0f} to {score.high:.0f}"
            lines.append(f"{system or '-':24} {score.value:>6.1f} {ends:>16} {score.n:>5}")
    return lines
