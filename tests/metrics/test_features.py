"""Rows of a set of clips: by clip, as a whole, in memory or on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from musictune.errors import InputError
from musictune.metrics.features import Features, comparable


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_each_clip_has_its_own_rows(lengths: list[int]):
    clips = [np.full((n, 3), float(i)) for i, n in enumerate(lengths)]
    features = Features.of(clips)
    assert len(features) == len(clips)
    assert [len(clip) for clip in features] == lengths
    assert all((clip == i).all() for i, clip in enumerate(features))
    assert features.owners.tolist() == [i for i, n in enumerate(lengths) for _ in range(n)]
    assert (features[-1] == features[len(clips) - 1]).all()
    with pytest.raises(IndexError):
        features[len(clips)]


def test_selecting_keeps_the_order_asked_for():
    features = Features.of([np.full((2, 1), float(i)) for i in range(4)])
    chosen = features.select([3, 1])
    assert chosen.means()[:, 0].tolist() == [3, 1]
    assert chosen.lengths.tolist() == [2, 2]


def test_tensors_and_memory_maps_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("musictune.metrics.features._CHUNK_BYTES", 8 * 2 * 60_000)
    rows = np.random.default_rng(0).normal(size=(70_000, 2)).astype(np.float32)
    rows.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=rows.shape)
    features = Features(mapped, np.array([69_000, 1_000]))
    chunks = list(features.chunks())
    assert len(chunks) == 2
    assert np.array_equal(np.concatenate(chunks), rows.astype(np.float64))
    assert Features.of([torch.ones(2, 3)]).points.dtype == np.float32


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="no clips"):
        Features.of([])
    with pytest.raises(InputError, match="different widths"):
        Features.of([np.ones((1, 2)), np.ones((1, 3))])
    with pytest.raises(InputError, match="do not fit"):
        Features(np.ones((3, 2)), np.array([1, 1]))


def test_only_the_same_listener_s_rows_are_comparable():
    ones = Features.of([np.ones((2, 2))], key="a")
    comparable(ones, Features.of([np.zeros((1, 2))]))
    with pytest.raises(InputError, match="2 and 3 dimensions"):
        comparable(ones, Features.of([np.ones((2, 3))]))
    with pytest.raises(InputError, match="of a and b cannot"):
        comparable(ones, Features.of([np.ones((2, 2))], key="b"))
    broken = Features.of([np.ones((2, 2)), np.array([[1.0, np.nan]])], key="a")
    with pytest.raises(InputError, match="clip 1 are not finite"):
        comparable(broken, ones)
