"""The batches that a CLAP learns from: what is in them, and that place and seed alone decide."""

from __future__ import annotations

import pytest
import torch

from musictune.data.sequences import THEN, TOGETHER, said
from musictune.models.contrastive import CaptionedBatch
from musictune.training.contrasting import CaptionStream, Sounds, held_out_batches

FRAMES, BANDS = 10, 4
NAMES = ("hum", "tone", "noise", "hum")


@pytest.fixture
def sounds() -> Sounds:
    """Windows that are flat at 0, 20, 40 and 60 dB, so that what was joined can be read off."""
    features = [torch.full((FRAMES, BANDS), 20.0 * i) for i in range(len(NAMES))]
    return Sounds(features, [(name, f"a {name}") for name in NAMES])


def equal(one: CaptionedBatch, other: CaptionedBatch) -> bool:
    return torch.equal(one.features, other.features) and (
        (one.texts, one.meanings) == (other.texts, other.meanings)
    )


@pytest.mark.parametrize("stage", ["clips", "several", "order"])
def test_a_batch_follows_from_seed_and_place(stage: str, sounds: Sounds) -> None:
    stream = CaptionStream(sounds, 8, 3, 0, [(stage, 0)])
    later = iter(CaptionStream(sounds, 8, 3, 2, [(stage, 0)]))
    assert equal(stream.at(2), next(later))
    assert equal(stream.at(3), next(later))
    assert not equal(stream.at(2), stream.at(3))
    assert not equal(stream.at(2), CaptionStream(sounds, 8, 4, 0, [(stage, 0)]).at(2))


def test_stages_follow_each_other(sounds: Sounds) -> None:
    stream = CaptionStream(sounds, 8, 0, 0, [("clips", 2), ("several", 3), ("order", 1)])
    found = [stream.stage(place) for place in range(8)]
    assert found == ["clips"] * 2 + ["several"] * 3 + ["order"] * 3


def test_clips_always_differ_in_something(sounds: Sounds) -> None:
    stream = CaptionStream(sounds, 2, 0)
    for place in range(50):
        batch = stream.at(place)
        assert len(batch) == len(batch.texts) == 2
        assert len(set(batch.meanings)) == 2
        for features, meaning in zip(batch.features, batch.meanings, strict=True):
            loudness = float(features.mean())
            near = [n for i, n in enumerate(NAMES) if -6.1 < loudness - 20 * i < 3.1]
            assert near == [meaning]


def levels(features: torch.Tensor) -> tuple[str, str]:
    """What the two halves of a window are, by their loudness."""
    half = FRAMES // 2
    parts = features[:half].mean(), features[half:].mean()
    found = [NAMES[min(range(4), key=lambda i: abs(float(p) - 20 * i + 1.5))] for p in parts]
    return found[0], found[1]


def test_order_has_both_ways_and_captions_that_say_so(sounds: Sounds) -> None:
    stream = CaptionStream(sounds, 8, 0, 0, [("order", 0)])
    for place in range(20):
        batch = stream.at(place)
        assert len(batch) == 8
        assert len(batch.texts) == 12
        for first in (0, 4):
            a, b = levels(batch.features[first])
            assert levels(batch.features[first + 1]) == (b, a)
            assert batch.meanings[first] == f"{a}\n>\n{b}"
            assert batch.meanings[first + 1] == f"{b}\n>\n{a}"
            ways = {said(w, x, y) for w in THEN for x in (a, f"a {a}") for y in (b, f"a {b}")}
            assert batch.texts[first] in ways
            both = {said(w, x, y) for w in TOGETHER for x in (a, f"a {a}") for y in (b, f"a {b}")}
            assert batch.texts[first + 2] in both
            assert batch.meanings[first + 3] == a
        # Said once more in another wording, right for one way round and wrong for the other.
        assert set(batch.meanings[8:10]) == set(batch.meanings[:2])
        assert not set(batch.texts[8:10]) & set(batch.texts[:2])


def test_several_names_one_both_and_what_is_missing(sounds: Sounds) -> None:
    stream = CaptionStream(sounds, 4, 0, 0, [("several", 0)])
    for place in range(20):
        batch = stream.at(place)
        one, other, row, at_once, wrong = batch.meanings
        assert one != other
        assert row == at_once == "\n&\n".join(sorted((one, other)))
        assert wrong.split("\n&\n") != [one, one]
        assert one in wrong.split("\n&\n")
        assert set(levels(batch.features[2])) == {one, other}


def test_held_out_batches_are_the_same_each_time(sounds: Sounds) -> None:
    one, other = (held_out_batches(sounds, 4, 0, ["clips", "order"]) for _ in range(2))
    assert len(one) == 2
    assert all(equal(a, b) for a, b in zip(one, other, strict=True))
    training = CaptionStream(sounds, 4, 0, 0, [("clips", 0)])
    assert not equal(one[0], training.at(0))
