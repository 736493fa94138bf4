"""The folder of a run: made beside its place, renamed at the end, kept where it can go on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from musictune.errors import InputError
from musictune.files import check_target, move_folder, readable
from musictune.training.loop import Interrupted
from musictune.training.recipe import Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """What a run that taught an encoder came to.

    Attributes:
        folder: the finished run.
        facts: as in ``results.json``.
    """

    folder: Path
    facts: dict[str, Any]


def working_folder(out: Path) -> Path:
    """Where a run lies until it is finished."""
    return out.with_name(f".{out.name}.partial")


def own_base(recipe: Recipe) -> list[str]:
    """The base as an input that a run reads, where it is not the bundled one."""
    return [recipe.run.base] * (recipe.run.base != "mini")


def check_run(out: Path, text: str, reads: Sequence[str], *, resume: bool, overwrite: bool) -> None:
    """Refuse, before any work, an output that would lose something.

    Args:
        out: the run's folder.
        text: its recipe.
        reads: what the run reads.
        resume: it goes on.
        overwrite: it may replace what is there.

    Raises:
        InputError: ``out`` exists, an interrupted run lies beside it, or there is none to resume.
    """
    out = out.absolute()
    work = working_folder(out)
    held = _held(work)
    if resume:
        if not held:
            raise InputError(f"nothing to resume for {out}; run again without --resume")
        _check_same(text, (work / "config.yaml").read_text(encoding="utf-8"), out)
        return
    check_target(out, overwrite=overwrite, inputs=reads)
    if held and not overwrite:
        raise InputError(
            f"an interrupted run for {out} has checkpoints; go on with --resume, or pass "
            "--overwrite to start again"
        )


def published(out: Path, text: str, resume: bool, run: Callable[[Path], T]) -> T:
    """What ``run`` gives for its working folder, which becomes ``out`` when it is done.

    If it is interrupted or fails, that folder stays as long as it has a checkpoint; else it is
    removed.

    Args:
        out: absolute.
        text: the recipe.
        resume: go on in the working folder.
        run: the work.

    Raises:
        Interrupted: stopped on request, with a checkpoint.
        InputError: a file cannot be written.
    """
    work = working_folder(out)
    try:
        if not resume:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            (work / "config.yaml").write_text(text, encoding="utf-8")
        result = run(work)
    except BaseException as error:
        if not _held(work):
            shutil.rmtree(work, ignore_errors=True)
        elif isinstance(error, KeyboardInterrupt):
            said = str(error) or "stopped"
            raise Interrupted(f"{said}; go on with the same command and --resume") from None
        if isinstance(error, OSError):
            raise readable(error, out) from error
        raise
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    move_folder(work, out)
    return result


def _held(work: Path) -> bool:
    """Whether an interrupted run has a checkpoint, or one of several in it is done."""
    done = (work.glob(f"{place}checkpoints/step-*") for place in ("", "fold-*/"))
    return any(any(found) for found in (*done, work.glob("fold-*/results.json")))


def _check_same(ours: str, theirs: str, out: Path) -> None:
    for now, before in zip(ours.splitlines(), theirs.splitlines(), strict=False):
        if now != before:
            raise InputError(
                f"the run to resume for {out} was started with {before.strip()!r}, not "
                f"{now.strip()!r}; give the same options"
            )
