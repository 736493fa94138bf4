"""The store's audio as WAV in memory, and the parts of it that a player asks for."""

from __future__ import annotations

import io
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import soundfile
from fastapi.responses import Response

from musictune.audio import Clip, read
from musictune.web.levels import matched

LONGEST = 600.0
"""Seconds of a clip that are played; what comes later is left out."""

_KEPT = 256 * 2**20  # bytes of WAV
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
_HEADERS = {"accept-ranges": "bytes"}


class Sounds:
    """Reads, levels and keeps what was asked for last, in bounded memory.

    Args:
        kept: bytes that may stay in memory. What is being listened to always does.
    """

    def __init__(self, kept: int = _KEPT) -> None:
        self._most = kept
        self._kept: OrderedDict[tuple[Path, ...], list[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def wav(self, path: Path, beside: Path | None = None) -> bytes:
        """A clip as a 16-bit WAV file, as loud as the one it is compared with.

        Args:
            path: what to play.
            beside: the other side of its pair.

        Raises:
            AudioError: one of the two is gone or is no audio.
        """
        # Of each pair one entry, whichever side is asked for.
        paths = tuple(sorted({path, beside or path}))
        with self._lock:  # the player and the picture ask at once; one decodes
            if paths not in self._kept:
                self._kept[paths] = _decoded(paths)
            self._kept.move_to_end(paths)
            while len(self._kept) > 1 and self._bytes() > self._most:
                self._kept.popitem(last=False)
            return self._kept[paths][paths.index(path)]

    def _bytes(self) -> int:
        return sum(len(part) for parts in self._kept.values() for part in parts)


def part_of(wav: bytes, wanted: str | None) -> Response:
    """What a ``Range`` header asks for: all, one stretch (206), or what is not there (416).

    Several stretches in one header are answered with all, as RFC 9110 allows.
    """
    found = _RANGE.fullmatch((wanted or "").replace(" ", ""))
    if found is None or not any(found.groups()):
        return Response(wav, 200, _HEADERS, "audio/wav")
    first, last = found.groups()
    if first:
        start, end = int(first), min(int(last) if last else len(wav) - 1, len(wav) - 1)
    else:
        start, end = max(len(wav) - int(last), 0), len(wav) - 1
    if start > end:
        none = {"content-range": f"bytes */{len(wav)}"}
        return Response(b"", 416, _HEADERS | none, "audio/wav")
    place = {"content-range": f"bytes {start}-{end}/{len(wav)}"}
    return Response(wav[start : end + 1], 206, _HEADERS | place, "audio/wav")


def _decoded(paths: Sequence[Path]) -> list[bytes]:
    clips = [read(path, seconds=LONGEST) for path in paths]
    return [_encoded(clip) for clip in matched(clips)]


def _encoded(clip: Clip) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, clip.wave.T.numpy(), clip.sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()
