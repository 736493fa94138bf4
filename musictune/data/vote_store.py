"""Votes as they are given: trials dealt to raters, answers kept through a killed process."""

from __future__ import annotations

import contextlib
import math
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from musictune.data import vote_rows as rows
from musictune.data.vote_schema import connect, readable
from musictune.data.vote_types import Pair, Rating, Vote, audio_digest, plain_path, rater_name
from musictune.errors import InputError
from musictune.files import sha256


@dataclass(frozen=True)
class Trial:
    """One pair shown to one rater; the sounds have names of this trial only, which tell nothing."""

    id: str
    prompt: str
    first: str
    second: str


@dataclass(frozen=True)
class RatingTrial:
    """One clip shown to one rater; the sound has a name of this trial only."""

    id: str
    prompt: str
    sound: str


class VoteStore:
    """Trials and answers in one SQLite file, for several threads and processes at once.

    Every answer is a transaction that is on the disk before the call returns.

    Args:
        path: the file; made if missing.

    Raises:
        InputError: not a vote store, one of another version, not writable. Every method raises it
            when the disk is full or the file cannot be used; what was acknowledged stays.
    """

    def __init__(self, path: Path) -> None:
        self.path = plain_path(path)
        self._folder = self.path.parent
        self._lock = threading.RLock()
        self._digests: dict[tuple[str, int, int], str] = {}
        self._connection = connect(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Fold the log into the file and let go of it."""
        with self._lock:
            self._connection.close()

    def add_pairs(self, pairs: Iterable[Pair]) -> int:
        """Pairs to vote on; known ones are passed over, all are added or none.

        A known pair whose sound has moved is found at its new place from now on.

        Returns:
            How many are new.

        Raises:
            InputError: a sound is gone, or an id stands for another prompt or other sounds.
        """
        ready = [(pair, _digests(pair)) for pair in pairs]
        with self._writing() as base:
            return sum(rows.add_pair(base, self._folder, *each) for each in ready)

    def add_clips(self, clips: Iterable[tuple[Path, str, str]]) -> int:
        """Clips to rate, each as (file, prompt, system); known ones are passed over.

        Returns:
            How many are new.

        Raises:
            InputError: a sound is gone.
        """
        ready = [(path, audio_digest(path), prompt, system) for path, prompt, system in clips]
        with self._writing() as base:
            return sum(rows.add_clip(base, self._folder, *each)[1] for each in ready)

    def add_votes(self, votes: Iterable[Vote]) -> int:
        """Votes given elsewhere, with their pairs; those already here are passed over.

        Returns:
            How many are new.

        Raises:
            InputError: as `add_pairs`, or a rater's name that cannot be used; nothing is added.
        """
        ready = [(vote, _digests(vote.pair)) for vote in votes]
        new = 0
        with self._writing() as base:
            for vote, digests in ready:
                rows.add_pair(base, self._folder, vote.pair, digests)
                new += rows.add_vote(base, vote)
        return new

    def add_ratings(self, ratings: Iterable[Rating]) -> int:
        """Ratings given elsewhere, with their clips; those already here are passed over.

        Returns:
            How many are new.

        Raises:
            InputError: a sound is gone or a rater's name cannot be used; nothing is added.
        """
        ready = [(rating, audio_digest(rating.clip)) for rating in ratings]
        new = 0
        with self._writing() as base:
            for rating, digest in ready:
                about = (rating.clip, digest, rating.prompt, rating.system)
                clip, _ = rows.add_clip(base, self._folder, *about)
                new += rows.add_rating(base, rating, clip)
        return new

    def next_trial(self, rater: str) -> Trial | None:
        """What this rater has open, else a pair new to them; None when all are done.

        Pairs with the fewest answers come first, equal ones in an order of the rater's own that
        stays the same. Which clip is first is drawn once and stored.
        """
        rater = rater_name(rater)
        with self._writing() as base:
            found = base.execute(
                "SELECT t.id, p.prompt, t.first_sound, t.second_sound FROM trials t "
                "JOIN pairs p ON p.id = t.pair WHERE t.rater = ? AND t.answered IS NULL "
                "ORDER BY t.number LIMIT 1",
                (rater,),
            ).fetchone()
            if found:
                return Trial(*found)
            pair = rows.fewest_answers(base, rater, "pairs", "trials", "pair")
            if pair is None:
                return None
            trial = Trial(rows.new_name(), pair[1], rows.new_name(), rows.new_name())
            base.execute(
                "INSERT INTO trials (id, pair, rater, first, first_sound, second_sound, opened_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    *(trial.id, pair[0], rater, secrets.choice("ab")),
                    *(trial.first, trial.second, rows.now()),
                ),
            )
            return trial

    def next_clip(self, rater: str) -> RatingTrial | None:
        """What this rater has open, else a clip new to them; None when all are done."""
        rater = rater_name(rater)
        with self._writing() as base:
            found = base.execute(
                "SELECT t.id, c.prompt, t.sound FROM rating_trials t JOIN clips c ON c.id = t.clip "
                "WHERE t.rater = ? AND t.answered IS NULL ORDER BY t.number LIMIT 1",
                (rater,),
            ).fetchone()
            if found:
                return RatingTrial(*found)
            clip = rows.fewest_answers(base, rater, "clips", "rating_trials", "clip")
            if clip is None:
                return None
            trial = RatingTrial(rows.new_name(), clip[1], rows.new_name())
            base.execute(
                "INSERT INTO rating_trials (id, clip, rater, sound, opened_at) "
                "VALUES (?, ?, ?, ?, ?)",
                (trial.id, clip[0], rater, trial.sound, rows.now()),
            )
            return trial

    def vote(
        self,
        trial: str,
        choice: Literal["first", "second", "tie", "skip"],
        why: Sequence[str] = (),
        seconds: float = 0.0,
    ) -> None:
        """Keep an answer; the same one again, as after a lost reply, changes nothing.

        Args:
            trial: its id.
            choice: which of those shown is better.
            why: tags.
            seconds: from the first sound to the answer.

        Raises:
            InputError: no such trial, a value that cannot be used, or answered otherwise before.
        """
        if choice not in ("first", "second", "tie", "skip"):
            raise InputError(f"vote {choice!r} is unknown; choose first, second, tie or skip")
        if not (math.isfinite(seconds) and seconds >= 0):
            raise InputError(f"seconds {seconds} of a vote must be finite and not negative")
        tags = rows.stored_tags(why)
        with self._writing() as base:
            found = base.execute(
                "SELECT first, choice, why FROM trials WHERE id = ?", (trial,)
            ).fetchone()
            if found is None:
                raise InputError(f"trial {trial!r} is not in this store; ask for a new one")
            second = "b" if found[0] == "a" else "a"
            kept = {"first": found[0], "second": second}.get(choice, choice)
            if found[1] is not None:
                rows.check_same((kept, tags), found[1:], trial)
                return
            base.execute(
                "UPDATE trials SET choice = ?, why = ?, seconds = ?, answered = ?, "
                "answered_at = ? WHERE id = ?",
                (kept, tags, float(seconds), rows.next_answer(base), rows.now(), trial),
            )

    def rate(self, trial: str, value: float, why: Sequence[str] = ()) -> None:
        """Keep a rating from 0 to 100; the same one again changes nothing.

        Raises:
            InputError: no such trial, a value that cannot be used, or answered otherwise before.
        """
        if not 0 <= value <= 100:
            raise InputError(f"rating {value} must be from 0 to 100")
        tags = rows.stored_tags(why)
        with self._writing() as base:
            found = base.execute(
                "SELECT value, why FROM rating_trials WHERE id = ?", (trial,)
            ).fetchone()
            if found is None:
                raise InputError(f"trial {trial!r} is not in this store; ask for a new one")
            if found[0] is not None:
                rows.check_same((float(value), tags), found, trial)
                return
            base.execute(
                "UPDATE rating_trials SET value = ?, why = ?, answered = ?, answered_at = ? "
                "WHERE id = ?",
                (float(value), tags, rows.next_answer(base), rows.now(), trial),
            )

    def undo(self, rater: str) -> str | None:
        """Open this rater's last answered trial again, pair or rating; its id, or None."""
        rater = rater_name(rater)
        with self._writing() as base:
            last = base.execute(
                "SELECT answered, id, 'trials' FROM trials WHERE rater = ?1 AND answered NOT NULL "
                "UNION ALL SELECT answered, id, 'rating_trials' FROM rating_trials "
                "WHERE rater = ?1 AND answered NOT NULL ORDER BY 1 DESC LIMIT 1",
                (rater,),
            ).fetchone()
            if last is None:
                return None
            column = "choice = NULL, seconds = 0" if last[2] == "trials" else "value = NULL"
            base.execute(
                f"UPDATE {last[2]} SET {column}, answered = NULL, answered_at = NULL, why = '[]' "
                "WHERE id = ?",
                (last[1],),
            )
            return str(last[1])

    def sound(self, sound: str) -> Path | None:
        """The file behind a trial's name for it; None if unknown, gone or changed since."""
        with self._reading() as base:
            found = rows.sound_row(base, sound)
        if found is None:
            return None
        digest, *places = found
        ready = rows.places(self._folder, *places)
        return next((path for path in ready if self._digest(path) == digest), None)

    def progress(self, rater: str, *, rating: bool = False) -> tuple[int, int]:
        """How many pairs this rater has answered, and how many there are; or clips rated."""
        things, trials, key = "pairs", "trials", "pair"
        if rating:
            things, trials, key = "clips", "rating_trials", "clip"
        with self._reading() as base:
            (answered,) = base.execute(
                f"SELECT count(DISTINCT {key}) FROM {trials} WHERE rater = ? AND answered NOT NULL",
                (rater_name(rater),),
            ).fetchone()
            (total,) = base.execute(f"SELECT count(*) FROM {things}").fetchone()
        return answered, total

    def votes(self) -> list[Vote]:
        """Every answer about a pair, in the order given."""
        with self._reading() as base:
            return rows.all_votes(base, self._folder)

    def ratings(self) -> list[Rating]:
        """Every rating, in the order given."""
        with self._reading() as base:
            return rows.all_ratings(base, self._folder)

    def _digest(self, path: Path) -> str:
        """SHA-256 of a file, computed again only when it has changed; empty if there is none."""
        try:
            status = path.stat()
            key = (str(path), status.st_size, status.st_mtime_ns)
            if key not in self._digests:
                self._digests[key] = sha256(path)
        except OSError:
            return ""
        return self._digests[key]

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise readable(error, self.path) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is on the disk at the end, or none."""
        with self._reading() as base:
            base.execute("BEGIN IMMEDIATE")
            try:
                yield base
                base.execute("COMMIT")
            except UnicodeEncodeError as error:
                raise InputError(
                    f"text {error.object!r} is not Unicode and cannot be stored; rename it"
                ) from error
            finally:
                if base.in_transaction:
                    base.execute("ROLLBACK")


def _digests(pair: Pair) -> tuple[str, str]:
    return audio_digest(pair.a), audio_digest(pair.b)
