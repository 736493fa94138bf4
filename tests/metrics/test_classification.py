"""Scores of classifiers beside scikit-learn's, made by hand, and under laws."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from torch import Tensor

from musictune.errors import CheckFailed, InputError
from musictune.metrics.base import NotComputed, Score
from musictune.metrics.classification import (
    ABOUT,
    SEVERAL,
    SINGLE,
    classification_scores,
    confusion,
    most_confused,
)
from musictune.metrics.confusion_plot import confusion_png, draw_confusion, short


def answers(seed: int, clips: int, classes: int, multi_label: bool, ties: bool = False):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(clips, classes, generator=generator)
    if ties:
        probabilities = (probabilities * 4).round() / 4
    if multi_label:
        targets = (torch.rand(clips, classes, generator=generator) < 0.3).float()
    else:
        probabilities = probabilities / probabilities.sum(1, keepdim=True).clamp_min(1e-9)
        true = torch.randint(classes, (clips,), generator=generator)
        targets = torch.nn.functional.one_hot(true, classes).float()
    return probabilities, targets


def value(scores: dict[str, Score | NotComputed], name: str) -> float:
    score = scores[name]
    assert isinstance(score, Score), score
    return score.value


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("clips", "classes"), [(1, 2), (7, 9), (60, 4), (450, 12)])
def test_single_label_scores_are_scikit_learns(clips: int, classes: int, ties: bool) -> None:
    probabilities, targets = answers(clips, clips, classes, False, ties)
    scores = classification_scores(probabilities, targets, False)
    true, said = targets.argmax(1).numpy(), probabilities.numpy().argmax(1)
    occurring = np.unique(true)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes said of no true clip
        assert value(scores, "balanced_accuracy") == pytest.approx(
            metrics.balanced_accuracy_score(true, said)
        )
    assert value(scores, "accuracy") == pytest.approx(metrics.accuracy_score(true, said))
    theirs = metrics.f1_score(true, said, labels=occurring, average="macro", zero_division=0)
    assert value(scores, "macro_f1") == pytest.approx(theirs)
    each = [metrics.average_precision_score(true == c, probabilities[:, c]) for c in occurring]
    assert value(scores, "mean_average_precision") == pytest.approx(np.mean(each))
    assert torch.equal(
        confusion(probabilities, targets),
        torch.from_numpy(metrics.confusion_matrix(true, said, labels=range(classes))),
    )


@pytest.mark.parametrize("ties", [False, True])
def test_scores_of_several_labels_are_scikit_learns(ties: bool) -> None:
    probabilities, targets = answers(3, 80, 6, True, ties)
    targets[:, 5] = 0  # a class that no clip has
    labels = tuple("abcdef")
    scores = classification_scores(probabilities, targets, True, labels=labels)
    said, true = (probabilities >= 0.5).numpy(), targets.bool().numpy()
    assert value(scores, "accuracy") == pytest.approx(metrics.accuracy_score(true, said))
    f1 = metrics.f1_score(true, said, average=None, zero_division=0)
    assert value(scores, "macro_f1") == pytest.approx(f1[:5].mean())
    assert value(scores, "micro_f1") == pytest.approx(metrics.f1_score(true, said, average="micro"))
    each = [metrics.average_precision_score(true[:, c], probabilities[:, c]) for c in range(5)]
    assert value(scores, "mean_average_precision") == pytest.approx(np.mean(each))
    for c, label in enumerate(labels[:5]):
        assert value(scores, f"f1/{label}") == pytest.approx(f1[c])
        assert value(scores, f"average_precision/{label}") == pytest.approx(each[c])
    assert scores["f1/f"] == NotComputed("no clip is f")


def test_made_by_hand() -> None:
    targets = torch.eye(3)[[0, 0, 1, 1]]
    probabilities = torch.tensor(
        [[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]]
    )
    scores = classification_scores(probabilities, targets, False)
    assert value(scores, "accuracy") == 0.5
    assert value(scores, "balanced_accuracy") == 0.5  # the class that does not occur counts nothing
    assert value(scores, "macro_f1") == pytest.approx((2 / 3 + 1 / 2) / 2)
    # Of the first class: found at ranks 1 and 2; of the second at 1 and 3.
    assert value(scores, "mean_average_precision") == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)
    counts = confusion(probabilities, targets)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert most_confused(counts, "abc") == [("a", "b", 1, 0.5), ("b", "c", 1, 0.5)]


@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(2, 5), st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_order_of_clips_does_not_matter(
    seed: int, clips: int, classes: int, multi_label: bool, ties: bool
) -> None:
    probabilities, targets = answers(seed, clips, classes, multi_label, ties)
    order = torch.randperm(clips, generator=torch.Generator().manual_seed(seed))
    first = classification_scores(probabilities, targets, multi_label)
    second = classification_scores(probabilities[order], targets[order], multi_label)
    for name, score in first.items():
        other = second[name]
        if isinstance(score, NotComputed) or isinstance(other, NotComputed):
            assert score == other
            continue
        found = (score.value, score.low, score.high)
        assert found == pytest.approx((other.value, other.low, other.high), nan_ok=True, abs=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 5), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_perfect_classifier_has_one_and_values_stay_within_their_intervals(
    seed: int, clips: int, classes: int, multi_label: bool
) -> None:
    probabilities, targets = answers(seed, clips, classes, multi_label)
    perfect = classification_scores(targets * 0.9 + 0.05, targets, multi_label)
    for score in perfect.values():
        if isinstance(score, Score):
            assert score.value == pytest.approx(1)
    for score in classification_scores(probabilities, targets, multi_label).values():
        if isinstance(score, Score):
            assert 0 <= score.value <= 1
            if not math.isnan(score.low):
                assert 0 <= score.low <= score.value <= score.high <= 1


def test_no_error_is_no_certainty() -> None:
    targets = torch.eye(4).repeat(5, 1)
    scores = classification_scores(targets, targets, False)
    accuracy, f1 = scores["accuracy"], scores["macro_f1"]
    assert isinstance(accuracy, Score) and isinstance(f1, Score)
    assert accuracy.low == pytest.approx(0.8389, abs=1e-3)  # Wilson's for 20 of 20
    assert math.isnan(f1.low) and "nothing varies" in f1.note


def test_intervals_narrow_with_clips_and_can_be_left_out() -> None:
    widths = []
    for clips in (50, 1000):  # the second in groups
        probabilities, targets = answers(1, clips, 3, False)
        for score in classification_scores(probabilities, targets, False).values():
            assert isinstance(score, Score)
            assert score.low < score.value < score.high
            widths.append(score.high - score.low)
    for few, many in zip(widths[: len(SINGLE)], widths[len(SINGLE) :], strict=True):
        assert many < few / 3
    quick = classification_scores(probabilities, targets, False, intervals=False)
    assert all(isinstance(s, Score) and math.isnan(s.low) for s in quick.values())


def test_an_interval_holds_the_truth_of_most_sets() -> None:
    """The jackknife of mean average precision over 40 clips of ten classes."""

    def draw(clips: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        targets = torch.eye(10)[torch.randint(10, (clips,), generator=generator)]
        noise = torch.randn(clips, 10, generator=generator)
        return (noise + 2 * targets).softmax(1), targets

    name = "mean_average_precision"
    truth = value(classification_scores(*draw(20_000, 0), False, intervals=False), name)
    held = 0
    for seed in range(1, 101):
        score = classification_scores(*draw(40, seed), False)[name]
        assert isinstance(score, Score)
        held += score.low <= truth <= score.high
    assert held >= 85  # a percentile bootstrap comes to 78


def test_what_cannot_be_computed_says_why() -> None:
    empty = torch.zeros(0, 3)
    assert classification_scores(empty, empty, False) == dict.fromkeys(
        SINGLE, NotComputed("there are no clips")
    )
    scores = classification_scores(torch.rand(4, 3), torch.zeros(4, 3), True)
    assert isinstance(scores["accuracy"], Score)
    for name in SEVERAL[1:]:
        assert scores[name] == NotComputed("no label is true of any clip")
    assert set(SINGLE) | set(SEVERAL) == set(ABOUT)


def test_bad_input() -> None:
    good, one = torch.rand(4, 3), torch.eye(3)[[0, 1, 2, 0]]
    with pytest.raises(CheckFailed, match="not numbers"):
        classification_scores(good.log().log(), one, False)
    for probabilities, targets in (
        (good, one[:3]), (good[0], one[0]), (good, one / 2), (good, 0 * one), (good, one + one[0]),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            classification_scores(probabilities, targets, False)


def test_the_picture_is_a_png_that_says_what_it_shows(tmp_path: Path) -> None:
    from PIL import Image

    sizes = []
    for classes in (2, 14, 30):
        labels = [f"label number {i} $x$" for i in range(classes)]
        counts = torch.randint(9, (classes, classes)) + 20 * torch.eye(classes).long()
        draw_confusion(counts, labels, tmp_path / "c.png")
        with Image.open(tmp_path / "c.png") as image:
            assert image.format == "PNG"
            sizes.append(image.size)
    assert sizes == sorted(sizes)
    assert max(sizes[-1]) < 2500
    different = torch.eye(4).long(), torch.eye(4).long().flip(0)
    pictures = [confusion_png(counts, "abcd") for counts in different]
    assert pictures[0] != pictures[1]
    assert confusion_png(torch.zeros(3, 3).long(), "abc").startswith(b"\x89PNG")  # of no clips
    with pytest.raises(ValueError, match="3 labels"):
        confusion_png(torch.zeros(2, 2), "abc")
    with pytest.raises(InputError, match="cannot be written"):
        draw_confusion(torch.eye(2).long(), "ab", tmp_path / "nowhere" / "c.png")


def test_long_labels_keep_both_ends() -> None:
    assert short("piano") == "piano"
    assert short("a very long label about bells") == "a very long l…ut bells"
