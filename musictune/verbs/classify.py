"""`musictune classify`: recordings to labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def classify(
    files: Annotated[list[Path], typer.Argument(help="Audio files, and folders of them.")],
    model: Annotated[
        str,
        typer.Option(
            help="A run of `tune --task classify`, mini, a model folder, or a Hugging Face id."
        ),
    ] = "mini",
    base: Annotated[
        str, typer.Option(help="Of a run, where the base it was made for lies elsewhere now.")
    ] = "",
    top: Annotated[int, typer.Option(help="Most labels to name; 0: all there are.")] = 3,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Least probability of a label that is named; 0.5 where several labels can be "
            "true of a recording, else none."
        ),
    ] = None,
    windows: Annotated[
        bool, typer.Option("--windows", help="Also show what is heard in each window.")
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(
            help="Seconds from one window to the next, and show each; as long as the window if "
            "not given."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Also write FILE.json or FILE.csv; - for JSON to standard output alone."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if it is there.")
    ] = False,
) -> None:
    """Say what is heard in recordings: labels with probabilities.

    A recording longer than the model hears at once is heard in windows, in bounded memory, and
    gets the mean of their probabilities; --windows shows the timeline.

    The model is the bundled one, one that `tune --task classify` taught your own labels, or any
    audio classifier of transformers:

        musictune classify takes/*.wav

        musictune classify set.mp3 --model runs/genres --every 5 --out set.json

    JSON holds for each recording its file, seconds, labels, and windows with start, seconds and
    labels; CSV a row for each recording, or for each window with --windows or --every. A silent
    recording is said to be silent and gets no label.

    A recording that cannot be heard is named, the others are still done and written, and the exit
    status is 2. A path that does not exist is refused before anything is heard.
    """
    from musictune.console import say, track
    from musictune.errors import InputError
    from musictune.evaluation.answers import (
        Naming,
        check_file,
        check_numbers,
        failure,
        find_recordings,
    )

    check_numbers(top, threshold)
    recordings = find_recordings(files)
    piped = str(out) == "-"
    if out is not None and not piped:
        check_file(out, overwrite, recordings)

    # After what is refused at once: these take seconds.
    from musictune.evaluation.naming import Sound, check_every, name_sounds
    from musictune.methods.tuned_classifier import load_classifier

    classifier = load_classifier(model, device, base)
    check_every(every, classifier)
    naming = Naming(
        classifier.labels, classifier.multi_label, top, threshold, windows or every is not None
    )
    width = max(len(str(path)) for path in recordings)
    heard = name_sounds(classifier, map(Sound, recordings), every, naming.most)
    answers = list(track(heard, "listening", len(recordings)))
    # Not `say`, which --quiet silences: this is what was asked for.
    for line in [line for one in answers for line in naming.lines(one, width)] * (not piped):
        typer.echo(line)
    problem = failure(answers)
    if all(answer.error for answer in answers):
        raise InputError(problem)
    if piped:
        typer.echo(naming.json(answers), nl=False)
    elif out is not None:
        naming.write(answers, out)
        say(f"{out}: {len(answers)} recordings")
    if problem:
        raise InputError(problem)
