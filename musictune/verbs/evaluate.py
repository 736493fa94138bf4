"""`musictune evaluate`: made music, or a classifier on labelled clips, to scores and a page."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from musictune.evaluation.classification import MeasuredClassifier
    from musictune.evaluation.plan import Plan
    from musictune.evaluation.run import Measured

_CLASSIFIER = "Of a classifier, with --run"


class Peer(StrEnum):
    """Tools whose numbers can be computed as they do."""

    fadtk = "fadtk"
    kadtk = "kadtk"
    audiocraft = "audiocraft"


class Layout(StrEnum):
    """Kinds of statistics files."""

    musictune = "musictune"
    fadtk = "fadtk"
    stable_audio_metrics = "stable-audio-metrics"


def evaluate(
    made: Annotated[
        Path,
        typer.Argument(
            help="Folder of made music, as `generate` writes it; with --run, labelled clips."
        ),
    ],
    reference: Annotated[
        Path | None,
        typer.Option(
            help="The sound to compare with: an audio file, folder, manifest, or statistics "
            "(.npz, or .npz:NAME where the file holds several)."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("out/report"),
    against: Annotated[
        Path | None,
        typer.Option(
            help="A second folder, such as the base's music of the same prompts and seeds."
        ),
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(help="What the model was tuned on, to look for copies: as --reference."),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(help="Clips of the same sound not trained on: they say how near is near."),
    ] = None,
    fail_on_copying: Annotated[
        bool, typer.Option("--fail-on-copying", help="Exit with 1 if training clips were copied.")
    ] = False,
    embedder: Annotated[
        str | None,
        typer.Option(
            help="What hears: a CLAP, MERT or EnCodec folder or Hugging Face id, or vggish:FILE; "
            "the bundled CLAP if not given."
        ),
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Option(help="An audio tagger (AST): adds the Kullback-Leibler divergence."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Whose codec tokens to look for copies in; as the manifest says."),
    ] = None,
    compat: Annotated[
        list[Peer] | None,
        typer.Option(help="Also the numbers of another tool, its quirks included. Repeatable."),
    ] = None,
    save_statistics: Annotated[
        Path | None,
        typer.Option(help="Also write mean and covariance of the made set, as a .npz file."),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            help="How --save-statistics lays them out: musictune, fadtk (the points it would "
            "hear) or stable-audio-metrics; with --run, how clips are labelled: folders, csv, "
            "esc50, ...; found out if not given."
        ),
    ] = "",
    workers: Annotated[
        int | None, typer.Option(help="Processes that listen; chosen if not given.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Where what was heard is kept; $MUSICTUNE_CACHE or ~/.cache/musictune."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where embedders compute: auto, cpu or cuda.")
    ] = "auto",
    run: Annotated[
        str,
        typer.Option(
            rich_help_panel=_CLASSIFIER,
            help="A run of `tune --task classify`, or a classifier's folder or Hugging Face id: "
            "measures that.",
        ),
    ] = "",
    split: Annotated[
        str,
        typer.Option(
            rich_help_panel=_CLASSIFIER,
            help="Only clips of this published part: train, validation or test; all if not given.",
        ),
    ] = "",
    fail_below: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-below",
            rich_help_panel=_CLASSIFIER,
            metavar="NAME=VALUE",
            help="Exit with 1 if a score is lower, such as accuracy=0.8. Repeatable.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the report if it is there.")
    ] = False,
) -> None:
    """Measure made music, or a classifier.

    Of music: how close to the reference, how true to its prompts, how varied.

    Writes report.html (a page to hear, see and compare, which needs no network), metrics.json and
    clips.csv. Each value comes with the 95 % interval it can be trusted to, and a value that
    cannot be computed with the reason. What was heard is kept, so that a second run, or one that
    was stopped, does not hear it again.

    Exits with 0 when it is done, 1 if copies were found under --fail-on-copying or a score is lower
    than --fail-below allows, 2 for bad input.

    With --against, clips of equal prompt and seed are compared one by one. With --training, copies
    of the training clips are looked for. Any folder of audio can be measured; without the manifest
    that `generate` writes there is no text alignment.

    Example: musictune evaluate out/tuned --reference my-recordings --against out/base --out report

    With another tool's numbers: musictune evaluate out/tuned --reference fma_pop.npz:vggish
    --embedder vggish:vggish.pth --compat fadtk --out report

    A classifier is heard on labelled clips (clips that it was trained on flatter it): accuracy,
    F1, mean average precision, confusion.png, and the surest mistakes to hear.

    Example: musictune evaluate labelled --run runs/genres --out report --fail-below accuracy=0.8
    """
    from musictune.console import say
    from musictune.errors import CheckFailed, InputError
    from musictune.evaluation.plan import Plan
    from musictune.metrics.base import NotComputed
    from musictune.metrics.folder import shown

    if run:
        music = {"--reference": reference, "--against": against, "--training": training,
                 "--held-out": held_out, "--fail-on-copying": fail_on_copying,
                 "--embedder": embedder, "--classifier": classifier, "--compat": compat,
                 "--save-statistics": save_statistics, "--workers": workers,
                 "--cache": cache}  # fmt: skip
        if given := [option for option, value in music.items() if value]:
            raise InputError(f"{given[0]} is about made music; leave it or --run out")
        measure_run(made, run, out, overwrite, layout, split, fail_below or [], device, base or "")
        return
    for value, option in ((split, "--split"), (fail_below, "--fail-below")):
        if value:
            raise InputError(f"{option} is about a classifier; give --run too")
    if reference is None:
        raise InputError(
            "neither --reference nor --run is given; name the sound to compare music with, or "
            "the classifier to measure"
        )
    for wanted, option in ((fail_on_copying, "--fail-on-copying"), (base, "--base")):
        if wanted and training is None:
            raise InputError(f"{option} is about copies of training clips; give --training too")
    plan = Plan(
        made, reference, against, training, held_out, embedder, classifier, base,
        tuple(dict.fromkeys(peer.value for peer in compat or [])), workers, cache, device,
    )  # fmt: skip
    measured = measure(plan, out, overwrite, save_statistics, _statistics_layout(layout))
    say(f"report: {shown(str(out / 'report.html'))}")
    copying = measured.evaluation.copying
    if not fail_on_copying or copying is None:
        return
    if copying.alarm:
        raise CheckFailed(f"copying: {copying.alarm_reason}")
    reasons = [score.reason for score in copying.scores.values() if isinstance(score, NotComputed)]
    if len(reasons) == len(copying.scores):
        raise CheckFailed(f"copying could not be looked for: {reasons[0]}")


def measure(
    plan: Plan,
    out: Path,
    overwrite: bool = False,
    save_statistics: Path | None = None,
    layout: Layout = Layout.musictune,
) -> Measured:
    """All that ``evaluate`` does but for naming the report's place."""
    from musictune.console import note, say
    from musictune.files import check_target, publish_folder

    check_target(out, overwrite=overwrite, inputs=plan.reads)
    if save_statistics:
        _check_statistics(save_statistics, out, plan)

    # After what is refused at once: these take seconds.
    from musictune.evaluation import run
    from musictune.evaluation.peers import fadtk_statistics
    from musictune.metrics.statistics_files import Statistics, write_statistics

    measured = run.evaluate(plan)
    evaluation = measured.evaluation
    with publish_folder(out, overwrite=overwrite) as folder:
        measured.write(folder)
    if save_statistics:
        if layout is Layout.fadtk:
            statistics = fadtk_statistics(plan, measured.embedder, measured.made.clips)
        else:
            statistics = Statistics.of(measured.made.points, measured.embedder.name)
        write_statistics(save_statistics, statistics, layout=layout.value)  # type: ignore[arg-type]
    for warning in evaluation.warnings:
        note(f"warning: {warning}")
    for line in _table(measured):
        say(line)
    for reason, names in _reasons(evaluation.not_computed).items():
        note(f"not computed: {', '.join(names)}: {reason}")
    if evaluation.copying is not None and evaluation.copying.alarm:
        note(f"copying: {evaluation.copying.alarm_reason}")
    return measured


