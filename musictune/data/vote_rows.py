"""Rows of the vote store: each function works inside a transaction that its caller holds."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from musictune.data.vote_types import Pair, Rating, Vote, pair_id, plain_path, rater_name
from musictune.errors import InputError

_MOST_TAGS, _LONGEST_TAG = 32, 80


def new_name() -> str:
    """A name that tells nothing and cannot be guessed."""
    return secrets.token_urlsafe(18)


def now() -> str:
    """The time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def next_answer(base: sqlite3.Connection) -> int:
    """The number of the next answer: clocks are set back, this only grows."""
    (last,) = base.execute(
        "SELECT max(coalesce((SELECT max(answered) FROM trials), 0), "
        "coalesce((SELECT max(answered) FROM rating_trials), 0))"
    ).fetchone()
    return int(last) + 1


def stored_tags(why: Sequence[str]) -> str:
    """Tags as JSON.

    Raises:
        InputError: too many, or one that is empty, long or cannot be printed.
    """
    tags = [tag.strip() for tag in why]
    if len(tags) > _MOST_TAGS:
        raise InputError(f"{len(tags)} tags are too many; give at most {_MOST_TAGS}")
    for tag in tags:
        if not 1 <= len(tag) <= _LONGEST_TAG or not tag.isprintable():
            raise InputError(f"tag {tag[:100]!r} must be 1 to {_LONGEST_TAG} printable characters")
    return json.dumps(tags)


def check_same(given: tuple[object, str], kept: tuple[object, str], trial: str) -> None:
    """Pass if a trial is answered as before.

    Raises:
        InputError: it is not.
    """
    if given != kept:
        raise InputError(
            f"trial {trial!r} has already been answered otherwise ({kept[0]}); undo that first"
        )


def places(folder: Path, absolute: str, relative: str) -> list[Path]:
    """Where a sound may lie: where it was, or where it was as seen from the store."""
    return [Path(absolute), plain_path(folder / relative)]


def add_pair(base: sqlite3.Connection, folder: Path, pair: Pair, digests: tuple[str, str]) -> bool:
    """Add a pair unless it is known; whether it was new.

    Raises:
        InputError: its id stands for another prompt or other sounds.
    """
    known = base.execute("SELECT prompt FROM pairs WHERE id = ?", (pair.id,)).fetchone()
    if known is None:
        base.execute(
            "INSERT INTO pairs (id, prompt, a, b, system_a, system_b) VALUES (?, ?, ?, ?, ?, ?)",
            (
                *(pair.id, pair.prompt),
                _add_sound(base, folder, pair.a, digests[0]),
                _add_sound(base, folder, pair.b, digests[1]),
                *(pair.system_a, pair.system_b),
            ),
        )
        return True
    sides = zip("ab", (pair.a, pair.b), digests, (pair.system_a, pair.system_b), strict=True)
    for side, path, digest, system in sides:
        kept_digest, absolute, relative, kept_system = base.execute(
            f"SELECT s.sha256, s.absolute, s.relative, p.system_{side} FROM pairs p "
            f"JOIN sounds s ON s.id = p.{side} WHERE p.id = ?",
            (pair.id,),
        ).fetchone()
        same_system = not system or not kept_system or system == kept_system
        if (known[0], kept_digest) != (pair.prompt, digest) or not same_system:
            raise InputError(
                f"pair {pair.id!r} is in the store with another prompt, sound or system; "
                "give changed pairs a new id"
            )
        if not any(place.is_file() for place in places(folder, absolute, relative)):
            moved = _add_sound(base, folder, path, digest)
            base.execute(f"UPDATE pairs SET {side} = ? WHERE id = ?", (moved, pair.id))
        if system and not kept_system:
            base.execute(f"UPDATE pairs SET system_{side} = ? WHERE id = ?", (system, pair.id))
    return False


def add_clip(
    base: sqlite3.Connection, folder: Path, path: Path, digest: str, prompt: str, system: str
) -> tuple[str, bool]:
    """Add a clip to rate unless it is known: its id, and whether it was new."""
    name = pair_id(prompt, digest, system)
    known = base.execute(
        "SELECT s.absolute, s.relative FROM clips c JOIN sounds s ON s.id = c.sound WHERE c.id = ?",
        (name,),
    ).fetchone()
    if known and any(place.is_file() for place in places(folder, *known)):
        return name, False
    sound = _add_sound(base, folder, path, digest)
    base.execute(
        "INSERT INTO clips (id, prompt, sound, system) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET sound = excluded.sound",
        (name, prompt, sound, system),
    )
    return name, known is None


def add_vote(base: sqlite3.Connection, vote: Vote) -> bool:
    """Add an answer about a pair that is here, unless it is known; whether it was new."""
    given = (
        *(vote.pair.id, rater_name(vote.rater), vote.first, vote.choice, vote.at),
        *(json.dumps(vote.why), float(vote.seconds)),
    )
    known = base.execute(
        "SELECT 1 FROM trials WHERE pair = ? AND rater = ? AND first = ? AND choice = ? "
        "AND answered_at = ? AND why = ? AND seconds = ?",
        given,
    ).fetchone()
    if known:
        return False
    base.execute(
        "INSERT INTO trials (id, first_sound, second_sound, opened_at, answered, pair, rater, "
        "first, choice, answered_at, why, seconds) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (new_name(), new_name(), new_name(), now(), next_answer(base), *given),
    )
    return True


