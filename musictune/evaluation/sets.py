"""Which files belong to the sets of an evaluation, and what is heard in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from musictune.data.sources import discover
from musictune.evaluation.plan import Plan
from musictune.metrics.base import Listener
from musictune.metrics.cache import Cache, cache_folder
from musictune.metrics.features import Features
from musictune.metrics.folder import ClipFile, ClipSet, pair, read_made, shown
from musictune.metrics.listening import listen
from musictune.metrics.statistics_files import Statistics, read_statistics
from musictune.metrics.suite import EMBEDDER, HeardSet

_PIECE = 2  # windows, of which each shares half with the next


def hear_set(plan: Plan, clips: ClipSet, listeners: Mapping[str, Listener]) -> HeardSet:
    """What ``listeners`` hear in ``clips``, with a bar; what was heard before is not heard again.

    Raises:
        InputError: a file cannot be read or heard, or the cache not be written.
        CheckFailed: a listening process died.
    """
    cache = Cache(plan.cache or cache_folder())
    paths = [file.path for file in clips.files]
    heard = listen(paths, listeners, cache, f"listening to {clips.name}", plan.workers)
    return HeardSet(clips, heard)


def in_pieces(one: HeardSet) -> tuple[HeardSet, list[str]]:
    """A single recording as several clips, so that sets can be compared; and a warning.

    What is heard of one recording is more alike than recordings are, but two minutes of one are
    what most people have. From recordings composed for one instrument new clips of it were at a
    kernel distance of 57 from a single one, at 2 from fourteen together, and no interval of the
    former held the latter; that of audio alignment did for 50 to 85 % of them. A set of several
    recordings stays as it is, and so does a short one.
    """
    points = one.points
    if len(points) > 1 or len(points.points) < 2 * _PIECE:
        return one, []
    pieces = len(points.points) // _PIECE
    lengths = np.full(pieces, _PIECE, dtype=np.int64)
    lengths[-1] += len(points.points) - _PIECE * pieces
    features = one.heard.features | {EMBEDDER: Features(points.points, lengths, points.key)}
    warning = (
        f"the reference {one.clips.name} is one recording, taken here as {pieces} pieces: "
        f"distances, precision and coverage tell how near made clips come to this one recording, "
        f"and their intervals do not hold what other recordings of the same sound would give; go "
        f"by audio alignment, or give several recordings"
    )
    return HeardSet(one.clips, replace(one.heard, features=features)), [warning]


def made_sets(plan: Plan) -> tuple[ClipSet, ClipSet | None, list[tuple[int, int]]]:
    """The made set, the one it is held against, and which of their clips are pairs.

    Raises:
        InputError: a folder without audio, or a damaged manifest.
    """
    name, other = _names(plan.made, plan.against)
    made = ClipSet(name, read_made(plan.made))
    if plan.against is None:
        return made, None, []
    others = list(read_made(plan.against))
    pairs = pair(made.files, others)
    for i, j in pairs:
        # A base that never met the concept kept its trigger; the judge reads the same for both.
        others[j] = replace(others[j], text=made.files[i].text)
    return made, ClipSet(other, tuple(others)), pairs


def found_clips(path: Path) -> ClipSet:
    """The audio that a path stands for.

    Raises:
        InputError: there is none.
    """
    sources = discover(path)
    captions = [shown(source.caption) for source in sources]
    files = (
        ClipFile(source.path, shown(source.name), caption, caption)
        for source, caption in zip(sources, captions, strict=True)
    )
    return ClipSet(set_name(path), tuple(files))


def reference_set(plan: Plan) -> ClipSet | Statistics:
    """The reference's files, or its statistics.

    Raises:
        InputError: there is none, or the statistics cannot be used.
    """
    if plan.statistics is None:
        return found_clips(plan.reference)
    return read_statistics(*plan.statistics)


def _names(made: Path, against: Path | None) -> tuple[str, str]:
    """What to call the sets: their folders, unless these have one name."""
    names = set_name(made), set_name(against) if against else ""
    return names if names[0] != names[1] else ("made", "against")


def set_name(path: Path) -> str:
    """What people see of a set: its folder, or its file without the suffix."""
    resolved = path.resolve()
    return shown(resolved.name if resolved.is_dir() else resolved.stem)
