"""``musictune pretrain``: make a base model from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pretrain(
    config: Annotated[Path, typer.Option(help="Recipe, such as configs/pretrain_codec.yaml.")],
    corpus: Annotated[
        Path, typer.Option(help="AudioFolder to learn from, as `musictune compose` writes it.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the trained part.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change the recipe: settings.steps=200.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run stopped.")] = False,
    until: Annotated[
        int | None, typer.Option(help="Stop at this step of the schedule, to --resume later.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder if it is there.")
    ] = False,
) -> None:
    """Train one part of a base model: codec, language model, CLAP or audio encoder.

    In this order, since the language model speaks the codec's tokens:

        musictune compose --count 6000 --out corpus

        musictune pretrain --config configs/pretrain_codec.yaml --corpus corpus --out base/codec

        musictune pretrain --config configs/pretrain_language.yaml --corpus corpus
        --set part.init_args.codec=base/codec --out base/musicgen

        musictune pretrain --config configs/pretrain_clap.yaml --corpus corpus --out base/clap

        musictune pretrain --config configs/pretrain_ast.yaml --corpus corpus --out base/ast
    """
    from musictune.training.pretrain import pretrain as run
    from musictune.training.pretrain import read_part

    part = read_part(config, set_ or [])
    run(part, corpus, out, resume=resume, until=until, overwrite=overwrite)
