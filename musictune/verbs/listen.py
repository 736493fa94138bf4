"""``musictune listen``: blind votes on a page of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from musictune.data.vote_store import VoteStore
    from musictune.data.vote_types import Pair
    from musictune.web.making import Plan


def listen(
    store: Annotated[Path, typer.Option(help="Where votes are kept; made if it is not there.")],
    pairs: Annotated[
        Path | None,
        typer.Option(help="Clips to compare: pairs.jsonl, or two folders of `generate`."),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead: make pairs meanwhile, of two runs of `tune`; 'base' is without. Give "
            "it twice."
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="With --adapter: a text file, one prompt per line.")
    ] = None,
    base: Annotated[str, typer.Option(help="mini, a model folder, or a Hugging Face id.")] = "mini",
    seconds: Annotated[float, typer.Option(help="Length of each clip that is made.")] = 8.0,
    seed: Annotated[int, typer.Option(help="Of both clips of a prompt.")] = 0,
    rate: Annotated[
        bool, typer.Option("--rate", help="One clip at a time, from 0 (bad) to 100 (excellent).")
    ] = False,
    host: Annotated[str, typer.Option(help="An address of this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8766,
    open_: Annotated[
        bool, typer.Option("--open/--no-open", help="Show the page in your browser.")
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Say which of two clips is better, without knowing what made them.

    Opens a page of this machine. Both clips of a pair are as loud as each other (ITU-R BS.1770)
    and in a random order. A vote that the page has acknowledged is kept, whatever happens then.

        musictune listen --store votes.db --pairs out/pairs

    With two systems and a file of prompts the pairs are made while you listen:

        musictune listen --store votes.db --adapter runs/box --adapter base --prompts prompts.txt

    Come back any time: each rater goes on where they stopped. `musictune votes` says what was
    found.
    """
    from musictune.data.preferences import read_pairs
    from musictune.data.vote_store import VoteStore
    from musictune.errors import InputError

    try:
        from musictune.web import server
        from musictune.web.app import create_app
    except ImportError as error:
        raise InputError(
            f"listen needs {error.name}, which is not installed: pip install 'musictune[web]'"
        ) from error

    plan = _plan(pairs, adapter or [], prompts, base, seconds, seed, device)
    ready = read_pairs(pairs) if pairs else []
    if not (ready or plan or store.exists()):
        raise InputError(
            f"store {store} is new and nothing is to be heard; give --pairs, or --adapter twice "
            "with --prompts"
        )
    listening = server.open_socket(host, port)
    try:
        with VoteStore(store) as votes:
            _add(votes, ready, rate=rate)
            maker = None
            if plan is not None:
                from musictune.web.making import PairMaker, load_systems

                engines = load_systems(plan, device)
                folder = store.with_name(f"{store.name}.audio")
                maker = PairMaker(plan, engines, folder, lambda p: _add(votes, [p], rate=rate))
                maker.start()
            try:
                app = create_app(votes, rate=rate, host=host, making=maker)
                server.run(app, listening, browser=open_)
            finally:
                if maker is not None:
                    maker.stop()
    finally:
        listening.close()


def _plan(
    pairs: Path | None,
    adapters: list[str],
    prompts: Path | None,
    base: str,
    seconds: float,
    seed: int,
    device: str,
) -> Plan | None:
    """What is to be made, checked before anything is loaded."""
    from musictune.errors import InputError

    if pairs and (adapters or prompts):
        raise InputError("--pairs and --adapter are two ways to give clips; choose one of them")
    if bool(adapters) != bool(prompts):
        raise InputError("--adapter (twice) and --prompts FILE need each other")
    if prompts is None:
        return None
    from musictune.generation.folder import read_prompts
    from musictune.models import checkpoint
    from musictune.models.devices import find_device
    from musictune.web.making import Plan

    plan = Plan(base, tuple(adapters), tuple(read_prompts(prompts)), seconds, seed)
    checkpoint.check(base)
    find_device(device)
    return plan


def _add(votes: VoteStore, pairs: list[Pair], *, rate: bool) -> None:
    """Pairs to compare, or their clips to rate."""
    if not rate:
        votes.add_pairs(pairs)
        return
    sides = [(p.a, p.prompt, p.system_a) for p in pairs] + [
        (p.b, p.prompt, p.system_b) for p in pairs
    ]
    votes.add_clips(sides)
