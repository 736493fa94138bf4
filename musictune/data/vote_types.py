"""What people are asked about clips, and what they answer."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from musictune.errors import InputError
from musictune.files import sha256

Choice = Literal["a", "b", "tie", "skip"]
CHOICES: tuple[Choice, ...] = ("a", "b", "tie", "skip")

_LONGEST_NAME = 80


@dataclass(frozen=True)
class Pair:
    """Two clips made for one prompt.

    Attributes:
        id: of its own and stable, see :func:`pair_id`.
        prompt: what both were made for.
        a, b: the sound files.
        system_a, system_b: what made each; empty if not known.
    """

    id: str
    prompt: str
    a: Path
    b: Path
    system_a: str = ""
    system_b: str = ""


@dataclass(frozen=True)
class Vote:
    """One rater's answer about one pair.

    Attributes:
        pair: what was heard.
        choice: which is better, neither, or no answer.
        rater: who answered.
        first: which was shown first: on the left, key 1.
        why: tags the rater gave.
        seconds: from the first sound to the answer; 0 if not known.
        at: when, ISO 8601 in UTC; empty if not known.
    """

    pair: Pair
    choice: Choice
    rater: str
    first: Literal["a", "b"]
    why: tuple[str, ...] = ()
    seconds: float = 0.0
    at: str = ""


@dataclass(frozen=True)
class Rating:
    """One rater's value for one clip by itself.

    Attributes:
        clip: the sound file.
        prompt: what it was made for.
        system: what made it; empty if not known.
        rater: who answered.
        value: from 0 to 100, more is better.
        why: tags the rater gave.
        at: when, ISO 8601 in UTC; empty if not known.
    """

    clip: Path
    prompt: str
    system: str
    rater: str
    value: float
    why: tuple[str, ...] = ()
    at: str = ""


@dataclass(frozen=True)
class Comparison:
    """A clip that was preferred to another of the same prompt: what alignment learns from."""

    prompt: str
    chosen: Path
    rejected: Path
    rater: str = ""


def pair_id(prompt: str, digest_a: str, digest_b: str) -> str:
    """A short name of a pair that depends on its prompt and sounds, not on where they lie.

    Args:
        prompt: what both clips were made for.
        digest_a, digest_b: SHA-256 of the sound files, hexadecimal.
    """
    text = "\0".join((prompt, digest_a, digest_b))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def rater_name(name: str) -> str:
    """The name as it is kept: without space around it, composed (NFC), so that equal is equal.

    Raises:
        InputError: it is empty, longer than 80 characters or has some that cannot be printed.
    """
    kept = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(kept) <= _LONGEST_NAME or not kept.isprintable():
        raise InputError(
            f"rater name {name[:100]!r} cannot be used; give 1 to {_LONGEST_NAME} printable "
            "characters"
        )
    return kept


def plain_path(path: Path | str) -> Path:
    """An absolute path without ``..``; links stay as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def audio_digest(path: Path) -> str:
    """SHA-256 of a sound file.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    if not path.is_file():
        raise InputError(f"sound file {path} does not exist; put it back or leave the pair out")
    try:
        return sha256(path)
    except OSError as error:
        raise InputError(
            f"sound file {path} cannot be read: {error.strerror}; check its owner and mode"
        ) from error