def add_rating(base: sqlite3.Connection, rating: Rating, clip: str) -> bool:
    """Add an answer about a clip that is here, unless it is known; whether it was new."""
    given = (
        *(clip, rater_name(rating.rater), float(rating.value), rating.at),
        json.dumps(rating.why),
    )
    known = base.execute(
        "SELECT 1 FROM rating_trials WHERE clip = ? AND rater = ? AND value = ? "
        "AND answered_at = ? AND why = ?",
        given,
    ).fetchone()
    if known:
        return False
    base.execute(
        "INSERT INTO rating_trials (id, sound, opened_at, answered, clip, rater, value, "
        "answered_at, why) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (new_name(), new_name(), now(), next_answer(base), *given),
    )
    return True


def fewest_answers(
    base: sqlite3.Connection, rater: str, things: str, trials: str, key: str
) -> tuple[str, str] | None:
    """Id and prompt of what this rater has not had yet and the fewest have answered.

    Among equals the order is the rater's own and stays the same.
    """
    rows = base.execute(
        f"SELECT x.id, x.prompt, "
        f"(SELECT count(*) FROM {trials} t WHERE t.{key} = x.id AND t.answered NOT NULL) "
        f"FROM {things} x WHERE x.id NOT IN (SELECT {key} FROM {trials} WHERE rater = ?)",
        (rater,),
    ).fetchall()

    def place(row: tuple[str, str, int]) -> tuple[int, bytes]:
        return row[2], hashlib.sha256(f"{rater}\0{row[0]}".encode()).digest()

    chosen = min(rows, key=place, default=None)
    return None if chosen is None else (chosen[0], chosen[1])


def sound_row(base: sqlite3.Connection, sound: str) -> tuple[str, str, str] | None:
    """SHA-256, absolute and relative path of what a trial calls ``sound``."""
    found: tuple[str, str, str] | None = base.execute(
        "SELECT s.sha256, s.absolute, s.relative FROM sounds s JOIN ("
        "SELECT CASE t.first WHEN 'a' THEN p.a ELSE p.b END AS id FROM trials t "
        "JOIN pairs p ON p.id = t.pair WHERE t.first_sound = ?1 UNION ALL "
        "SELECT CASE t.first WHEN 'a' THEN p.b ELSE p.a END FROM trials t "
        "JOIN pairs p ON p.id = t.pair WHERE t.second_sound = ?1 UNION ALL "
        "SELECT c.sound FROM rating_trials t JOIN clips c ON c.id = t.clip "
        "WHERE t.sound = ?1) USING (id)",
        (sound,),
    ).fetchone()
    return found


def all_votes(base: sqlite3.Connection, folder: Path) -> list[Vote]:
    """Every answer about a pair, in the order given."""
    rows = base.execute(
        "SELECT p.id, p.prompt, a.absolute, a.relative, b.absolute, b.relative, p.system_a, "
        "p.system_b, t.choice, t.rater, t.first, t.why, t.seconds, t.answered_at FROM trials t "
        "JOIN pairs p ON p.id = t.pair JOIN sounds a ON a.id = p.a JOIN sounds b ON b.id = p.b "
        "WHERE t.answered NOT NULL ORDER BY t.answered"
    ).fetchall()
    votes = []
    for name, prompt, *paths, system_a, system_b, choice, rater, first, why, seconds, at in rows:
        a, b = _place(folder, *paths[:2]), _place(folder, *paths[2:])
        pair = Pair(name, prompt, a, b, system_a, system_b)
        votes.append(Vote(pair, choice, rater, first, tuple(json.loads(why)), seconds, at))
    return votes


def all_ratings(base: sqlite3.Connection, folder: Path) -> list[Rating]:
    """Every rating, in the order given."""
    rows = base.execute(
        "SELECT s.absolute, s.relative, c.prompt, c.system, t.rater, t.value, t.why, "
        "t.answered_at FROM rating_trials t JOIN clips c ON c.id = t.clip "
        "JOIN sounds s ON s.id = c.sound WHERE t.answered NOT NULL ORDER BY t.answered"
    ).fetchall()
    return [
        Rating(_place(folder, *paths), prompt, system, rater, value, tuple(json.loads(why)), at)
        for *paths, prompt, system, rater, value, why, at in rows
    ]


def _place(folder: Path, absolute: str, relative: str) -> Path:
    """Where a sound lies; where it was, if it is nowhere."""
    found = places(folder, absolute, relative)
    return next((place for place in found if place.is_file()), found[0])


def _add_sound(base: sqlite3.Connection, folder: Path, path: Path, digest: str) -> int:
    absolute = plain_path(path)
    row = (digest, str(absolute), os.path.relpath(absolute, folder))
    base.execute(
        "INSERT INTO sounds (sha256, absolute, relative) VALUES (?, ?, ?) "
        "ON CONFLICT (sha256, absolute) DO UPDATE SET relative = excluded.relative",
        row,
    )
    (number,) = base.execute(
        "SELECT id FROM sounds WHERE sha256 = ? AND absolute = ?", row[:2]
    ).fetchone()
    return int(number)