def measure_run(
    clips: Path,
    run: str,
    out: Path,
    overwrite: bool = False,
    layout: str = "",
    split: str = "",
    fail_below: Sequence[str] = (),
    device: str = "auto",
    base: str = "",
) -> None:
    """All of ``evaluate --run``: a classifier on labelled clips."""
    from musictune.console import say
    from musictune.data.labelled import read_labelled
    from musictune.evaluation.classification import (
        check_limits,
        chosen_part,
        measure_classifier,
        parse_limits,
    )
    from musictune.files import check_target
    from musictune.metrics.folder import shown

    limits = parse_limits(fail_below)
    folder = Path(run)
    check_target(out, overwrite=overwrite, inputs=[clips, *([folder] if folder.exists() else [])])
    labelled = read_labelled(clips, layout or "auto")
    chosen_part(labelled, split)

    from musictune.generation.facts import adapter_facts
    from musictune.methods.composition import Addition
    from musictune.methods.tuned_classifier import load_classifier

    model = load_classifier(run, device, base)
    facts: dict[str, object] = {"run": run, "device": str(model.device)}
    if folder.is_dir():
        facts["sha256"] = adapter_facts(Addition(_learned(folder)))["sha256"]
    measured = measure_classifier(model, labelled, out, overwrite, split=split, facts=facts)
    for line in _scores(measured):
        say(line)
    say(f"report: {shown(str(out / 'report.html'))}")
    check_limits(measured, limits)


