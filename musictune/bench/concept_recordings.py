"""A concept of a benchmark from recordings: clips to learn from, and later ones to measure with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from musictune import audio
from musictune.bench.concept_set import BenchConcept, write_concept
from musictune.console import note, track
from musictune.data.clips import describe
from musictune.data.sources import Source, discover, written_caption
from musictune.data.windows import Duplicates, is_silent
from musictune.errors import AudioError, InputError
from musictune.files import check_target, publish_folder

SHORTEST_SECONDS = 40.0
"""Recordings shorter than this together are refused: each half needs several clips."""

_SECONDS = 10.0
_SHORTEST_CLIP = 5.0
_MOST = 12  # clips a half, as in the composed concepts
_RATE = 32_000


@dataclass(frozen=True)
class _Piece:
    """A window of a recording, not yet read; times in seconds."""

    source: Source
    start: float
    seconds: float


def cut_recordings(recordings: Path, concept: BenchConcept, *, overwrite: bool = False) -> None:
    """Cut what `discover` finds into a concept's two folders, whole or not at all.

    The first half of each recording is for reference, the second held out, so that no ten seconds
    are in both; a recording of one clip goes whole to the half that has less. Of long recordings
    twelve clips a half are taken, evenly spread. Silence is left out, and what sounds the same as
    a clip before it.

    Raises:
        InputError: under 40 seconds of audio, mostly silence or repetition, or the folder is taken.
    """
    target = concept.reference.parent
    check_target(target, overwrite=overwrite, inputs=[recordings])
    reference, heldout = _halves(recordings)
    duplicates = Duplicates()
    with publish_folder(target, overwrite=overwrite) as folder:
        draft = replace(concept, reference=folder / "reference", heldout=folder / "heldout")
        kept = 0.0
        for part, pieces in ((draft.reference, reference), (draft.heldout, heldout)):
            seconds = _write(pieces, part, concept.class_word, duplicates)
            if not seconds:
                raise InputError(
                    f"recordings {recordings} leave nothing for {part.name}: the rest is silent or "
                    f"repeats itself; add other recordings"
                )
            kept += seconds
        if kept < SHORTEST_SECONDS:
            raise InputError(
                f"recordings {recordings} hold {kept:.0f} s that are neither silent nor repeated; "
                f"{SHORTEST_SECONDS:.0f} s are needed"
            )
        write_concept(draft)


def _halves(recordings: Path) -> tuple[list[_Piece], list[_Piece]]:
    first: list[_Piece] = []
    second: list[_Piece] = []
    total = 0.0
    for source in discover(recordings):
        try:
            length = audio.info(source.path).seconds
        except AudioError as error:
            note(f"skipped: {error}")
            continue
        total += length
        starts = [i * _SECONDS for i in range(int(length // _SECONDS) + 1)]
        pieces = [_Piece(source, start, min(_SECONDS, length - start)) for start in starts]
        pieces = [piece for piece in pieces if piece.seconds >= _SHORTEST_CLIP]
        middle = (len(pieces) + 1) // 2
        if len(pieces) == 1 and _length(second) < _length(first):
            middle = 0
        first += pieces[:middle]
        second += pieces[middle:]
    if total < SHORTEST_SECONDS:
        raise InputError(
            f"recordings {recordings} hold {total:.0f} s; at least {SHORTEST_SECONDS:.0f} s are "
            f"needed, half to learn from and half to measure with"
        )
    return _spread(first), _spread(second)


def _length(pieces: Sequence[_Piece]) -> float:
    return sum(piece.seconds for piece in pieces)


def _spread(pieces: list[_Piece]) -> list[_Piece]:
    if len(pieces) <= _MOST:
        return pieces
    return [pieces[i * len(pieces) // _MOST] for i in range(_MOST)]


def _write(
    pieces: Sequence[_Piece], folder: Path, class_word: str, duplicates: Duplicates
) -> float:
    """Write the clips as an AudioFolder; seconds of what was kept."""
    (folder / "audio").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for piece in track(pieces, folder.name):
        clip = audio.read(piece.source.path, piece.start, piece.seconds).mono()
        if is_silent(clip):
            continue
        clip = clip.resample(_RATE).level()
        if duplicates.find(clip):
            continue
        duplicates.add(clip, piece.source.name)
        name = f"audio/{len(rows):06d}.flac"
        audio.write(clip, folder / name)
        rows.append(
            {
                "file_name": name,
                "text": written_caption(piece.source) or describe(clip, class_word),
                "source": piece.source.name,
                "start": round(piece.start, 3),
                "seconds": round(clip.seconds, 3),
            }
        )
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return sum(row["seconds"] for row in rows)
