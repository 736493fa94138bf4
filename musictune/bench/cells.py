"""Finished work on disk: a folder per cell, there whole or not at all, of one setting each.

Several processes may share one folder: each cell is made by whoever claims it first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from musictune.errors import InputError
from musictune.files import check_target, publish_file, publish_folder, readable

CELL = "cell.json"
SCHEMA = 1

_MARK = "bench.json"
_COMMANDS = "commands.txt"
_KIND = "musictune bench concepts"


class Cells:
    """The cells under a folder.

    A cell is named by the parts of its path. What its figures depend on is its settings, kept with
    it: a cell is found again only under equal settings, and never replaced by others.

    Args:
        out: the folder; must have been opened with `open_cells`.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def place(self, key: Sequence[str]) -> Path:
        """The folder of a cell."""
        return self.out.joinpath(*key)

    def find(self, key: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """What a finished cell holds, or None where it is still to be made.

        Raises:
            InputError: it was made with other settings, or its file is damaged.
        """
        path = self.place(key) / CELL
        if not path.is_file():
            return None
        found = read_json(path)
        if found.get("settings_hash") != settings_hash(settings):
            name = "/".join(key)
            raise InputError(
                f"cell {name} in {self.out} was made with {_difference(found, settings)}; choose "
                f"another --out, or pass --overwrite to start again"
            )
        return found

    def once(
        self,
        key: Sequence[str],
        settings: Mapping[str, Any],
        make: Callable[[Path], Mapping[str, Any]],
        *,
        wait: bool = True,
    ) -> dict[str, Any] | None:
        """What a cell holds: found, or made now, by one process alone.

        Args:
            key: the parts of its path.
            settings: all that its figures depend on.
            make: fills the folder it is given and returns the record; the folder becomes the cell
                only if it succeeds.
            wait: for another process that is making it; else None is returned.

        Raises:
            InputError: it was made with other settings, cannot be written, or the disk is full.
        """
        if found := self.find(key, settings):
            return found
        place = self.place(key)
        with claimed(place, wait=wait) as ours:
            if not ours:
                return None
            if self.find(key, settings) is None:  # else another process made it meanwhile
                with publish_folder(place) as folder:
                    record = {
                        "schema": SCHEMA,
                        "settings_hash": settings_hash(settings),
                        "settings": dict(settings),
                        **make(folder),
                    }
                    (folder / CELL).write_text(as_json(record), encoding="utf-8")
        return self.find(key, settings)

    def commands(self) -> list[str]:
        """What was run on this folder, the first command first."""
        path = self.out / _COMMANDS
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []

    def remember(self, command: str) -> None:
        """Keep a command with the cells that it asks for, once.

        Raises:
            InputError: it cannot be written.
        """
        with claimed(self.out / _COMMANDS):
            known = self.commands()
            if command not in known:
                publish_text(
                    "".join(f"{line}\n" for line in [*known, command]), self.out / _COMMANDS
                )


@contextlib.contextmanager
def claimed(place: Path, *, wait: bool = True) -> Iterator[bool]:
    """Inside, no other process has ``place``; the system frees what a killed process had.

    Args:
        place: a file or folder, which need not exist.
        wait: until it is free; else yields False where it is not.

    Raises:
        InputError: its parent cannot be written.
    """
    path = place.with_name(f".{place.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path, wait)
    except OSError as error:
        raise readable(error, place) from error
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path, wait: bool) -> int | None:
    """A descriptor of the locked file, or None where another process has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # The one before us removed the file when it was done: a lock on what nobody else can
            # open any more keeps nobody out.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def open_cells(out: Path, *, overwrite: bool = False, inputs: Sequence[Path] = ()) -> Cells:
    """The cells in ``out``, which is made if it is missing.

    Args:
        out: a new or empty folder, or one that this wrote before.
        overwrite: empty it first.
        inputs: what the work reads; ``out`` may not lie around it.

    Raises:
        InputError: ``out`` holds something else, or cannot be written.
    """
    check_target(out, overwrite=overwrite or _is_ours(out), inputs=inputs)
    with claimed(out.absolute()):  # two commands may be started at once
        if overwrite and out.is_dir():
            shutil.rmtree(out)
        if not _is_ours(out):
            with publish_folder(out) as folder:
                mark = {"kind": _KIND, "schema": SCHEMA}
                (folder / _MARK).write_text(as_json(mark), encoding="utf-8")
    return Cells(out)


def _is_ours(out: Path) -> bool:
    return (out / _MARK).is_file() and read_json(out / _MARK).get("kind") == _KIND


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Hex SHA-256 of settings, whatever the order of their keys."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def as_json(content: Any) -> str:
    """Readable JSON with a line end; refuses NaN, which is no JSON."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of ours.

    Raises:
        InputError: it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged; remove its folder and run again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged; remove its folder and run again")
    return content


def publish_text(text: str | bytes, path: Path) -> None:
    """Write a file whole or not at all.

    Raises:
        InputError: it cannot be written, or the disk is full.
    """
    with publish_file(path) as temporary:
        temporary.write_bytes(text.encode("utf-8") if isinstance(text, str) else text)


def versions() -> dict[str, str]:
    """Of Python and the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for package in ("musictune", "torch", "transformers", "peft", "numpy", "librosa", "soxr"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _difference(found: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The first setting that differs, as ``name value, not value``."""
    before, now = _flat(found.get("settings", {})), _flat(settings)
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old != new:
            return f"{name} {_short(old)}, not {_short(new)}"
    return "settings of another musictune"


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, Mapping) or not content:
        return {prefix: content}
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
