"""What was heard before: rows on disk, found by the audio's bytes and the listener's key.

The audio's name plays no part, so a file that was made anew under its old name is heard anew. Each
entry carries a checksum and is renamed into place, so that a killed process leaves whole entries
or none.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from musictune.console import note
from musictune.errors import InputError
from musictune.files import readable

FORMAT = f"1-torch{torch.__version__.partition('+')[0]}"
"""Other versions of torch round otherwise: their rows are not mixed with ours."""


def cache_folder() -> Path:
    """``$MUSICTUNE_CACHE``, or ``musictune`` in the user's cache folder."""
    if named := os.environ.get("MUSICTUNE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "musictune"


class Cache:
    """Rows by audio and listener.

    Args:
        folder: where; made when the first rows are put in. It can be deleted at any time.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def place(self, audio: str, key: str) -> Path:
        """The file of an entry.

        Args:
            audio: hex digest of the audio's bytes.
            key: of the listener.
        """
        heard_by = hashlib.sha256(f"{FORMAT} {key}".encode()).hexdigest()[:32]
        return self.folder / "heard" / heard_by / audio[:2] / f"{audio}.rows"

    def get(self, audio: str, key: str) -> np.ndarray | None:
        """The rows, or None; a damaged entry is said and counts as none."""
        place = self.place(audio, key)
        try:
            data = place.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            why = f"cannot be read ({error.strerror})"
        else:
            rows = _rows(data)
            if rows is not None:
                return rows
            why = "is damaged"
        note(f"cache entry {place} {why}; hearing the audio again")
        with contextlib.suppress(OSError):  # make way for what is heard anew
            place.unlink()
        return None

    def check(self) -> None:
        """Refuse a folder that cannot be written, before hours of hearing.

        Raises:
            InputError: it cannot be made or written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise InputError(
                f"cache {self.folder} cannot be written ({error.strerror}); choose another with "
                f"--cache or MUSICTUNE_CACHE"
            ) from error

    def put(self, audio: str, key: str, rows: np.ndarray) -> None:
        """Keep rows.

        Raises:
            InputError: the folder cannot be written, or the disk is full.
        """
        place = self.place(audio, key)
        encoded = io.BytesIO()
        np.save(encoded, rows, allow_pickle=False)
        data = encoded.getvalue()
        temporary = place.with_name(f".{place.name}.{os.getpid()}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                # No fsync: what a lost machine tears, the checksum finds.
                temporary.write_bytes(hashlib.sha256(data).digest() + data)
                temporary.replace(place)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise readable(error, place) from error


def _rows(data: bytes) -> np.ndarray | None:
    """What an entry holds, if it is whole."""
    digest, encoded = data[:32], data[32:]
    if hashlib.sha256(encoded).digest() != digest:
        return None
    try:
        rows = np.asarray(np.load(io.BytesIO(encoded), allow_pickle=False))
    except ValueError:  # whole, but no rows of numbers: something else put it there
        return None
    return rows if rows.ndim == 2 else None
