"""Kullback-Leibler divergence: values published elsewhere, laws, and what has none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.errors import InputError
from musictune.metrics.base import NotComputed, Score
from musictune.metrics.features import Features
from musictune.metrics.kl import ABOUT, kl_divergence, kl_scores

Array = np.ndarray

# The two examples of stable-audio-metrics' src/test_kld.py, with what it expects of them.
EIGHT = ([0.05, 0.1, 0.2, 0.05, 0.15, 0.25, 0.08, 0.12], [0.3, 0.1, 0.2, 0.1, 0.1, 0.02, 0.08, 0.1])
THREE = ([0.10, 0.40, 0.50], [0.80, 0.15, 0.05])


def clips(alpha: Array, count: int, seed: int, windows: int = 2) -> Features:
    rng = np.random.default_rng(seed)
    return Features.of(list(rng.dirichlet(alpha, (count, windows))), "ast")


@pytest.mark.parametrize(
    ("pair", "exact", "with_epsilon"),
    [
        (EIGHT, 0.589885181619163, 0.5898663401603699),
        (THREE, 1.3356800935337299, 1.335667371749878),
    ],
)
def test_published_values(pair: tuple[list[float], ...], exact: float, with_epsilon: float):
    p, q = (np.array(side) for side in pair)
    assert float(kl_divergence(p, q)) == pytest.approx(exact, rel=1e-14)
    assert float(kl_divergence(p, q, 1e-6)) == pytest.approx(with_epsilon, abs=1e-6)


distributions = st.integers(0, 2**32).map(
    lambda seed: np.random.default_rng(seed).dirichlet(np.full(6, 0.3), 2) + 1e-12
)


@given(distributions)
@settings(max_examples=50)
def test_it_is_zero_only_between_equals_and_never_below(two: Array):
    p, q = two / two.sum(1, keepdims=True)
    assert float(kl_divergence(p, p)) == pytest.approx(0, abs=1e-15)
    # Pinsker's inequality.
    assert float(kl_divergence(p, q)) >= 0.5 * np.abs(p - q).sum() ** 2 - 1e-12


@given(distributions)
@settings(max_examples=30)
def test_merging_classes_never_adds_to_it(two: Array):
    p, q = two / two.sum(1, keepdims=True)
    merged = [np.array([side[:3].sum(), side[3:].sum()]) for side in (p, q)]
    assert float(kl_divergence(*merged)) <= float(kl_divergence(p, q)) + 1e-12


def test_a_class_that_is_missing_behind_the_bar_is_infinite():
    assert math.isinf(float(kl_divergence(np.array([0.5, 0.5]), np.array([1.0, 0.0]))))
    assert float(kl_divergence(np.array([1.0, 0.0]), np.array([0.5, 0.5]))) == pytest.approx(
        math.log(2)
    )


def test_the_names_tell_the_direction():
    p, q = (Features.of([np.array([side])]) for side in THREE)
    scores = kl_scores(made=p, reference=q)
    forward, backward = scores["kl_made_to_reference"], scores["kl_reference_to_made"]
    assert isinstance(forward, Score) and isinstance(backward, Score)
    assert forward.value == pytest.approx(1.3356800935337299)
    assert backward.value == pytest.approx(float(kl_divergence(*map(np.array, THREE[::-1]))))
    assert math.isnan(forward.low) and math.isnan(forward.high)  # one clip says nothing of chance
    assert set(scores) == set(ABOUT)


def test_sets_compare_means_and_pairs_compare_clips():
    rows = np.array([[[0.9, 0.1]], [[0.1, 0.9]]])
    made, reference = Features.of(list(rows)), Features.of(list(rows[::-1]))
    scores = kl_scores(made, reference, pairs=[(0, 0), (1, 1)])
    assert scores["kl_made_to_reference"].value == pytest.approx(0)  # type: ignore[union-attr]
    crossed = scores["paired_kl_made_to_reference"]
    assert isinstance(crossed, Score)
    assert crossed.value == pytest.approx(0.8 * math.log(9))
    assert crossed.n == 2
    same = kl_scores(made, reference, pairs=[(0, 1), (1, 0)])["paired_kl_made_to_reference"]
    assert isinstance(same, Score)
    assert same.value == pytest.approx(0)


def test_each_clip_counts_once_however_long():
    short, long = np.array([[0.9, 0.1]]), np.array([[0.1, 0.9]] * 9)
    made, reference = Features.of([short, long]), Features.of([np.array([[0.5, 0.5]])])
    score = kl_scores(made, reference)["kl_made_to_reference"]
    assert isinstance(score, Score)
    assert score.value == pytest.approx(0, abs=1e-12)


def test_without_pairs_it_says_so():
    made = clips(np.ones(4), 3, 0)
    answer = kl_scores(made, made)["paired_kl_reference_to_made"]
    assert isinstance(answer, NotComputed)
    assert "name" in answer.reason


def test_an_infinite_divergence_is_not_computed():
    made, reference = Features.of([np.array([[0.5, 0.5]])]), Features.of([np.array([[1.0, 0.0]])])
    scores = kl_scores(made, reference, pairs=[(0, 0)])
    for name in ("kl_made_to_reference", "paired_kl_made_to_reference"):
        answer = scores[name]
        assert isinstance(answer, NotComputed)
        assert "exactly 0" in answer.reason
    assert isinstance(scores["kl_reference_to_made"], Score)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.array([[0.5, 0.6]]), "sum to 1.1"),
        (np.array([[1.5, -0.5]]), "negative"),
        (np.array([[np.nan, 1.0]]), "finite"),
        (np.array([[0.2, 0.3, 0.5]]), "dimensions"),
        (np.empty((0, 2)), "no class probabilities"),
    ],
)
def test_what_is_no_distribution_is_refused(rows: Array, words: str):
    good = Features.of([np.array([[0.5, 0.5]])])
    for made, reference in ((Features.of([rows]), good), (good, Features.of([rows]))):
        with pytest.raises(InputError, match=words):
            kl_scores(made, reference)


def test_other_classifiers_cannot_be_compared():
    one = Features.of([np.array([[0.5, 0.5]])], "one")
    with pytest.raises(InputError, match="other"):
        kl_scores(one, Features.of(list(one), "other"))


@pytest.mark.slow
def test_intervals_hold_the_truth():
    alpha = np.tile([3.0, 2.0, 1.0, 0.5, 0.2, 0.1], 4)
    other = np.roll(alpha, 1) + 0.1
    truth = float(kl_divergence(alpha / alpha.sum(), other / other.sum()))
    held = 0
    for seed in range(200):
        made, reference = (
            clips(0.3 * a, 60, 2 * seed + i, 1) for i, a in enumerate((alpha, other))
        )
        score = kl_scores(made, reference)["kl_made_to_reference"]
        assert isinstance(score, Score)
        held += score.low <= truth <= score.high
    assert 0.87 <= held / 200 <= 0.99
