"""Reading the lists that say what clips are, and what an entry says of its clip."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musictune.errors import InputError

_MOST_ROWS = 1_000_000
_MOST_JSON = 2**30  # bytes; NSynth's largest is a quarter of it
_LONGEST_LABEL = 200  # characters
_SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation",
    "val": "validation", "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A labelled clip: a file, or an excerpt of one.

    Attributes:
        path: the file.
        labels: sorted; one, unless the data is multi-label.
        fold: as published.
        split: ``train``, ``validation`` or ``test`` as published, else empty.
        group: recording or performer; never on two sides of a split. If empty, the file is one.
        start: of the excerpt, seconds.
        seconds: of the excerpt; to the end if not given.
    """

    path: Path
    labels: tuple[str, ...]
    fold: int | None = None
    split: str = ""
    group: str = ""
    start: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True)
class Row:
    """A row of a CSV by column, with the words that name its place in an error."""

    cells: Mapping[str, str]
    where: str

    def first(self, names: Sequence[str]) -> str:
        """The cell of the first of these columns that is there."""
        return next((self.cells[name] for name in names if name in self.cells), "")


def read_csv(path: Path, needed: Sequence[Sequence[str]]) -> list[Row]:
    """The rows of a CSV in UTF-8 with a header; names of columns in small letters.

    Args:
        path: the table.
        needed: one column of each of these must be there.

    Raises:
        InputError: unreadable, no such columns, a row of another length, or no rows.
    """
    rows: list[Row] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            _check_header(path, header, needed)
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                where = f"{path} line {reader.line_num}"
                if len(cells) != len(header):
                    raise InputError(
                        f"{where} has {len(cells)} cells, the header {len(header)}; quote cells "
                        f"that hold commas"
                    )
                stripped = (cell.strip() for cell in cells)
                rows.append(Row(dict(zip(header, stripped, strict=True)), where))
                if len(rows) > _MOST_ROWS:
                    raise InputError(f"{path} has more than {_MOST_ROWS} rows; split it")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV in UTF-8: {error}") from error
    if not rows:
        raise InputError(f"{path} has a header but no rows; add one for each clip")
    return rows


def has_columns(path: Path, needed: Sequence[Sequence[str]]) -> bool:
    """Whether a file begins as a CSV with one column of each of ``needed``."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = [name.strip().lower() for name in next(csv.reader(file), [])]
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    return all(set(names) & set(header) for names in needed)


def read_json(path: Path) -> dict[str, Any]:
    """A file with one JSON object.

    Raises:
        InputError: something else, or larger than 1 GiB.
    """
    if path.stat().st_size > _MOST_JSON:
        raise InputError(f"{path} is larger than {_MOST_JSON} bytes; split it")
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a JSON object; it needs an entry for each clip")
    return found


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8; correct it") from error


def _check_header(path: Path, header: list[str], needed: Sequence[Sequence[str]]) -> None:
    for names in needed:
        if not set(names) & set(header):
            raise InputError(
                f"{path} has the columns {', '.join(header) or 'none'}; add one named "
                f"{' or '.join(names)}"
            )
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice:
        raise InputError(f"{path} has two columns {twice!r}; keep one")


def tidy(label: str) -> str:
    """A label in one line without doubled spaces.

    Raises:
        InputError: it is longer than any name.
    """
    label = " ".join(label.split())
    if len(label) > _LONGEST_LABEL:
        raise InputError(f"label {label[:40]!r}... is longer than {_LONGEST_LABEL} characters")
    return label


def example(
    path: Path, labels: Iterable[str], said: Mapping[str, Any], where: str, excerpts: bool = False
) -> Example:
    """What a row says of its clip.

    Args:
        path: the clip's file.
        labels: what it is.
        said: the row; ``fold``, ``split`` and ``group`` are read.
        where: the row's place, for errors.
        excerpts: also read ``start`` and ``end``, seconds.

    Raises:
        InputError: a value that is none.
    """
    start, seconds = _excerpt(said, where) if excerpts else (0.0, None)
    group = said.get("group")
    return Example(
        path,
        tuple(sorted({tidy(label) for label in labels})),
        whole_number(said.get("fold"), where),
        split_name(said.get("split"), where),
        "" if group is None else str(group).strip(),
        start,
        seconds,
    )


def whole_number(value: Any, where: str) -> int | None:
    """A fold's number, None if there is none.

    Raises:
        InputError: something else.
    """
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number.is_integer() or abs(number) > _MOST_ROWS:
        raise InputError(f"{where} has fold {value!r}; a whole number is needed")
    return int(number)


def split_name(value: Any, where: str) -> str:
    """``train``, ``validation``, ``test``, or empty if there is none.

    Raises:
        InputError: something else.
    """
    if value is None or value == "":
        return ""
    name = _SPLITS.get(str(value).strip().lower())
    if name is None:
        raise InputError(f"{where} has split {value!r}; give train, validation or test")
    return name


def is_split(folder: str) -> bool:
    """Whether a folder's name is that of a part of the data."""
    return folder.lower() in _SPLITS


def _excerpt(said: Mapping[str, Any], where: str) -> tuple[float, float | None]:
    start = _seconds(said.get("start"), where, "start")
    end = _seconds(said.get("end"), where, "end")
    if end is None:
        return start or 0.0, None
    if end <= (start or 0.0):
        raise InputError(f"{where} ends at {end:g} s, not after its start; correct it")
    return start or 0.0, end - (start or 0.0)


def _seconds(value: Any, where: str, name: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(f"{where} has {name} {value!r}; give seconds from 0 on")
    return seconds
