"""Votes and ratings as JSONL and CSV, for other programs and other places.

A row of votes has pair, prompt, a, b, system_a, system_b, choice, rater, first, why, seconds and
at; one of ratings has clip, prompt, system, rater, value, why and at. Paths are relative to the
file. In CSV a text that a spreadsheet would run as a formula (=, +, -, @, tab or carriage return in
front) has an apostrophe before it, which reading takes off again; tags are a JSON list.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from musictune.data.vote_types import CHOICES, Pair, Rating, Vote, pair_id, plain_path
from musictune.errors import InputError
from musictune.files import publish_file

_VOTE = ["pair", "prompt", "a", "b", "system_a", "system_b"]
_VOTE += ["choice", "rater", "first", "why", "seconds", "at"]
_VOTE_NEEDS = ("prompt", "a", "b", "choice", "rater", "first")
_RATING = ("clip", "prompt", "system", "rater", "value", "why", "at")
_RATING_NEEDS = ("clip", "prompt", "rater", "value")
_SUFFIXES = (".jsonl", ".csv")
_STORES = (".db", ".sqlite", ".sqlite3")
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_LARGEST_CELL = 2**24


def read_votes(path: Path) -> list[Vote]:
    """Votes of a store (.db), a .jsonl or a .csv file.

    A pair without an id gets one from its prompt and the paths of its sounds.

    Raises:
        InputError: the file cannot be read, or a row is bad: its line and what is wrong.
    """
    if _is_store(path):
        from musictune.data.vote_store import VoteStore

        with VoteStore(path) as store:
            return store.votes()
    return [_vote(row, path, line) for line, row in _rows(path, _VOTE_NEEDS)]


def read_ratings(path: Path) -> list[Rating]:
    """Ratings of a store (.db), a .jsonl or a .csv file.

    Raises:
        InputError: the file cannot be read, or a row is bad: its line and what is wrong.
    """
    if _is_store(path):
        from musictune.data.vote_store import VoteStore

        with VoteStore(path) as store:
            return store.ratings()
    return [_rating(row, path, line) for line, row in _rows(path, _RATING_NEEDS)]


def holds_ratings(path: Path) -> bool:
    """Whether a .jsonl or .csv file has ratings rather than votes, by its first row.

    Raises:
        InputError: the file cannot be read.
    """
    return any("value" in row and "choice" not in row for _, row in _first(_rows(path, ())))


def read_all(path: Path) -> tuple[list[Vote], list[Rating]]:
    """Votes and ratings of a store, or what a .jsonl or .csv file has of the two.

    Raises:
        InputError: as by `read_votes` and `read_ratings`.
    """
    if _is_store(path):
        return read_votes(path), read_ratings(path)
    return ([], read_ratings(path)) if holds_ratings(path) else (read_votes(path), [])


def write_votes(votes: Iterable[Vote], path: Path) -> None:
    """Write votes as .jsonl or .csv.

    Raises:
        InputError: another suffix, or it cannot be written.
    """
    _write(path, _VOTE, (_vote_row(vote, path) for vote in votes))


def write_ratings(ratings: Iterable[Rating], path: Path) -> None:
    """Write ratings as .jsonl or .csv.

    Raises:
        InputError: another suffix, or it cannot be written.
    """
    _write(path, _RATING, (_rating_row(rating, path) for rating in ratings))


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSONL file with their line numbers; empty lines are passed over.

    Raises:
        InputError: it cannot be read, or a line is no JSON object.
    """
    with _opened(path) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path} line {number} is no JSON: {error}; mend it") from error
            if not isinstance(row, dict):
                raise InputError(f"{path} line {number} is no JSON object; mend it")
            yield number, row


def text_field(row: Mapping[str, Any], name: str, where: str, *, empty: bool = True) -> str:
    """A text of a row, empty if not given.

    Raises:
        InputError: it is no text, or empty where it may not be.
    """
    value = row.get(name)
    value = "" if value is None else value
    if not isinstance(value, str):
        raise InputError(f"{where}: {name} {value!r} must be text")
    if not value and not empty:
        raise InputError(f"{where}: {name} is missing; give it")
    return value


def path_field(row: Mapping[str, Any], name: str, file: Path, where: str) -> Path:
    """A path of a row, relative to the file it is read from.

    Raises:
        InputError: it is missing or cannot be a path.
    """
    text = text_field(row, name, where, empty=False)
    if "\0" in text:
        raise InputError(f"{where}: {name} {text!r} cannot be a path")
    return plain_path(plain_path(file).parent / text)


