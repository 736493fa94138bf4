"""Hearing many files: each once, in several processes, in memory that does not grow with them."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch

from musictune.audio import Clip, read, stream
from musictune.console import Advance, progress
from musictune.errors import CheckFailed, InputError
from musictune.files import readable, sha256
from musictune.metrics.base import Listener
from musictune.metrics.cache import Cache
from musictune.metrics.features import Features

BLOCK = 120.0
"""Seconds of a long recording heard at a time; a multiple of every window's hop."""

_REST = 10.0  # seconds; a shorter rest would be a window mostly filled with repetition
_ALONE = 32  # files up to which starting other processes takes longer than they save

Listeners = Mapping[str, Listener]


@dataclass(frozen=True)
class Heard:
    """What listeners heard in a set of files.

    Attributes:
        features: by the name of the listener.
        digests: hex SHA-256 of each file's bytes.
    """

    features: dict[str, Features]
    digests: tuple[str, ...]


def listen(
    files: Sequence[Path],
    listeners: Listeners,
    cache: Cache,
    what: str = "listening",
    workers: int | None = None,
) -> Heard:
    """Hear files with all listeners.

    What a file gives is kept in the cache as soon as it is heard, so that a run that is killed
    loses only the files it was at. The rows of a set lie in a nameless file on disk. One thread
    is used for each process whatever ``workers`` is, and therefore the same numbers come out.

    Args:
        files: recordings of any length; long ones are heard in blocks of `BLOCK`.
        listeners: by a name.
        cache: what was heard before, and where to keep what is heard now.
        what: the progress bar's text.
        workers: processes; chosen by how much there is to hear if not given.

    Raises:
        InputError: there are no files, one cannot be read or heard, or the cache not be written.
        CheckFailed: a process died.
    """
    if not files:
        raise InputError("there are no clips to hear; give at least one")
    digests: list[str] = []
    missing: list[int] = []
    with progress(what, len(files)) as advance:
        for index, path in enumerate(files):
            digests.append(_digest(path))
            if any(cache.get(digests[-1], one.key) is None for one in listeners.values()):
                missing.append(index)
            else:
                advance()
        todo = [(files[i], digests[i]) for i in missing]
        if todo:
            cache.check()
        count = _processes(len(todo)) if workers is None else min(workers, len(todo))
        # One at least is heard here: librosa compiles itself on first use and keeps the result on
        # disk, and of several processes that do so at once one may crash.
        here = todo[:1] if count > 1 else todo
        with one_thread():
            for path, digest in here:
                hear_file(path, digest, listeners, cache)
                advance()
        if len(here) < len(todo):
            _hear_in_processes(todo[len(here) :], listeners, cache, count, advance)
    found = {name: _gathered(files, digests, one, cache, name) for name, one in listeners.items()}
    return Heard(found, tuple(digests))


def hear_file(path: Path, digest: str, listeners: Listeners, cache: Cache) -> None:
    """Put into the cache what is not there yet of a file, which is decoded once."""
    missing = [one for one in listeners.values() if cache.get(digest, one.key) is None]
    for one in [one for one in missing if one.whole]:
        cache.put(digest, one.key, one.hear(read(path)))
    missing = [one for one in missing if not one.whole]
    if not missing:
        return
    rows: list[list[np.ndarray]] = [[] for _ in missing]
    for clip in _blocks(path):
        for one, found in zip(missing, rows, strict=True):
            found.append(one.hear(clip))
    for one, found in zip(missing, rows, strict=True):
        cache.put(digest, one.key, np.concatenate(found))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes in one thread: sums are then added up in one order everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _blocks(path: Path) -> Iterator[Clip]:
    for index, clip in enumerate(stream(path, BLOCK)):
        if index == 0 or clip.seconds >= _REST:
            yield clip


def _digest(path: Path) -> str:
    # What is not a regular file could be read for ever; decoding it says what is wrong.
    if not path.is_file():
        next(stream(path, 1.0))
    try:
        return sha256(path)
    except OSError as error:
        raise InputError(f"audio {path} cannot be read: {error.strerror}") from error


def _processes(files: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 1 if files <= _ALONE else max(min(cores or 1, files), 1)


_here: tuple[Listeners, Cache, Event] | None = None  # of a process that listens


def _start(listeners: Listeners, cache: Cache, stopped: Event) -> None:
    global _here
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _here = listeners, cache, stopped


def _end_with_parent() -> None:
    # One that is killed tells nobody: its children would wait for work for ever.
    if parent := parent_process():
        parent.join()
        os._exit(1)


def _hear_here(path: Path, digest: str) -> None:
    assert _here is not None
    listeners, cache, stopped = _here
    if not stopped.is_set():
        hear_file(path, digest, listeners, cache)


def _hear_in_processes(
    todo: Sequence[tuple[Path, str]],
    listeners: Listeners,
    cache: Cache,
    workers: int,
    advance: Advance,
) -> None:
    spawn = get_context("spawn")  # not fork: torch's threads do not survive it
    stopped = spawn.Event()
    pool = ProcessPoolExecutor(
        workers, spawn, initializer=_start, initargs=(listeners, cache, stopped)
    )
    try:
        for done in as_completed([pool.submit(_hear_here, *one) for one in todo]):
            done.result()
            advance()
    except BrokenProcessPool as error:
        raise CheckFailed(
            f"one of {workers} listening processes died, which lack of memory does; run again "
            f"with fewer --workers: what was heard is kept"
        ) from error
    finally:
        stopped.set()  # files that wait in a process's queue cannot be cancelled any more
        pool.shutdown(wait=True, cancel_futures=True)


def _gathered(
    files: Sequence[Path], digests: Sequence[str], listener: Listener, cache: Cache, name: str
) -> Features:
    """All rows of one listener from the cache, on disk."""
    lengths: list[int] = []
    width, kind = 0, np.dtype(np.float32)
    with _nameless(cache.folder) as file:
        for path, digest in zip(files, digests, strict=True):
            rows = cache.get(digest, listener.key)
            if rows is None:  # deleted or damaged since
                with one_thread():
                    hear_file(path, digest, {name: listener}, cache)
                rows = cache.get(digest, listener.key)
                assert rows is not None
            if lengths and rows.shape[1] != width:
                raise InputError(
                    f"{name} heard rows of {rows.shape[1]} numbers in {path}, {width} before; "
                    f"empty the cache {cache.folder}"
                )
            width, kind = rows.shape[1], rows.dtype
            lengths.append(len(rows))
            try:
                file.write(np.ascontiguousarray(rows).data)
            except OSError as error:
                raise readable(error, cache.folder) from error
        file.flush()
        count = sum(lengths)
        points = np.memmap(file, kind, "r", shape=(count, width)) if count else np.empty((0, width))
    return Features(points, np.array(lengths, dtype=np.int64), listener.key)


def _nameless(folder: Path) -> BinaryIO:
    """A file that goes when the process does, however that ends; in ``folder`` if it can be."""
    try:
        return cast(BinaryIO, tempfile.TemporaryFile(dir=folder))
    except OSError:  # a cache that is only read
        return cast(BinaryIO, tempfile.TemporaryFile())
