"""Checkpoints that are whole or absent, and the newest good one.

A checkpoint is a folder: what the module wrote, AdamW's moments, and ``checkpoint.json`` with the
step and a hash of every file. It is written beside its place, flushed to the disk and renamed.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from musictune import console
from musictune.errors import InputError
from musictune.files import move_folder, readable, sha256
from musictune.training.stepped import Stepped

_KEPT = 2  # the newest may be damaged when a machine dies


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose hashes were right.

    Attributes:
        folder: where it lies.
        step: optimiser steps done.
        optimizer: AdamW's state.
    """

    folder: Path
    step: int
    optimizer: dict[str, Any]


def save_checkpoint(module: Stepped, optimizer: torch.optim.Optimizer, folder: Path) -> Path:
    """Write ``folder/step-NNNNNN`` and drop all but the newest two.

    Raises:
        InputError: the disk is full or not writable.
    """
    target = folder / f"step-{module.step:06d}"

    def write(temporary: Path) -> None:
        module.write(temporary)
        # Through memory, so that a full disk is an OSError and not torch's own.
        state = io.BytesIO()
        torch.save(optimizer.state_dict(), state)
        (temporary / "optimizer.pt").write_bytes(state.getbuffer())

    save_whole(target, write, {"step": module.step})
    for old in _newest_first(folder)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    module.last_checkpoint = target
    return target


def save_whole(
    target: Path, write: Callable[[Path], object], facts: Mapping[str, int | float]
) -> None:
    """Make the folder ``target`` of what ``write`` puts into one, surviving a lost machine.

    Args:
        target: a new folder, or one to replace.
        write: called with the folder to fill.
        facts: kept in ``checkpoint.json`` beside the hashes.

    Raises:
        InputError: the disk is full or not writable.
    """
    temporary = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        hashes = {p.relative_to(temporary).as_posix(): sha256(p) for p in files}
        listing = temporary / "checkpoint.json"
        listing.write_text(json.dumps({**facts, "files": hashes}, indent=1))
        for path in (*files, listing, *(p for p in temporary.rglob("*") if p.is_dir()), temporary):
            _flush(path)
        move_folder(temporary, target)
    except OSError as error:
        raise readable(error, target) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_whole(folder: Path) -> dict[str, Any] | None:
    """The facts that :func:`save_whole` kept in ``folder``; None if anything there is damaged."""
    try:
        listing: dict[str, Any] = json.loads((folder / "checkpoint.json").read_text())
        if any(sha256(folder / name) != digest for name, digest in listing.pop("files").items()):
            return None
        return listing
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in ``folder`` that is whole, or None if there never was one.

    A damaged one is passed over, and said aloud.

    Raises:
        InputError: all of them are damaged.
    """
    found = _newest_first(folder)
    for path in found:
        checkpoint = _read(path)
        if checkpoint is not None:
            return checkpoint
        console.note(f"checkpoint {path} is damaged; using the one before it")
    if found:
        raise InputError(f"every checkpoint in {folder} is damaged; start again with --overwrite")
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []


def _read(folder: Path) -> Checkpoint | None:
    facts = read_whole(folder)
    try:
        if facts is None:
            return None
        optimizer = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
        return Checkpoint(folder, int(facts["step"]), optimizer)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError):
        return None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
