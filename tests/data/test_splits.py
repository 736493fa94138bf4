"""Splits: nothing on two sides, classes in proportion, published parts kept, the same each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.data.labelled import Example, LabelledClips, Split
from musictune.data.splits import few_shot, k_folds, split
from musictune.errors import InputError


def clips_of(examples: Sequence[Example], multi: bool = False) -> LabelledClips:
    labels = tuple(sorted({label for e in examples for label in e.labels}))
    return LabelledClips(Path("data"), "folders", tuple(examples), labels, multi)


def example(number: int, *labels: str, root: str = "data", **more: object) -> Example:
    return replace(Example(Path(root, f"{number:04d}.wav"), tuple(sorted(labels))), **more)


def even(classes: int, each: int, root: str = "data", **more: object) -> LabelledClips:
    return clips_of(
        [example(n, f"c{n % classes}", root=root, **more) for n in range(classes * each)]
    )


def sides(parts: Split) -> tuple[tuple[Example, ...], ...]:
    return parts.train, parts.validation, parts.test


def counts(examples: Sequence[Example]) -> Counter[str]:
    return Counter(label for e in examples for label in e.labels)


grouped = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 11)), min_size=1, max_size=60).map(
    lambda rows: clips_of(
        # Four groups of each class, so that each part can have one.
        [example(n, f"c{n % 4}", group=f"own{n % 4}-{n // 4}") for n in range(16)]
        + [
            example(100 + n, f"c{label}", group=f"g{group}")
            for n, (label, group) in enumerate(rows)
        ]
    )
)


@settings(max_examples=40, deadline=None)
@given(grouped, st.integers(0, 99))
def test_every_clip_once_and_groups_whole(clips: LabelledClips, seed: int) -> None:
    for parts in [split(clips, 0.2, 0.3, seed), *k_folds(clips, 3, seed)]:
        found = [e for side in sides(parts) for e in side]
        assert sorted(found, key=lambda e: e.path) == list(clips.examples)
        groups = [{e.group for e in side} for side in sides(parts)]
        assert not groups[0] & groups[1]
        assert not groups[0] & groups[2]
        assert not groups[1] & groups[2]


@settings(max_examples=40, deadline=None)
@given(grouped, st.integers(0, 99), st.randoms(use_true_random=False))
def test_neither_order_nor_place_matters(clips: LabelledClips, seed: int, random: object) -> None:
    mixed = list(clips.examples)
    random.shuffle(mixed)
    moved = [replace(e, path=Path("/elsewhere") / e.path.name) for e in mixed]
    one, other = split(clips, 0.2, 0.2, seed), split(clips_of(moved), 0.2, 0.2, seed)
    for here, there in zip(sides(one), sides(other), strict=True):
        assert [e.path.name for e in here] == [e.path.name for e in there]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(5, 40), st.integers(0, 99))
def test_single_clips_are_stratified_exactly(classes: int, each: int, seed: int) -> None:
    parts = split(even(classes, each), 0.2, 0.2, seed)
    for side, share in zip(sides(parts), (0.6, 0.2, 0.2), strict=True):
        for number in counts(side).values():
            assert abs(number - share * each) <= 1
        assert set(counts(side)) == {f"c{n}" for n in range(classes)}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99))
def test_several_labels_are_stratified_too(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = [[f"c{k}" for k in range(5) if random.random() < 0.2 + 0.1 * k] for _ in range(200)]
    clips = clips_of([example(n, *row) for n, row in enumerate(rows)], multi=True)
    parts = split(clips, 0.0, 0.25, seed)
    every, test = counts(clips.examples), counts(parts.test)
    for label in clips.labels:
        assert abs(test[label] - 0.25 * every[label]) <= 4
    assert len(parts.train) + len(parts.test) == 200


def test_a_class_of_three_is_in_every_part() -> None:
    for seed in range(20):
        parts = split(even(4, 3), 0.1, 0.1, seed)
        for side in sides(parts):
            assert counts(side) == dict.fromkeys(("c0", "c1", "c2", "c3"), 1)
        # Of two, training and the test have one; of one, training.
        few = split(clips_of([example(0, "x"), example(1, "x"), example(2, "y")]), 0.1, 0.6, seed)
        assert counts(few.train) == {"x": 1, "y": 1}
        assert counts(few.test) == {"x": 1}


def test_another_seed_is_another_split() -> None:
    clips = even(3, 20)
    assert split(clips, 0.2, 0.2, 0) == split(clips, 0.2, 0.2, 0)
    assert split(clips, 0.2, 0.2, 0).test != split(clips, 0.2, 0.2, 1).test


def test_excerpts_of_one_file_stay_together() -> None:
    files = [example(n, f"c{n % 2}") for n in range(20)]
    parts = split(
        clips_of([replace(e, start=float(s), seconds=1.0) for e in files for s in range(3)]),
        0.2, 0.2, 0,
    )  # fmt: skip
    for side in sides(parts):
        assert set(Counter(e.path for e in side).values()) == {3}


def test_shares_of_zero_hold_nothing_out() -> None:
    parts = split(even(2, 5), 0.0, 0.0, 0)
    assert (len(parts.train), parts.validation, parts.test) == (10, (), ())


def test_a_published_split_is_kept_and_completed() -> None:
    names = ["train"] * 8 + ["test"] * 4
    clips = clips_of([example(n, f"c{n % 2}", split=name) for n, name in enumerate(names)])
    parts = split(clips, 0.0, 0.0, 0)
    assert {e.split for e in parts.test} == {"test"}
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (8, 0, 4)
    parts = split(clips, 0.25, 0.5, 0)
    assert {e.split for e in parts.train + parts.validation} == {"train"}
    assert counts(parts.validation) == {"c0": 1, "c1": 1}
    assert len(parts.test) == 4
    assert parts.name == "published"


def test_published_folds_are_kept() -> None:
    clips = clips_of([example(n, f"c{n % 2}", fold=1 + n // 4) for n in range(20)])
    folds = k_folds(clips, 5, 0)
    for number, parts in enumerate(folds):
        assert {e.fold for e in parts.test} == {number + 1}
        assert {e.fold for e in parts.validation} == {(number + 1) % 5 + 1}
        assert len(parts.train) == 12
    assert folds == k_folds(clips, 5, 1)
    once = split(clips, 0.2, 0.2, 0)
    assert sides(once) == sides(folds[0])
    assert len(split(clips, 0.0, 0.2, 0).train) == 16


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 5), st.integers(0, 9))
def test_every_clip_is_tested_once(folds: int, seed: int) -> None:
    clips = even(3, 7)
    parts = k_folds(clips, folds, seed)
    tested = sorted((e for part in parts for e in part.test), key=lambda e: e.path)
    assert tested == list(clips.examples)
    for part in parts:
        assert max(counts(part.test).values()) - min(counts(part.test).values()) <= 1
        assert part.validation


def test_other_than_published_folds_are_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    clips = clips_of([example(n, f"c{n % 2}", fold=n // 10) for n in range(20)])
    assert len(k_folds(clips, 4, 0)) == 4
    assert "4 folds of our own; 2 were published" in capsys.readouterr().err


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 9))
def test_shots_are_nested(seed: int, few: int, more: int) -> None:
    examples = even(3, 12).examples
    small = few_shot(examples, min(few, more), seed)
    large = few_shot(tuple(reversed(examples)), max(few, more), seed)
    assert set(small) <= set(large)
    assert set(counts(small).values()) == {min(few, more)}
    assert small == few_shot(examples, min(few, more), seed)


def test_shots_of_clips_with_several_labels() -> None:
    examples = [example(n, "all", f"c{n % 3}") for n in range(12)]
    for shots in (1, 2, 4):
        found = counts(few_shot(examples, shots, 0))
        assert all(found[label] >= shots for label in ("all", "c0", "c1", "c2"))
        assert set(few_shot(examples, 1, 0)) <= set(few_shot(examples, shots, 0))


def test_what_cannot_be_divided() -> None:
    clips = even(2, 4)
    with pytest.raises(InputError, match="leave nothing to learn from"):
        split(clips, 0.5, 0.5, 0)
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="must be at least 0 and below 1"):
            split(clips, share, 0.0, 0)
    with pytest.raises(InputError, match="8 clips are fewer than 9 folds"):
        k_folds(clips, 9, 0)
    with pytest.raises(InputError, match="class 'c0' has 4 clips, fewer than 5 folds"):
        k_folds(clips, 5, 0)
    with pytest.raises(InputError, match="1 folds cannot be made"):
        k_folds(clips, 1, 0)
    with pytest.raises(InputError, match="0 shots cannot be drawn"):
        few_shot(clips.examples, 0, 0)
    with pytest.raises(InputError, match="class 'c0' has 4 training clips, fewer than 5 shots"):
        few_shot(clips.examples, 5, 0)


@pytest.mark.parametrize("held", ["test", "validation"])
def test_a_label_that_is_held_out_must_be_learned(held: str) -> None:
    rows = [("x", "train"), ("y", "train"), ("x", held), ("z", held)]
    clips = clips_of([example(n, label, split=part) for n, (label, part) in enumerate(rows)])
    with pytest.raises(InputError, match=f"class 'z' is in the {held} clips but not in the train"):
        split(clips, 0.0, 0.0, 0)


def test_a_class_of_one_recording_cannot_be_tested() -> None:
    rows = [example(n, "x") for n in range(9)] + [
        example(10 + n, "y", group="one") for n in range(9)
    ]
    with pytest.raises(InputError, match=r"class 'y' is in the .* \(fold \d of 3\)"):
        k_folds(clips_of(rows), 3, 0)
    assert {e.group for e in split(clips_of(rows), 0.2, 0.2, 0).train} == {"", "one"}


def test_no_published_training_part() -> None:
    clips = clips_of([example(n, f"c{n}", split="test") for n in range(2)])
    with pytest.raises(InputError, match="no clips are left to learn from"):
        split(clips, 0.0, 0.0, 0)
