"""``musictune merge``: an adapter made part of its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def merge(
    runs: Annotated[
        list[str],
        typer.Argument(help="A run of `tune`, or several to add up, each as RUN or RUN=0.7."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the merged model.")],
    weight: Annotated[
        float, typer.Option(help="How much of all of it: 1 everything, 0.5 half.")
    ] = 1.0,
    depth: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:LAST",
            help="How much of it the decoder's first and last layer keep, the ones between in a "
            "straight line (LiNeS): 0.3:1.",
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The base; by default the one the first adapter names.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder if it is there.")
    ] = False,
) -> None:
    """Fold one or more adapters into their base and write a plain transformers folder.

    The folder needs nothing of musictune: MusicgenForConditionalGeneration.from_pretrained and
    AutoTokenizer.from_pretrained read it. It also serves as a --base.

    Example: musictune merge runs/mybox --out models/mybox
    """
    import math

    from musictune.console import note, say
    from musictune.errors import InputError
    from musictune.files import check_target, publish_folder
    from musictune.methods import load_adapter
    from musictune.methods.adapter import live_methods
    from musictune.methods.composition import Addition, Depth, check_together
    from musictune.methods.overlap import overlap_notes
    from musictune.methods.storage import load_json
    from musictune.models import checkpoint, load_model

    if not math.isfinite(weight):
        raise InputError(f"weight {weight} must be a number, such as 0.7")
    adapters = [Addition.read(run) for run in runs]
    scale = Depth.read(depth) if depth is not None else None
    folders = [adapter.folder for adapter in adapters]
    check_together(folders)
    for folder in folders:
        if live := live_methods(folder):
            raise InputError(
                f"adapter {folder} cannot be merged: {live[0]} is no change of weights; use it "
                "with generate --adapter"
            )
    name = base or str(load_json(folders[0] / "adapter.json").get("base", "mini"))
    check_target(out, overwrite=overwrite, inputs=[*folders, Path(checkpoint.check(name))])
    for line in overlap_notes(folders):
        note(line)
    model = load_model(name, "cpu")
    concepts = [
        concept
        for adapter in adapters
        for concept in load_adapter(model, adapter.folder, weight * adapter.weight, scale)
    ]
    with publish_folder(out, overwrite=overwrite) as made:
        model.save(made)
    words = ", ".join(f"{c.trigger} reads as {c.tokens_text!r}" for c in concepts)
    say(f"merged model in {out}" + (f"; {words}" if words else ""))
