"""`musictune bench kernels`: the fused kernels beside torch's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def kernels(
    json_file: Annotated[Path, typer.Option("--json", help="File for the rows.")],
    only: Annotated[
        list[str] | None,
        typer.Option(help="attention, relative, loss or sampling; may be repeated. All if none."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch; as many as it likes if not given.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
) -> None:
    """Measure the fused kernels: time and memory beside what torch has for the same work.

    On a GPU the kernels run in Triton; on a CPU their twins in plain torch are measured, and
    targets that are for a GPU stay open. A ratio over 1 means that ours is better.

    Example: musictune bench kernels --json kernels.json --only loss
    """
    from musictune.bench.kernels import bench_kernels
    from musictune.console import say

    document = bench_kernels(json_file, tuple(only or ()), device, threads)
    aimed = [row["met"] for row in document["rows"] if row["target"] is not None]
    judged = [met for met in aimed if met is not None]
    left = f", {len(aimed) - len(judged)} open" if len(aimed) > len(judged) else ""
    say(f"{sum(judged)} of {len(judged)} targets met{left}; rows in {json_file}")