def _learned(folder: Path) -> Path:
    """What of a run decides its answers; the rest is figures and pictures."""
    inside = folder / "adapter"
    return inside if inside.is_dir() else folder


def _scores(measured: MeasuredClassifier) -> list[str]:
    """One line per score with its interval."""
    from musictune.metrics.base import NotComputed
    from musictune.metrics.classification import ABOUT
    from musictune.metrics.report_scores import interval, number

    width = max(len(ABOUT[name].title) for name in measured.main)
    return [
        f"{ABOUT[name].title.ljust(width)}  "
        + (
            f"not computed: {score.reason}"
            if isinstance(score, NotComputed)
            else f"{number(score.value)} {interval(score)}".rstrip()
        )
        for name, score in measured.main.items()
    ]


def _statistics_layout(name: str) -> Layout:
    from musictune.errors import InputError

    try:
        return Layout(name or Layout.musictune)
    except ValueError:
        known = ", ".join(Layout)
        raise InputError(f"--layout {name} of statistics is unknown; choose {known}") from None


def _check_statistics(file: Path, out: Path, plan: Plan) -> None:
    """Refuse a place for statistics before hours of listening rather than after."""
    from musictune.errors import InputError

    if file.suffix != ".npz":
        raise InputError(f"statistics {file} must be named .npz; choose another name")
    if file.resolve() in [path.resolve() for path in plan.reads]:
        raise InputError(f"statistics {file} would replace an input; choose another name")
    if not file.absolute().parent.is_dir():
        raise InputError(f"statistics {file} cannot be written: no folder {file.parent}; make it")
    if file.is_dir():
        raise InputError(f"statistics {file} is a folder; choose another name")
    if file.resolve().is_relative_to(out.resolve()):
        raise InputError(f"statistics {file} would go with the report {out}; put them beside it")


def _reasons(not_computed: dict[str, str]) -> dict[str, list[str]]:
    """The names of what is missing, by why; each once, whatever sets it is missing of."""
    found: dict[str, dict[str, None]] = {}
    for name, reason in not_computed.items():
        one = name.removeprefix("against/").removeprefix("difference/")
        found.setdefault(reason, {})[one] = None
    return {reason: list(names) for reason, names in found.items()}


def _table(measured: Measured) -> list[str]:
    """One line per score with the value of each set, and the paired difference."""
    from musictune.metrics.report_scores import about, figures, score_names

    evaluation, against = measured.evaluation, measured.against
    header = ["", measured.made.clips.name]
    header += [against.clips.name, "difference", "p"] if against else []
    rows = [[*header, "better"]]
    for name in score_names(evaluation):
        row = [figures(evaluation, name)]
        if against:
            row += [figures(evaluation, f"against/{name}")]
            row += [figures(evaluation, f"difference/{name}", sign="+")]
        if not any(row):
            continue
        if against:
            p = evaluation.p.get(f"difference/{name}", evaluation.p.get(name))
            row += ["" if p is None else f"{p:.2g}"]
        described = about(evaluation, name)
        better = described.better if described.better != "neither" else ""
        rows.append([described.title, *row, better])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
