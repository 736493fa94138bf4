"""Finished work on disk: a folder per cell, there whole or not at all, of one setting each."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from musictune.errors import InputError
from musictune.files import check_target, publish_file, publish_folder

CELL = "cell.json"
SCHEMA = 1

_MARK = "bench.json"
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

    @contextlib.contextmanager
    def make(
        self, key: Sequence[str], settings: Mapping[str, Any]
    ) -> Iterator[tuple[Path, Callable[[Mapping[str, Any]], None]]]:
        """Yield a working folder, and what takes the record that belongs in it.

        The folder becomes the cell only if the block succeeds.

        Raises:
            InputError: it cannot be written, or the disk is full.
        """
        with publish_folder(self.place(key)) as folder:

            def keep(record: Mapping[str, Any]) -> None:
                whole = {
                    "schema": SCHEMA,
                    "settings_hash": settings_hash(settings),
                    "settings": dict(settings),
                    **record,
                }
                (folder / CELL).write_text(as_json(whole), encoding="utf-8")

            yield folder, keep


def open_cells(out: Path, *, overwrite: bool = False, inputs: Sequence[Path] = ()) -> Cells:
    """The cells in ``out``, which is made if it is missing.

    Args:
        out: a new or empty folder, or one that this wrote before.
        overwrite: empty it first.
        inputs: what the work reads; ``out`` may not lie around it.

    Raises:
        InputError: ``out`` holds something else, or cannot be written.
    """
    ours = (out / _MARK).is_file() and read_json(out / _MARK).get("kind") == _KIND
    check_target(out, overwrite=overwrite or ours, inputs=inputs)
    if overwrite and out.is_dir():
        shutil.rmtree(out)
        ours = False
    if not ours:
        with publish_folder(out) as folder:
            mark = {"kind": _KIND, "schema": SCHEMA}
            (folder / _MARK).write_text(as_json(mark), encoding="utf-8")
    return Cells(out)


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
