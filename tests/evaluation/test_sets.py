"""Which files belong to which set, and a single recording as several clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from musictune.evaluation.sets import in_pieces
from musictune.metrics.features import Features
from musictune.metrics.folder import ClipFile, ClipSet
from musictune.metrics.listening import Heard
from musictune.metrics.suite import EMBEDDER, HeardSet


def recordings(lengths: list[int]) -> HeardSet:
    points = np.arange(2 * sum(lengths), dtype=np.float32).reshape(-1, 2)
    features = {EMBEDDER: Features(points, np.array(lengths), "clap")}
    files = tuple(ClipFile(Path(f"{i}.wav"), f"{i}.wav") for i in range(len(lengths)))
    return HeardSet(ClipSet("mine", files), Heard(features, ("",) * len(lengths)))


def test_one_recording_becomes_pieces_that_hold_all_of_it():
    one = recordings([7])
    pieces, (warning,) = in_pieces(one)
    assert pieces.points.lengths.tolist() == [2, 2, 3]
    assert pieces.points.key == "clap"
    assert np.array_equal(pieces.points.points, one.points.points)
    assert "mine is one recording, taken here as 3 pieces" in warning
    assert len(one.points) == 1


def test_several_recordings_and_short_ones_stay_as_they_are():
    for lengths in ([7, 2], [3]):
        same = recordings(lengths)
        assert in_pieces(same) == (same, [])
