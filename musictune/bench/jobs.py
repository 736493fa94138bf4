"""All cells that were asked for, made by one process or shared among several."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from musictune import console
from musictune.bench.asked import Method, Plan
from musictune.bench.cells import Cells
from musictune.bench.concept_set import BenchConcept
from musictune.bench.concepts import Bench, Cell
from musictune.bench.pairs import Pair, PairCell, pair_record
from musictune.errors import CheckFailed, InputError

_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Work:
    """What is to be made.

    Attributes:
        concepts, methods, seeds: each with each, and the base beside the methods.
        pairs: of the concepts.
        joint: tokens of each concept where a pair is learned together; once for each number.
        plan: how.
    """

    concepts: tuple[BenchConcept, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    pairs: tuple[Pair, ...]
    joint: tuple[int, ...]
    plan: Plan

    @property
    def cells(self) -> list[Cell]:
        """Of one concept each, concept after concept."""
        rows: list[Method | None] = [None, *self.methods]
        return [Cell(c, m, seed) for c in self.concepts for seed in self.seeds for m in rows]

    @property
    def pair_cells(self) -> list[PairCell]:
        """Of a pair each."""
        rows: list[tuple[Method | None, int | None]] = [(None, None)]
        rows += [(m, tokens) for m in self.methods for tokens in (None, *self.joint)]
        return [
            PairCell(pair, method, seed, tokens)
            for pair in self.pairs
            for seed in self.seeds
            for method, tokens in rows
        ]

    def beginning_at(self, part: int, parts: int) -> Work:
        """The same in another order: one process of several begins with concepts of its own."""

        def turned(items: Sequence[Any]) -> tuple[Any, ...]:
            own = items[part::parts]
            return (*own, *(item for item in items if item not in own))

        return replace(self, concepts=turned(self.concepts), pairs=turned(self.pairs))


@dataclass(frozen=True)
class Made:
    """Finished records, in the order of `Work`."""

    cells: list[dict[str, Any]]
    pair_cells: list[dict[str, Any]]


def make_all(work: Work, bench: Bench, jobs: int) -> Made:
    """Make what is missing, and return everything.

    Args:
        work: what.
        bench: makes it where ``jobs`` is 1.
        jobs: processes, of one thread each if there are several.

    Raises:
        InputError: bad input, a full disk, or a cell that was made with other settings.
        CheckFailed: a process was killed.
        KeyboardInterrupt: stopped; finished cells are kept.
    """
    for cell in work.cells:
        bench.cells.find(cell.key, bench.settings(cell))
    if jobs > 1:
        _share(work, bench.cells.out, jobs, bench)
    else:
        _make(work, bench)
    # What another command was making just now is waited for here.
    return Made(
        [_there(bench.record(cell)) for cell in work.cells],
        [_there(pair_record(bench, cell)) for cell in work.pair_cells],
    )


def _there(record: dict[str, Any] | None) -> dict[str, Any]:
    assert record is not None  # it was waited for
    return record


def _make(work: Work, bench: Bench, made: Callable[[str], None] = lambda _: None) -> None:
    """Make what nobody else is making."""
    for cell in work.cells:
        if bench.record(cell, wait=False):
            made(str(cell))
    for pair in work.pair_cells:
        if pair_record(bench, pair, wait=False):
            made(str(pair))


def _share(work: Work, out: Path, jobs: int, bench: Bench) -> None:
    """Have ``jobs`` processes make it."""
    _compile()
    spawn = multiprocessing.get_context("spawn")
    workers: dict[Connection, Any] = {}
    total = len(work.cells) + len(work.pair_cells)
    seen: set[str] = set()
    try:
        with _one_thread(), console.progress("cells", total) as advance:
            for part in range(jobs):
                ours, theirs = spawn.Pipe(duplex=False)
                share = work.beginning_at(part, jobs)
                worker = spawn.Process(target=_worker, args=(share, out, theirs), daemon=True)
                worker.start()
                theirs.close()
                workers[ours] = worker
            open_ = set(workers)
            while open_:
                for pipe in wait(list(open_)):
                    assert isinstance(pipe, Connection)
                    if not _heard(pipe, workers[pipe], seen, advance):
                        open_.discard(pipe)
    finally:
        for worker in workers.values():
            worker.terminate()  # it cleans up as at Ctrl-C
        for worker in workers.values():
            worker.join()


def _heard(pipe: Connection, worker: Any, seen: set[str], advance: console.Advance) -> bool:
    """Read one message of a process; False if it was the last."""
    try:
        message = pipe.recv()
    except EOFError:
        worker.join()
        if worker.exitcode:
            raise CheckFailed(
                f"a process ended with code {worker.exitcode}, as where memory ran out; finished "
                f"cells are kept: run the same command to go on, with fewer --jobs"
            ) from None
        return False
    if isinstance(message, Exception):
        raise message
    if message not in seen:
        seen.add(message)
        advance(1, message)
    return True


def _worker(work: Work, out: Path, pipe: Connection) -> None:
    """What a process does: make cells until there are none left that nobody makes."""
    signal.signal(signal.SIGTERM, _stop)
    torch.set_num_threads(1)
    console.set_quiet(True)
    parent = os.getppid()

    def made(name: str) -> None:
        if os.getppid() != parent:
            raise KeyboardInterrupt  # nobody is waiting for the rest
        pipe.send(name)

    try:
        _make(work, Bench(work.plan, Cells(out)), made)
    except (InputError, CheckFailed) as error:
        pipe.send(error)
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(130)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _compile() -> None:
    """Have librosa compile itself: of processes that do so at once one may crash."""
    from musictune.audio import Clip
    from musictune.metrics.excerpts import ChromaFrames

    noise = torch.rand(1, 3 * 16_000, generator=torch.Generator().manual_seed(0)) - 0.5
    ChromaFrames().hear(Clip(noise, 16_000))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Processes started inside have one thread each."""
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = before
