"""``musictune overlap``: how much the masks of several adapters have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def overlap(
    runs: Annotated[
        list[Path], typer.Argument(help="Two runs of `tune --method pivotal` or more.")
    ],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures, matrix by matrix, here.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them here, as .png or .svg.")] = None,
) -> None:
    """Compare the masks of pivotal adapters: shared weights, beside what chance would give.

    Loaded together, adapters add up where their masks meet: look there first if two of them
    disturb each other.

    Example: musictune overlap runs/koto runs/reggae --plot overlap.png
    """
    import json

    from musictune.console import say
    from musictune.errors import InputError
    from musictune.files import publish_file
    from musictune.methods import adapter_folder
    from musictune.methods.overlap import measure_overlap
    from musictune.training.diagnostic_plots import draw_overlap

    for path in (json_file, plot):
        if path is not None and path.is_dir():
            raise InputError(f"output {path} is a folder; name a file")
        if path is not None and not path.parent.is_dir():
            raise InputError(f"folder {path.parent} of output {path} does not exist; make it first")
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise InputError(f"plot {plot} must end in .png or .svg")
    found = measure_overlap([adapter_folder(run) for run in runs])
    if json_file is not None:
        with publish_file(json_file) as temporary:
            temporary.write_text(json.dumps(found.plain(), indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        with publish_file(plot) as temporary:
            draw_overlap(found, temporary)
    for (i, j), pair in found.pairs.items():
        say(f"{found.names[i]} & {found.names[j]}: {pair.sentence}; cosine {pair.cosine:+.3f}")
