"""The SQLite file behind the vote store: opening it, its tables, and its errors as one line."""

from __future__ import annotations

import sqlite3
import struct
import time
from pathlib import Path

from musictune.errors import InputError

VERSION = 1
APPLICATION = int.from_bytes(b"mtvs")
_WAIT = 15.0  # seconds for another process to finish writing
_HEADER = 100  # bytes; SQLite file format, section 1.3

_TABLES = """
CREATE TABLE sounds (
    id INTEGER PRIMARY KEY,
    sha256 TEXT NOT NULL,
    absolute TEXT NOT NULL,
    relative TEXT NOT NULL,
    UNIQUE (sha256, absolute)
);
CREATE TABLE pairs (
    id TEXT PRIMARY KEY,
    prompt TEXT NOT NULL,
    a INTEGER NOT NULL REFERENCES sounds,
    b INTEGER NOT NULL REFERENCES sounds,
    system_a TEXT NOT NULL,
    system_b TEXT NOT NULL
);
CREATE TABLE clips (
    id TEXT PRIMARY KEY,
    prompt TEXT NOT NULL,
    sound INTEGER NOT NULL REFERENCES sounds,
    system TEXT NOT NULL
);
CREATE TABLE trials (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    pair TEXT NOT NULL REFERENCES pairs,
    rater TEXT NOT NULL,
    first TEXT NOT NULL CHECK (first IN ('a', 'b')),
    first_sound TEXT NOT NULL UNIQUE,
    second_sound TEXT NOT NULL UNIQUE,
    opened_at TEXT NOT NULL,
    answered INTEGER,
    answered_at TEXT,
    choice TEXT CHECK (choice IN ('a', 'b', 'tie', 'skip')),
    why TEXT NOT NULL DEFAULT '[]',
    seconds REAL NOT NULL DEFAULT 0,
    CHECK ((answered IS NULL) = (choice IS NULL))
);
CREATE INDEX trials_of_rater ON trials (rater, pair);
CREATE INDEX trials_of_pair ON trials (pair, answered);
CREATE TABLE rating_trials (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    clip TEXT NOT NULL REFERENCES clips,
    rater TEXT NOT NULL,
    sound TEXT NOT NULL UNIQUE,
    opened_at TEXT NOT NULL,
    answered INTEGER,
    answered_at TEXT,
    value REAL CHECK (value BETWEEN 0 AND 100),
    why TEXT NOT NULL DEFAULT '[]',
    CHECK ((answered IS NULL) = (value IS NULL))
);
CREATE INDEX rating_trials_of_rater ON rating_trials (rater, clip);
CREATE INDEX rating_trials_of_clip ON rating_trials (clip, answered);
"""


def connect(path: Path) -> sqlite3.Connection:
    """Open a vote store for reading and writing, or make it.

    Write-ahead logging lets pages be read while another process writes; ``synchronous = FULL``
    has each commit on the disk before it returns.

    Raises:
        InputError: not a vote store, one of another version, or not writable. It is unchanged.
    """
    if path.is_dir():
        raise InputError(f"vote store {path} is a folder; name a file, such as {path / 'votes.db'}")
    if not path.parent.is_dir():
        raise InputError(f"folder {path.parent} of vote store {path} does not exist; make it first")
    try:
        # The header is looked at as bytes first: opening could already change a foreign file.
        _check_header(path)
        connection = sqlite3.connect(
            path, timeout=_WAIT, isolation_level=None, check_same_thread=False
        )
    except OSError as error:
        raise InputError(
            f"vote store {path} cannot be read: {error.strerror}; check its owner and mode"
        ) from error
    except sqlite3.Error as error:
        raise readable(error, path) from error
    try:
        _prepare(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise readable(error, path) from error
    except BaseException:
        connection.close()
        raise
    return connection


def readable(error: sqlite3.Error, path: Path) -> InputError:
    """An error of SQLite as one line about the store."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
    if code == sqlite3.SQLITE_FULL:
        return InputError(
            f"disk full while writing vote store {path}; earlier votes are kept, "
            "free some space and vote again"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return InputError(
            f"vote store {path} cannot be written; check owner and mode of it and its folder"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return InputError(f"vote store {path} is held by another program; close that and try again")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return InputError(f"{path} is damaged or no vote store ({error}); use a copy or a new name")
    return InputError(f"vote store {path} failed: {error}; check the disk it lies on")


def _check_header(path: Path) -> None:
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as stream:
        header = stream.read(_HEADER)
    if len(header) < _HEADER or not header.startswith(b"SQLite format 3\0"):
        raise InputError(f"{path} is no vote store; choose another file")
    (version,) = struct.unpack(">i", header[60:64])
    (application,) = struct.unpack(">i", header[68:72])
    _check_version(path, version, application)


def _check_version(path: Path, version: int, application: int) -> None:
    if application != APPLICATION:
        raise InputError(f"{path} is a database but no vote store; choose another file")
    if version != VERSION:
        raise InputError(
            f"vote store {path} has schema version {version}, this release reads {VERSION}; "
            "export it to JSONL with the release that made it and import that here"
        )


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("BEGIN IMMEDIATE")  # also says at once if it cannot be written
    try:
        # Another process may have made it since the header was read.
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for statement in _TABLES.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        _check_version(path, version, application)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    _switch_to_wal(connection)


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Two processes that switch at once do not wait for each other by themselves."""
    end = time.monotonic() + _WAIT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > end:
                raise
            time.sleep(0.02)
