"""Self-similarity and Vendi score against plain sums, closed forms and their laws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.errors import InputError
from musictune.metrics import diversity as module
from musictune.metrics.base import NotComputed, Score
from musictune.metrics.diversity import Diversity, self_similarity, vendi_score
from musictune.metrics.features import Features


def one_each(points: np.ndarray) -> Features:
    return Features(points, np.ones(len(points), dtype=int))


def test_self_similarity_is_the_mean_over_pairs_of_clips():
    made = list(torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(1)))
    means = [clip.double().mean(0) for clip in made]
    pairs = [torch.cosine_similarity(a, b, 0) for a, b in itertools.combinations(means, 2)]
    score = self_similarity(made)
    assert score.value == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-12)
    assert score.low < score.value < score.high
    assert score.n == 5


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 12),
    width=st.integers(1, 12),
    rows=st.integers(1, 3),
)
def test_laws_of_the_vendi_score(seed: int, count: int, width: int, rows: int):
    """From 1 to the smaller of n and the width; no matter how turned, scaled or ordered."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((count * rows, width))
    made = Features(points, np.full(count, rows))
    value = vendi_score(made).value
    assert 1 - 1e-9 <= value <= min(count, width) + 1e-6
    turn, _ = np.linalg.qr(rng.standard_normal((width, width)))
    turned = Features(points @ turn * 7, made.lengths).select(rng.permutation(count))
    assert vendi_score(turned).value == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_identical_clips_count_once_and_orthogonal_ones_each(count: int):
    alike = np.tile(np.random.default_rng(0).standard_normal(9), (count, 1))
    assert vendi_score(one_each(alike)).value == pytest.approx(1, abs=1e-9)
    assert vendi_score(one_each(np.eye(50)[:count])).value == pytest.approx(count, rel=1e-9)


def test_groups_of_copies_count_as_their_entropy():
    """Three sounds of 1, 2 and 5 copies: exp of the entropy of (1, 2, 5) / 8."""
    shares = np.array([1, 2, 5]) / 8
    points = np.repeat(np.eye(4)[:3], [1, 2, 5], axis=0)
    wanted = math.exp(-(shares * np.log(shares)).sum())
    assert vendi_score(one_each(points)).value == pytest.approx(wanted, rel=1e-9)


def test_both_gram_matrices_give_the_same():
    points = np.random.default_rng(0).standard_normal((20, 20))
    wide = np.concatenate([points, np.zeros((20, 5))], axis=1)  # 25 columns: n x n
    tall = np.concatenate([points, points[:1]])  # 21 rows: d x d
    assert vendi_score(one_each(points)).value == pytest.approx(
        vendi_score(one_each(wide)).value, rel=1e-9
    )
    unit = tall / np.linalg.norm(tall, axis=1, keepdims=True)
    shares = np.linalg.eigvalsh(unit @ unit.T / 21)
    shares = shares[shares > 1e-12]
    wanted = math.exp(-(shares * np.log(shares)).sum())
    assert vendi_score(one_each(tall)).value == pytest.approx(wanted, rel=1e-6)


def test_the_interval_leaves_out_clips_or_groups_of_them(monkeypatch: pytest.MonkeyPatch):
    points = np.random.default_rng(0).standard_normal((60, 10)) + 1
    each = vendi_score(one_each(points))
    assert 1 < each.low < each.value < each.high < 60
    monkeypatch.setattr(module, "_GROUPS", 20)
    grouped = vendi_score(one_each(points))
    assert grouped.value == each.value
    assert grouped.high - grouped.low == pytest.approx(each.high - each.low, rel=0.6)


def test_the_vendi_interval_holds_the_mean_over_draws():
    scale = np.linspace(0.2, 2, 12)
    scores = [
        vendi_score(one_each(np.random.default_rng(i).standard_normal((25, 12)) * scale + 1))
        for i in range(120)
    ]
    truth = np.mean([score.value for score in scores])
    assert 0.9 <= np.mean([score.low <= truth <= score.high for score in scores]) <= 0.99


def test_the_metric_gives_both_and_does_not_look_at_the_reference():
    made = one_each(np.random.default_rng(0).standard_normal((9, 4)))
    found = Diversity()(made, one_each(np.ones((1, 4))))
    assert found == {"self_similarity": self_similarity(made), "vendi_score": vendi_score(made)}
    assert set(found) == set(Diversity.scores)


def test_what_cannot_be_computed_says_why():
    reference = one_each(np.ones((3, 4)))
    one = Diversity()(one_each(np.ones((1, 4))), reference)
    assert isinstance(one["self_similarity"], NotComputed)
    assert "2 made clips or more, not 1" in one["self_similarity"].reason
    assert isinstance(one["vendi_score"], Score)
    assert one["vendi_score"].value == pytest.approx(1)
    for bad in (np.zeros((3, 4)), np.full((3, 4), np.nan), np.full((3, 4), np.inf)):
        for found in Diversity()(one_each(bad), reference).values():
            assert isinstance(found, NotComputed)
            assert "nothing or not finite" in found.reason
    with pytest.raises(InputError, match="no clips"):
        vendi_score([])
    with pytest.raises(InputError, match="widths"):
        self_similarity([np.ones((2, 3)), np.ones((2, 4))])
