"""What is nearest is found wherever it lies, and nothing else is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musictune.metrics.excerpts import CHROMA_RATE, HOP
from musictune.metrics.features import Features
from musictune.metrics.matching import Places, by_notes, by_sound, shared_runs, sounding

melody = st.lists(st.integers(0, 3), min_size=1, max_size=14)


def slow_run(tokens: Sequence[int], others: Sequence[Sequence[int]]) -> int:
    """Longest run from the first token on, by trying all."""
    best = 0
    for other in others:
        for at in range(len(other)):
            size = 0
            while size < min(len(tokens), len(other) - at) and tokens[size] == other[at + size]:
                size += 1
            moving = sum(tokens[i] != tokens[i - 1] for i in range(1, size)) + (size > 0)
            best = max(best, moving)
    return best


@given(st.lists(melody, min_size=1, max_size=3), st.lists(melody, min_size=1, max_size=3))
def test_shared_runs_are_those_found_by_trying_all(
    made: list[list[int]], training: list[list[int]]
) -> None:
    found = shared_runs([np.array(m) for m in made], [np.array(t) for t in training])
    for tokens, (length, clip, frame) in zip(made, found, strict=True):
        for at, run in enumerate(length):
            assert run == slow_run(tokens[at:], training)
            if run:
                assert training[clip[at]][frame[at]] == tokens[at]


def test_a_repeated_token_counts_once_and_a_run_ends_with_its_clip() -> None:
    other = np.array([9, 1, 2, 3, 3, 3, 4, 5])
    ((length, clip, frame),) = shared_runs([np.array([7, 2, 3, 3, 3, 4, 8])], [other])
    assert length.tolist() == [0, 3, 2, 2, 2, 1, 0]
    assert (clip[1], frame[1]) == (0, 2)
    ((length, clip, frame),) = shared_runs([np.array([4, 5, 6, 7])], [other, np.array([6, 7])])
    assert length.tolist() == [2, 1, 2, 1]
    assert (clip[2], frame[2]) == (1, 0)


def places(chroma: np.ndarray) -> Places:
    assert len(chroma) >= 52
    return Places(np.array([0]), np.array([0]))


def test_notes_are_found_at_every_shift_but_not_in_another_key() -> None:
    draw = np.random.default_rng(0)
    training = Features.of([draw.random((200, 12)), draw.random((200, 12))])
    copied = training[1][33:100]
    match = by_notes(Features.of([copied]), places(copied), training)
    assert match.value[0] == pytest.approx(1, abs=1e-5)
    assert (match.clip[0], match.start[0]) == (1, 33 / CHROMA_RATE)
    turned = np.roll(copied, 3, axis=1)
    assert by_notes(Features.of([turned]), places(copied), training).value[0] < 0.5
    assert by_notes(Features.of([0 * copied]), places(copied), training).value[0] == 0


def test_sparse_stretches_are_like_nothing() -> None:
    one_note = np.zeros((60, 12))
    one_note[:10, 3] = 1
    features = Features.of([one_note])
    assert by_notes(features, places(one_note), features).value[0] == 0


def test_sound_is_compared_with_every_training_excerpt_that_sounds() -> None:
    rows = np.eye(4, dtype=np.float32)
    training = Features.of([np.stack([rows[0], 0 * rows[0]]), np.stack([rows[1], rows[2]])])
    made = Features.of([np.stack([0 * rows[0], rows[2]]), rows[3:]])
    heard = sounding(made)
    assert heard.clip.tolist() == [0, 1] and heard.start.tolist() == [HOP, 0]
    match = by_sound(made, heard, training, sounding(training))
    assert match.value.tolist() == [1, 0]
    assert (match.clip[0], match.start[0]) == (1, HOP)
