"""What people see while work goes on: one line at a time, a bar on a terminal, silence if asked.

Results go to standard output, progress to standard error, so that output can be piped.
"""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Advance = Callable[..., None]

_quiet = False
_PLAIN_EVERY = 10.0  # seconds between plain progress lines


def set_quiet(quiet: bool) -> None:
    """Silence ``say`` and all progress for the rest of the process."""
    global _quiet
    _quiet = quiet


def say(text: str = "") -> None:
    """Print a line of result to standard output."""
    if not _quiet:
        print(text, flush=True)  # noqa: T201


def note(text: str) -> None:
    """Print a remark or warning to standard error."""
    if not _quiet:
        print(f"musictune: {text}", file=sys.stderr, flush=True)  # noqa: T201


@contextlib.contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Advance]:
    """A bar with time left on a terminal, a plain line every few seconds elsewhere.

    ``done`` steps were made before now. Yields ``advance(steps=1, text="")``; ``text`` is shown
    behind the bar.
    """
    if _quiet:
        yield lambda steps=1, text="": None
        return
    if sys.stderr.isatty():
        with _bar(what, total, done) as advance:
            yield advance
        return
    yield _plain(what, total, done)


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over ``items`` under :func:`progress`."""
    if total is None:
        items = list(items)
        total = len(items)
    with progress(what, total) as advance:
        for item in items:
            yield item
            advance()


@contextlib.contextmanager
def _bar(what: str, total: int, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, completed=done, text="")

        def advance(steps: int = 1, text: str = "") -> None:
            bar.update(task, advance=steps)
            if text:
                bar.update(task, text=text)

        yield advance


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars and remarks: ours say what matters."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # Such as that the lowest mel bands of every AST are empty.
            warnings.filterwarnings("ignore", module="transformers")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _plain(what: str, total: int, done: int) -> Advance:
    started = last = time.monotonic()
    before = done

    def advance(steps: int = 1, text: str = "") -> None:
        nonlocal last, done
        done += steps
        now = time.monotonic()
        if now - last < _PLAIN_EVERY and done < total:
            return
        last = now
        left = (now - started) / max(done - before, 1) * (total - done)
        print(  # noqa: T201
            f"{what}: {done}/{total}, {left:.0f} s left {text}".rstrip(),
            file=sys.stderr,
            flush=True,
        )

    return advance
