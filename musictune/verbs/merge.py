"""``musictune merge``: an adapter made part of its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def merge(
    run: Annotated[Path, typer.Argument(help="A run of `tune`, or an adapter folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the merged model.")],
    weight: Annotated[float, typer.Option(help="How much of the adapter: 1 all, 0.5 half.")] = 1.0,
    base: Annotated[
        str | None, typer.Option(help="The base; by default the one the adapter names.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder if it is there.")
    ] = False,
) -> None:
    """Fold an adapter into its base and write a plain transformers folder.

    The folder needs nothing of musictune: MusicgenForConditionalGeneration.from_pretrained and
    AutoTokenizer.from_pretrained read it. It also serves as a --base.

    Example: musictune merge runs/mybox --out models/mybox
    """
    import math

    from musictune.console import say
    from musictune.errors import InputError
    from musictune.files import check_target, publish_folder
    from musictune.methods import adapter_folder, load_adapter
    from musictune.methods.storage import load_json
    from musictune.models import checkpoint
    from musictune.models.musicgen import MusicGen

    if not math.isfinite(weight):
        raise InputError(f"weight {weight} must be a number, such as 0.7")
    folder = adapter_folder(run)
    name = base or str(load_json(folder / "adapter.json").get("base", "mini"))
    check_target(out, overwrite=overwrite, inputs=[folder, Path(checkpoint.check(name))])
    model = MusicGen.load(name, "cpu")
    concepts = load_adapter(model, folder, weight)
    with publish_folder(out, overwrite=overwrite) as made:
        model.save(made)
    words = ", ".join(f"{c.trigger} reads as {c.tokens_text!r}" for c in concepts)
    say(f"merged model in {out}" + (f"; {words}" if words else ""))
