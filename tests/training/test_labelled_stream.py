"""Labelled batches: seed and place decide all, every clip once an epoch, changes in bounds."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from musictune.errors import InputError
from musictune.models.classifier import Classifier, LabelledBatch
from musictune.training.labelled_stream import Augment, LabelledStream, fixed_batches

PLAIN = Augment(gain_db=0.0, crop=False, mixup=0.0, frequency_mask=0, time_mask=0)

seeds = st.integers(0, 2**32 - 1)
augments = st.builds(
    Augment,
    gain_db=st.floats(0, 20),
    crop=st.booleans(),
    mixup=st.sampled_from([0.0, 0.2, 1.0]),
    frequency_mask=st.integers(0, 200),
    time_mask=st.integers(0, 200),
)


@lru_cache
def model(kind: str) -> Classifier:
    return Classifier.toy(kind)


def sounds(kind: str, count: int, spread: int = 40) -> list[Tensor]:
    """Noise of lengths around what the model hears at once."""
    front, steps = model(kind).front, model(kind).steps
    random = torch.Generator().manual_seed(count)
    found = []
    for number in range(count):
        length = max(steps // 2 + number * spread % (2 * steps), 2)
        shape = (length, front.bands) if front.bands else (length,)
        found.append(torch.randn(shape, generator=random))
    return found


def one_hot(count: int) -> Tensor:
    return torch.eye(count)


def same(one: LabelledBatch, other: LabelledBatch) -> bool:
    parts = ("inputs", "lengths", "targets")
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in parts)


@pytest.mark.parametrize("kind", ["ast", "wav2vec2"])
@settings(max_examples=20, deadline=None)
@given(augment=augments, seed=seeds, start=st.integers(0, 9), batch=st.integers(1, 5))
def test_a_resumed_stream_is_the_same_to_the_bit(
    kind: str, augment: Augment, seed: int, start: int, batch: int
) -> None:
    heard, labels = sounds(kind, 4), one_hot(4)
    before = [x.clone() for x in heard]
    whole = LabelledStream(model(kind), heard, labels, batch, seed, 0, augment)
    later = iter(LabelledStream(model(kind), heard, labels, batch, seed, start, augment))
    torch.manual_seed(seed % 7)  # chance of others has no part in it
    for place in (start, start + 1):
        assert same(next(later), whole.at(place))
    assert all(torch.equal(x, y) for x, y in zip(heard, before, strict=True))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 7), batch=st.integers(1, 20), seed=seeds)
def test_every_clip_once_in_an_epoch(count: int, batch: int, seed: int) -> None:
    stream = LabelledStream(model("ast"), sounds("ast", count), one_hot(count), batch, seed)
    batches = itertools.islice(stream, 2 * count)
    drawn = [row for each in batches for row in each.targets.argmax(1).tolist()]
    assert len(drawn) == 2 * count * batch
    for first in range(0, len(drawn), count):
        assert set(Counter(drawn[first : first + count]).values()) == {1}


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        stream = LabelledStream(model("ast"), sounds("ast", 8), one_hot(8), 8, seed)
        return stream.at(epoch).targets.argmax(1).tolist()

    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("kind", ["ast", "wav2vec2"])
@settings(max_examples=20, deadline=None)
@given(a=st.floats(0.05, 5), seed=seeds, batch=st.integers(1, 6))
def test_mixed_targets_are_shares(kind: str, a: float, seed: int, batch: int) -> None:
    augment = replace(PLAIN, mixup=a)
    stream = LabelledStream(model(kind), sounds(kind, 6), one_hot(6), batch, seed, augment=augment)
    found = stream.at(0)
    torch.testing.assert_close(found.targets.sum(1), torch.ones(batch))
    assert found.targets.min() >= 0
    assert ((found.targets > 0).sum(1) <= 2).all()
    assert found.inputs.isfinite().all()


def test_mixing_is_of_the_sounds_that_the_targets_name() -> None:
    classifier, heard = model("wav2vec2"), sounds("wav2vec2", 4)
    steps = classifier.steps
    stream = LabelledStream(classifier, heard, one_hot(4), 4, 3, augment=replace(PLAIN, mixup=1.0))
    found = stream.at(0)
    for row, length, shares in zip(found.inputs, found.lengths, found.targets, strict=True):
        whole = torch.zeros(steps)
        for clip, share in zip(heard, shares, strict=True):
            whole[: len(clip)] += share * clip[:steps]
        expected, _ = classifier.front.inputs([whole[: int(length)]], steps)
        torch.testing.assert_close(row[: int(length)], expected[0])


def test_several_labels_are_mixed_alike() -> None:
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    stream = LabelledStream(
        model("ast"), sounds("ast", 2), labels, 2, 0, augment=replace(PLAIN, mixup=1.0)
    )
    found = stream.at(0).targets
    torch.testing.assert_close(found[:, 1], torch.ones(2))
    torch.testing.assert_close(found[:, 0] + found[:, 2], torch.ones(2))


@settings(max_examples=40, deadline=None)
@given(bands=st.integers(0, 300), frames=st.integers(0, 300), seed=seeds, place=st.integers(0, 5))
def test_masks_stay_within_bounds(bands: int, frames: int, seed: int, place: int) -> None:
    classifier, heard = model("ast"), sounds("ast", 4)
    augment = replace(PLAIN, frequency_mask=bands, time_mask=frames)
    plain = LabelledStream(classifier, heard, one_hot(4), 4, seed, augment=PLAIN).at(place)
    found = LabelledStream(classifier, heard, one_hot(4), 4, seed, augment=augment).at(place)
    for row, before, length in zip(found.inputs, plain.inputs, found.lengths, strict=True):
        size = int(length)
        changed = (row != before)[:size]
        assert torch.equal(row[size:], before[size:])
        assert not row[:size][changed].any()
        # Noise is nowhere 0 of itself, so what is 0 was blanked.
        columns, rows = (row[:size] == 0).all(0), (row[:size] == 0).all(1)
        for blank, widest in ((columns, bands), (rows, frames)):
            assert int(blank.sum()) <= min(widest, len(blank) / 2)
            places = blank.nonzero().flatten()
            assert len(places) == 0 or int(places[-1] - places[0]) + 1 == len(places)
        assert torch.equal(row[:size] == 0, columns[None, :] | rows[:, None])


def test_masks_reach_their_widest() -> None:
    classifier = model("ast")
    bands = classifier.front.bands
    stream = LabelledStream(
        classifier, sounds("ast", 4), one_hot(4), 64, 0,
        augment=replace(PLAIN, frequency_mask=3, time_mask=0),
    )  # fmt: skip
    widths = {
        int((row[: int(n)] == 0).all(0).sum())
        for row, n in zip(stream.at(0).inputs, stream.at(0).lengths, strict=True)
    }
    assert bands >= 6
    assert widths == {0, 1, 2, 3}


def test_waves_are_not_masked() -> None:
    masked, plain = (
        LabelledStream(model("wav2vec2"), sounds("wav2vec2", 4), one_hot(4), 4, 0, augment=a).at(0)
        for a in (replace(PLAIN, frequency_mask=24, time_mask=80), PLAIN)
    )
    assert same(masked, plain)


def test_gain_and_crop() -> None:
    classifier = model("ast")
    steps, bands = classifier.steps, classifier.front.bands
    ramp = torch.arange(3.0 * steps)[:, None].expand(-1, bands)
    mean, std = classifier.front.extractor.mean, classifier.front.extractor.std

    def first(augment: Augment) -> Tensor:
        stream = LabelledStream(classifier, [ramp], torch.ones(1, 1), 200, 0, augment=augment)
        return stream.at(0).inputs[:, 0, 0] * 2 * std + mean

    assert classifier.front.extractor.do_normalize
    assert first(PLAIN).abs().max() < 1e-3
    starts = first(replace(PLAIN, crop=True))
    assert 0 <= starts.min().round() < 0.2 * steps
    assert 1.8 * steps < starts.max().round() <= 2 * steps
    nepers = first(replace(PLAIN, gain_db=10.0))
    assert 2.0 < nepers.max() <= 2.3026
    assert -2.3026 <= nepers.min() < -2.0


@pytest.mark.parametrize(
    "augment",
    [
        replace(PLAIN, crop=True), replace(PLAIN, gain_db=6.0), replace(PLAIN, mixup=1.0),
        replace(PLAIN, frequency_mask=8, time_mask=24),
    ],
)  # fmt: skip
def test_each_hearing_has_chances_of_its_own(augment: Augment) -> None:
    classifier = model("ast")
    heard = [torch.randn(3 * classifier.steps, classifier.front.bands) for _ in range(2)]

    def hearings(seed: int) -> list[bytes]:
        stream = LabelledStream(classifier, heard, one_hot(2), 2, seed, augment=augment)
        batches = [stream.at(epoch) for epoch in range(10)]
        rows = [row for b in batches for row in b.inputs[b.targets.argmax(1).argsort()]]
        return [row.numpy().tobytes() for row in rows[::2]]

    assert len(set(hearings(0) + hearings(1))) > 16


def test_fixed_batches_are_the_middle_in_order() -> None:
    classifier, heard = model("ast"), sounds("ast", 5)
    found = fixed_batches(classifier, heard, one_hot(5), 2)
    assert [len(batch) for batch in found] == [2, 2, 1]
    assert torch.equal(torch.cat([batch.targets for batch in found]), one_hot(5))
    steps = classifier.steps
    rows = [row for batch in found for row in batch.inputs]
    for row, sound in zip(rows, heard, strict=True):
        start = max(len(sound) - steps, 0) // 2
        expected = classifier.batch([sound[start : start + steps]], torch.ones(1, 5))
        assert torch.equal(row, expected.inputs[0])
    assert fixed_batches(classifier, [], torch.zeros(0, 3), 2) == []


@pytest.mark.parametrize(
    "values",
    [
        {"gain_db": -1.0}, {"gain_db": float("nan")}, {"mixup": -0.1}, {"mixup": float("inf")},
        {"frequency_mask": -1}, {"time_mask": -1}, {"time_mask": 1.5},
    ],
)  # fmt: skip
def test_numbers_out_of_range(values: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(values))} .* must be"):
        Augment(**values)


def test_what_cannot_be_streamed() -> None:
    heard, labels = sounds("ast", 2), one_hot(2)
    with pytest.raises(InputError, match="no clips to learn from"):
        LabelledStream(model("ast"), [], labels[:0], 2, 0)
    with pytest.raises(InputError, match="2 clips have 3 targets"):
        LabelledStream(model("ast"), heard, one_hot(3), 2, 0)
    for make in (LabelledStream, fixed_batches):
        with pytest.raises(InputError, match="batches of 0 hold nothing"):
            make(model("ast"), heard, labels, 0, *([0] if make is LabelledStream else []))
