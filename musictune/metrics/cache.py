"""What was heard before: rows on disk, found by the audio's bytes and the listener's key.

The audio's name plays no part, so a file that was made anew under its old name is heard anew. Each
entry carries a checksum and is renamed into place, so that a killed process leaves whole entries
or none.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import torch

from musictune.console import note
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
        except FileNotFoundError:
            return None
        except OSError as error:
            note(f"cache entry {place} cannot be read ({error.strerror}); hearing the audio again")
            return None
        digest, rows = data[:32], data[32:]
        if hashlib.sha256(rows).digest() != digest:
            note(f"cache entry {place} is damaged; hearing the audio again")
            return None
        return np.asarray(np.load(io.BytesIO(rows), allow_pickle=False))

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
