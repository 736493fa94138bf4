"""Where in some clips lies what is nearest to each excerpt of others: by sound, notes or tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from musictune.metrics.excerpts import CHROMA_RATE, HOP, SECONDS
from musictune.metrics.features import Features

Array = np.ndarray

_WINDOW = int(SECONDS * CHROMA_RATE)  # chroma frames
_CHUNK = 4096  # training windows compared at a time


@dataclass(frozen=True)
class Places:
    """Excerpts of a set that are not silent.

    Attributes:
        clip: ``(excerpts,)`` which clip.
        row: ``(excerpts,)`` which row of `Excerpts`: it begins at ``row * HOP`` seconds.
    """

    clip: Array
    row: Array

    @property
    def start(self) -> Array:
        """``(excerpts,)`` seconds."""
        return self.row * HOP


@dataclass(frozen=True)
class Matches:
    """Of each excerpt what is nearest.

    Attributes:
        value: ``(excerpts,)`` how near: a cosine, a correlation, or tokens.
        clip: ``(excerpts,)`` in which clip.
        start: ``(excerpts,)`` where in it, seconds.
    """

    value: Array
    clip: Array
    start: Array


def sounding(sound: Features) -> Places:
    """The excerpts of a set that are not silent, from its rows of `Excerpts`."""
    clips, rows = [], []
    for index, clip in enumerate(sound):
        found = np.flatnonzero(np.asarray(clip).any(1))
        clips.append(np.full(len(found), index))
        rows.append(found)
    return Places(np.concatenate(clips), np.concatenate(rows))


def with_notes(chroma: Features) -> Places:
    """The excerpts of a set that are not mostly silent, from its `ChromaFrames`."""
    clips, rows = [], []
    for index, clip in enumerate(chroma):
        frames = np.rint(np.arange(0, len(clip), HOP * CHROMA_RATE)).astype(np.int64)
        found = np.flatnonzero(_stretches(clip)[frames[frames < len(clip)]].any((1, 2)))
        clips.append(np.full(len(found), index))
        rows.append(found)
    return Places(np.concatenate(clips), np.concatenate(rows))


def by_sound(made: Features, places: Places, training: Features, others: Places) -> Matches:
    """The highest cosine of each excerpt with any of ``training``."""
    target = _rows(training, others)
    value = np.full(len(places.clip), -1.0)
    nearest = np.zeros(len(places.clip), np.int64)
    rows = _rows(made, places)
    for first in range(0, len(target), _CHUNK):
        _keep(rows @ target[first : first + _CHUNK].T, first, value, nearest)
    return Matches(value, others.clip[nearest], others.start[nearest])


def by_notes(made: Features, places: Places, training: Features) -> Matches:
    """The highest correlation of each excerpt's chroma with any stretch of ``training`` as long.

    Pearson's, over pitch classes and frames. Pitch classes are not rotated: the same tune in
    another key is another tune here. A clip that ends before the stretch does goes on in silence;
    a stretch that is silent for more than half is like nothing: 0.
    """
    value = np.zeros(len(places.clip))
    clip = np.zeros(len(places.clip), np.int64)
    start = np.zeros(len(places.clip))
    rows = np.zeros((len(places.clip), 12 * _WINDOW), np.float32)
    for index in range(len(made)):
        mine = np.flatnonzero(places.clip == index)
        if len(mine):
            frames = np.rint(places.start[mine] * CHROMA_RATE).astype(np.int64)
            rows[mine] = _standard(_stretches(made[index])[frames])
    for index in range(len(training)):
        stretches = _stretches(training[index])
        for first in range(0, len(stretches), _CHUNK):
            lag = np.zeros(len(rows), np.int64)
            before = value.copy()
            scores = rows @ _standard(stretches[first : first + _CHUNK]).T
            _keep(scores, first, value, lag)
            better = value > before
            clip[better] = index
            start[better] = lag[better] / CHROMA_RATE
    return Matches(value, clip, start)


def by_tokens(
    made: Features, places: Places, training: Sequence[Features], frame_rate: float
) -> Matches:
    """The longest run of tokens that begins in each excerpt and also stands in ``training``.

    Tokens of the first codebook: with more of them copies have shorter runs, and other music has
    no shorter ones. A token that repeats the one before it does not count, so that a held note
    or silence is no long run. A run may go on after its excerpt.

    Args:
        training: the same clips heard in several ways.
        frame_rate: tokens per second.
    """
    runs = shared_runs(
        [_first_book(clip) for clip in made],
        [_first_book(clip) for features in training for clip in features],
    )
    value = np.zeros(len(places.clip))
    clip = np.zeros(len(places.clip), np.int64)
    start = np.zeros(len(places.clip))
    width = max(round(SECONDS * frame_rate), 1)
    for index, (owner, seconds) in enumerate(zip(places.clip, places.start, strict=True)):
        length, where, frame = runs[owner]
        first = round(seconds * frame_rate)
        if first >= len(length):
            continue
        best = first + int(np.argmax(length[first : first + width]))
        value[index] = length[best]
        clip[index] = where[best] % len(training[0])
        start[index] = frame[best] / frame_rate
    return Matches(value, clip, start)


def shared_runs(
    made: Sequence[Array], training: Sequence[Array]
) -> list[tuple[Array, Array, Array]]:
    """For each token the longest run that begins there and also stands in ``training``.

    By a suffix array made by doubling (Manber and Myers 1993), so that the time hardly depends on
    how much there is to compare with.

    Args:
        made, training: ``(tokens,)`` of each clip, integers from 0 on.

    Returns:
        for each made clip three ``(tokens,)``: tokens in the run, one that repeats the one before
        it not counted; the training clip; where in it the run begins.
    """
    clips = [*training, *made]
    lengths = np.array([len(clip) for clip in clips])
    starts = np.concatenate([[0], np.cumsum(lengths + 1)])
    # Behind each clip a mark that nothing equals, so that no run goes on into the next.
    joined = np.concatenate([np.append(clip, -1 - i) for i, clip in enumerate(clips)])
    ranks = _ranks(joined, int(lengths.max(initial=0)))
    order = np.argsort(ranks[-1])
    known = order < starts[len(training)]
    if not known.any():
        return [(np.zeros(len(clip), np.int64),) * 3 for clip in made]
    seats = np.arange(len(order))
    before = np.maximum.accumulate(np.where(known, seats, -1))
    after = np.minimum.accumulate(np.where(known, seats, len(order))[::-1])[::-1]
    seat = np.empty(len(order), np.int64)
    seat[order] = seats

    found = []
    changes = np.concatenate([[0], np.cumsum(joined[1:] != joined[:-1])])
    for index in range(len(training), len(clips)):
        here = np.arange(starts[index], starts[index] + lengths[index])
        best, place = np.zeros(len(here), np.int64), np.zeros(len(here), np.int64)
        # The longest match of a suffix is one of its neighbours in order.
        for neighbour in (before[seat[here]], after[seat[here]]):
            there = order[neighbour.clip(0, len(order) - 1)]
            exists = (neighbour >= 0) & (neighbour < len(order))
            run = np.where(exists, _common(ranks, here, there), 0)
            place = np.where(run > best, there, place)
            best = np.maximum(run, best)
        last = here + np.maximum(best - 1, 0)
        moving = np.where(best > 0, 1 + changes[last] - changes[here], 0)
        clip = np.searchsorted(starts, place, "right") - 1
        found.append((moving, clip, place - starts[clip]))
    return found


def _ranks(joined: Array, longest: int) -> list[Array]:
    """Ranks of all stretches of 1, 2, 4, ... tokens, until one is longer than ``longest``."""
    ranks = [np.unique(joined, return_inverse=True)[1].astype(np.int64)]
    step = 1
    while step <= longest:
        # A mark ends every stretch that differs, so what lies behind the end never matters.
        ahead = np.concatenate([ranks[-1][step:], np.zeros(min(step, len(joined)), np.int64)])
        pairs = ranks[-1] * len(joined) + ahead[: len(joined)]
        ranks.append(np.unique(pairs, return_inverse=True)[1])
        step *= 2
    return ranks


def _common(ranks: Sequence[Array], one: Array, other: Array) -> Array:
    """Length of the common beginning of the stretches from ``one`` and from ``other`` on."""
    length = np.zeros(len(one), np.int64)
    last = len(ranks[0]) - 1
    for level in reversed(range(len(ranks))):
        a, b = np.minimum(one + length, last), np.minimum(other + length, last)
        length += np.where(ranks[level][a] == ranks[level][b], 1 << level, 0)
    return length


def _first_book(clip: Array) -> Array:
    return np.asarray(clip)[:, 0].astype(np.int64)


def _rows(sound: Features, places: Places) -> Array:
    starts = np.concatenate([[0], np.cumsum(sound.lengths)])
    return np.asarray(sound.points[starts[places.clip] + places.row], np.float32)


def _keep(scores: Array, first: int, value: Array, place: Array) -> None:
    """Put what is higher than ``value`` there, and its column, counted from ``first``."""
    column = scores.argmax(1)
    best = scores[np.arange(len(scores)), column]
    better = best > value
    value[better] = best[better]
    place[better] = first + column[better]


def _stretches(chroma: Array) -> Array:
    """``(frames, 12, window)``: from each frame on; what is mostly silent is zero."""
    padded = np.pad(np.asarray(chroma, np.float32), ((0, _WINDOW - 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW, axis=0)
    heard = np.lib.stride_tricks.sliding_window_view(padded.any(1), _WINDOW).mean(1) >= 0.5
    return np.where(heard[:, None, None], windows, 0.0)


def _standard(stretches: Array) -> Array:
    """``(stretches, 12 * window)`` with mean 0 and length 1; without variation 0."""
    rows = stretches.reshape(len(stretches), -1)
    centred = rows - rows.mean(1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.where(length > 1e-6, centred / np.maximum(length, 1e-6), 0.0)
