"""``musictune export``: an adapter in the form of another library."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Form(StrEnum):
    """Forms that an adapter can be written in."""

    peft = "peft"


def export(
    run: Annotated[Path, typer.Argument(help="A run of `tune`, or an adapter folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the exported adapter.")],
    form: Annotated[
        Form, typer.Option("--format", help="peft: for PeftModel.from_pretrained.")
    ] = Form.peft,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder if it is there.")
    ] = False,
) -> None:
    """Write an adapter so that plain peft loads it, exactly.

    Rows, columns, heads and channels become a LoRA, single weights a Super-Tuning adapter (peft
    0.21 or later reads that one). What peft has no place for is said, and left out.

    Example: musictune export runs/mybox --out models/mybox-peft
    """
    from musictune.console import note, say
    from musictune.files import check_target, publish_folder
    from musictune.methods import adapter_folder
    from musictune.methods.export import export_peft

    assert form is Form.peft
    folder = adapter_folder(run)
    check_target(out, overwrite=overwrite, inputs=[folder])
    with publish_folder(out, overwrite=overwrite) as made:
        exported = export_peft(folder, made)
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    say(
        f"{exported.kind} adapter in {out}: {exported.trained:,} trained weights, "
        f"{size / 1000:,.0f} kB"
    )
    for sentence in exported.left_out:
        note(f"left out: {sentence}")