def json_line(row: Mapping[str, object]) -> str:
    """A row of JSONL, readable wherever its text is Unicode."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # a file name that is no text; escaped it comes back as it was
        line = json.dumps(row)
    return line + "\n"


def relative(path: Path, file: Path) -> str:
    """``path`` as seen from the folder of ``file``."""
    return os.path.relpath(plain_path(path), plain_path(file).parent)


def _is_store(path: Path) -> bool:
    """Raises InputError unless it is a file of a kind that can be read."""
    if not path.is_file():
        raise InputError(f"votes {path} do not exist; name a .db, .jsonl or .csv file")
    if path.suffix not in _STORES + _SUFFIXES:
        raise InputError(f"votes {path} must be a .db, .jsonl or .csv file")
    return path.suffix in _STORES


def _vote(row: Mapping[str, Any], file: Path, line: int) -> Vote:
    where = f"{file} line {line}"
    a, b = path_field(row, "a", file, where), path_field(row, "b", file, where)
    prompt = text_field(row, "prompt", where)
    choice = text_field(row, "choice", where)
    if choice not in CHOICES:
        raise InputError(f"{where}: choice {choice!r} is unknown; give {', '.join(CHOICES)}")
    first = text_field(row, "first", where)
    if first not in ("a", "b"):
        raise InputError(f"{where}: first {first!r} is unknown; give a or b")
    seconds = _number(row.get("seconds") or 0.0, "seconds", where)
    if seconds < 0:
        raise InputError(f"{where}: seconds {seconds} must not be negative")
    name = text_field(row, "pair", where)
    if not name:
        name = pair_id(prompt, str(a), str(b))
    system_a, system_b = (text_field(row, f"system_{side}", where) for side in "ab")
    return Vote(
        Pair(name, prompt, a, b, system_a, system_b),
        choice,
        text_field(row, "rater", where, empty=False),
        cast(Literal["a", "b"], first),
        _tags(row, where),
        seconds,
        text_field(row, "at", where),
    )


def _rating(row: Mapping[str, Any], file: Path, line: int) -> Rating:
    where = f"{file} line {line}"
    value = _number(row.get("value", ""), "value", where)
    if not 0 <= value <= 100:
        raise InputError(f"{where}: value {value} must be from 0 to 100")
    return Rating(
        path_field(row, "clip", file, where),
        text_field(row, "prompt", where),
        text_field(row, "system", where),
        text_field(row, "rater", where, empty=False),
        value,
        _tags(row, where),
        text_field(row, "at", where),
    )


def _vote_row(vote: Vote, file: Path) -> dict[str, object]:
    pair = vote.pair
    paths = (relative(pair.a, file), relative(pair.b, file))
    about = (pair.id, pair.prompt, *paths, pair.system_a, pair.system_b)
    answer = (vote.choice, vote.rater, vote.first, list(vote.why), vote.seconds, vote.at)
    return dict(zip(_VOTE, about + answer, strict=True))


def _rating_row(rating: Rating, file: Path) -> dict[str, object]:
    values = (relative(rating.clip, file), rating.prompt, rating.system, rating.rater)
    rest = (rating.value, list(rating.why), rating.at)
    return dict(zip(_RATING, (*values, *rest), strict=True))


def _number(value: object, name: str, where: str) -> float:
    try:
        number = float(cast(Any, value))
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise InputError(f"{where}: {name} {value!r} must be a finite number")
    return number


def _tags(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """A list; in CSV as JSON, or typed by hand with semicolons between."""
    value = row.get("why") or []
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: why {value!r} is no JSON list: {error}") from error
    elif isinstance(value, str):
        value = [tag.strip() for tag in value.split(";") if tag.strip()]
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise InputError(f"{where}: why {value!r} must be a list of texts")
    return tuple(value)


def _rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix == ".jsonl":
        rows = read_lines(path)
    elif path.suffix == ".csv":
        rows = _cells(path)
    else:
        raise InputError(f"file {path} must end in {' or '.join(_SUFFIXES)}")
    for number, row in rows:
        if missing := [name for name in needed if name not in row]:
            raise InputError(
                f"{path} line {number} lacks {', '.join(missing)}; needed are {', '.join(needed)}"
            )
        yield number, row


def _first(rows: Iterator[tuple[int, dict[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
    return [row for row in (next(rows, None),) if row is not None]


def _cells(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(_LARGEST_CELL)
    with _opened(path, newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            names = next(reader, [])
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(names):
                    raise InputError(
                        f"{path} line {reader.line_num} has {len(cells)} cells for "
                        f"{len(names)} columns; mend it"
                    )
                texts = [
                    cell[1:] if _FORMULA.match(cell, 1) and cell[0] == "'" else cell
                    for cell in cells
                ]
                yield reader.line_num, dict(zip(names, texts, strict=True))
        except csv.Error as error:
            raise InputError(
                f"{path} line {reader.line_num} is no CSV: {error}; mend it"
            ) from error


@contextlib.contextmanager
def _opened(path: Path, newline: str | None = "\n") -> Iterator[Any]:
    """The text of a file, whose errors become one line."""
    try:
        # A byte-order mark in front is what spreadsheets write.
        with path.open(encoding="utf-8-sig", newline=newline) as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error.reason}; save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check the path") from error


def _write(path: Path, names: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    if path.suffix not in _SUFFIXES:
        raise InputError(f"output {path} must end in {' or '.join(_SUFFIXES)}")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"output {path} cannot be written; name a file in a folder that exists")
    with publish_file(path) as temporary:
        if path.suffix == ".jsonl":
            temporary.write_text("".join(map(json_line, rows)), encoding="utf-8", newline="\n")
            return
        try:
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                table = csv.writer(stream)
                table.writerow(names)
                table.writerows([_cell(row[name]) for name in names] for row in rows)
        except UnicodeEncodeError as error:
            raise InputError(
                f"text {error.object!r} is not Unicode; CSV cannot hold it, write .jsonl"
            ) from error


def _cell(value: object) -> str:
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False) if value else ""
    text = value if isinstance(value, str) else repr(value)
    return f"'{text}" if isinstance(value, str) and _FORMULA.match(text) else text
