"""Batches: concepts in equal shares, the base's own music behind them, the same after a resume."""

from __future__ import annotations

import itertools
from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from musictune.data.tokens import TokenDataset
from musictune.training.stream import BatchStream


def dataset(size: int, mark: int) -> TokenDataset:
    """``size`` clips whose tokens are all ``mark``, told apart by their text."""
    codes = [torch.full((2, 6), mark) for _ in range(size)]
    return TokenDataset(codes, [[f"{mark}:{i}"] for i in range(size)], 4, caption_dropout=0.0)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 9))
def test_every_concept_has_an_equal_share(sizes: list[int], batch: int, seed: int) -> None:
    stream = BatchStream([dataset(n, k) for k, n in enumerate(sizes)], batch, seed)
    rows = batch * len(sizes) * max(sizes)
    drawn = [t for b in itertools.islice(stream, rows // batch) for t in b["texts"]]
    counts = Counter(text.split(":")[0] for text in drawn)
    assert set(counts.values()) == {rows // len(sizes)}
    for place, size in enumerate(sizes):
        own = [text for text in drawn if text.startswith(f"{place}:")]
        whole = own[: len(own) // size * size]
        # Within an epoch each clip once, however many clips the others have.
        assert all(len(set(whole[at : at + size])) == size for at in range(0, len(whole), size))


def test_concepts_of_one_size_are_not_shuffled_alike() -> None:
    stream = BatchStream([dataset(8, 0), dataset(8, 1)], 16, 3)
    orders = [[t[2:] for t in stream.at(0)["texts"] if t[0] == mark] for mark in "01"]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_one_dataset_alone_or_in_a_list_is_the_same() -> None:
    one, other = BatchStream(dataset(5, 0), 3, 2), BatchStream([dataset(5, 0)], 3, 2)
    for place in range(6):
        assert one.at(place)["texts"] == other.at(place)["texts"]


def test_the_prior_is_behind_the_clips_and_resumes() -> None:
    own, prior = [dataset(3, 0), dataset(2, 1)], [dataset(2, 8), dataset(3, 9)]
    stream = BatchStream(own, 4, 1, prior=prior)
    batch = stream.at(0)
    assert batch["prior"] == 4
    assert [text[0] for text in batch["texts"]] == ["0", "1", "0", "1", "8", "9", "8", "9"]
    later = iter(BatchStream(own, 4, 1, start=5, prior=prior))
    assert next(later)["texts"] == stream.at(5)["texts"]
    alone = BatchStream(own, 4, 1).at(0)
    assert "prior" not in alone
    assert alone["texts"] == batch["texts"][:4]
