"""Which files belong to the sets of an evaluation, and what is heard in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class MadeSets:
    """The music to be measured.

    Attributes:
        made: what a model made.
        against: what it is held against, if anything is.
        pairs: indices into both of clips that share prompt and seed.
        plain: clips of both, paired likewise, whose prompts do not call the concept that other
            prompts of ``made`` call. They are in neither set: that they sound like the reference
            is not asked of them, only that they sound as before.
    """

    made: ClipSet
    against: ClipSet | None
    pairs: list[tuple[int, int]]
    plain: tuple[tuple[ClipFile, ClipFile], ...] = ()


def made_sets(plan: Plan) -> tuple[MadeSets, list[str]]:
    """The music to be measured, and warnings.

    Raises:
        InputError: a folder without audio, or a damaged manifest.
    """
    name, other = _names(plan.made, plan.against)
    made = read_made(plan.made)
    others = list(read_made(plan.against)) if plan.against else []
    pairs = pair(made, others)
    for i, j in pairs:
        # A base that never met the concept kept its trigger; the judge reads the same for both.
        others[j] = replace(others[j], text=made[i].text)
    calling = [i for i, file in enumerate(made) if file.calls_concept] or list(range(len(made)))
    mine = {i: place for place, i in enumerate(calling)}
    plain = [(i, j) for i, j in pairs if i not in mine]
    theirs = {j: None for j in range(len(others))}
    for _, j in plain:
        del theirs[j]
    places = {j: place for place, j in enumerate(theirs)}
    sets = MadeSets(
        ClipSet(name, tuple(made[i] for i in calling)),
        ClipSet(other, tuple(others[j] for j in places)) if places else None,
        [(mine[i], places[j]) for i, j in pairs if i in mine],
        tuple((made[i], others[j]) for i, j in plain),
    )
    left = len(made) - len(calling)
    warning = (
        f"{left} of {len(made)} prompts of {name} do not call the concept: they count for what "
        f"was forgotten alone"
    )
    return sets, [warning] if left else []


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
