"""``musictune serve``: music over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from musictune.methods.composition import Addition


def serve(
    base: Annotated[str, typer.Option(help="mini, a model folder, or a Hugging Face id.")] = "mini",
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=RUN",
            help="A run of `tune` that requests may ask for, with a weight if wanted: "
            "NAME=RUN=0.7. Repeatable.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8765,
    batch: Annotated[int, typer.Option(help="Clips that play at once; bounds the memory.")] = 8,
    waiting: Annotated[int, typer.Option(help="Clips that may wait for a place.")] = 64,
    longest: Annotated[float, typer.Option(help="Seconds of the longest clip.")] = 30.0,
    precision: Annotated[
        str, typer.Option(help="auto, float32, float16, bfloat16 or int8.")
    ] = "auto",
    token_file: Annotated[
        Path | None,
        typer.Option(help="A secret that clients must bring; other machines only with one."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Make music for others: an HTTP endpoint over the engine of `generate`.

    Requests join the running batch. The music can be heard while it is made:

        musictune serve --port 8765

        curl -H 'Content-Type: application/json' -d '{"prompt": "slow piano", "seconds": 8}' \\
          'http://127.0.0.1:8765/v1/music?wait=true' > piano.wav

    The whole interface is at /v1/openapi.json. Only this machine is served unless --host says
    otherwise, and then only with --token-file.
    """
    from musictune.errors import InputError
    from musictune.methods.adapter import adapter_folder
    from musictune.models import checkpoint, load_model
    from musictune.models.devices import find_device
    from musictune.serving.limits import Limits

    try:
        from musictune.serving import server
    except ImportError as error:
        raise InputError(
            f"serve needs {error.name}, which is not installed: pip install 'musictune[web]'"
        ) from error

    Limits(seconds=longest, batch=batch, waiting=waiting)
    runs = _named(adapter or [])
    for run in runs.values():
        adapter_folder(run.folder)
    token = server.read_token(token_file) if token_file else None
    checkpoint.check(base)
    find_device(device)
    listening = server.open_socket(host, port, token)
    try:
        from musictune.generation.engine import Engine

        model = load_model(base, device)
        engine = Engine(model, precision)
        for name, run in runs.items():
            engine.adapters.add(name, run.folder, run.weight)
        limits = Limits(min(longest, model.max_seconds), batch, waiting)
        server.run(
            engine,
            limits,
            listening,
            base=base,
            adapters=list(runs),
            host=host,
            token=token,
        )
    finally:
        listening.close()


def _named(given: list[str]) -> dict[str, Addition]:
    """``NAME=RUN``, or ``NAME=RUN=WEIGHT``, of each adapter."""
    import re

    from musictune.errors import InputError
    from musictune.methods.composition import Addition

    runs: dict[str, Addition] = {}
    for each in given:
        name, separator, run = each.partition("=")
        if not (separator and run and re.fullmatch(r"[\w.-]{1,64}", name)):
            raise InputError(f"adapter {each!r} is not NAME=RUN, such as box=runs/musicbox")
        if name in runs:
            raise InputError(f"adapter name {name!r} is given twice; choose another")
        runs[name] = Addition.read(run)
    return runs
