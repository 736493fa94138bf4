"""Bradley-Terry scores: the loss and its gradient by hand, the optimum, the hidden layer."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from musictune.training.bradley_terry import (
    bradley_terry_loss,
    fit_hidden,
    fit_linear,
    scores,
)


def pairs(count: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pairs in the order of a hidden direction, one in ten the other way round."""
    chance = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, count, width, generator=chance, dtype=torch.float64)
    rule = torch.randn(width, generator=chance, dtype=torch.float64)
    swapped = (rows[0] @ rule < rows[1] @ rule) ^ (torch.rand(count, generator=chance) < 0.1)
    chosen = torch.where(swapped[:, None], rows[1], rows[0])
    return chosen, torch.where(swapped[:, None], rows[0], rows[1])


def test_loss_and_gradient_by_hand() -> None:
    chosen = torch.tensor([1.0, -0.5], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.25, 0.5], dtype=torch.float64, requires_grad=True)
    loss = bradley_terry_loss(chosen, rejected)
    by_hand = [math.log(1 + math.exp(-0.75)), math.log(1 + math.exp(1.0))]
    assert loss.tolist() == pytest.approx(by_hand, rel=1e-12)
    loss.sum().backward()
    wrong = [1 / (1 + math.exp(0.75)), 1 / (1 + math.exp(-1.0))]  # sigmoid(rejected - chosen)
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-p for p in wrong], rel=1e-12)
    assert rejected.grad.tolist() == pytest.approx(wrong, rel=1e-12)


@given(st.floats(-50, 50), st.floats(-50, 50))
def test_chances_of_both_orders_sum_to_one(first: float, second: float) -> None:
    a, b = torch.tensor(first).double(), torch.tensor(second).double()
    both = torch.exp(-bradley_terry_loss(a, b)) + torch.exp(-bradley_terry_loss(b, a))
    assert float(both) == pytest.approx(1, abs=1e-12)


def test_newton_ends_where_the_gradient_is_zero() -> None:
    chosen, rejected = pairs(60, 9)
    chance = torch.Generator().manual_seed(1)
    counts = torch.randint(3, (3, 60), generator=chance).double()
    decay = torch.tensor([1e-6, 1e-2, 1.0], dtype=torch.float64)
    fitted = fit_linear(chosen, rejected, counts, (counts == 0).double(), decay)
    weights = fitted.weights["outer"].clone().requires_grad_()
    losses = bradley_terry_loss(weights @ chosen.T, weights @ rejected.T)
    mean = (counts * losses).sum(1) / counts.sum(1)
    (mean + decay / 2 * weights.square().sum(1)).sum().backward()
    assert weights.grad is not None
    assert float(weights.grad.abs().max()) < 1e-7
    assert fitted.training.tolist() == pytest.approx(mean.tolist())
    assert fitted.training[0] < fitted.training[1] < fitted.training[2]


def test_one_number_per_clip_has_the_known_answer() -> None:
    """Of 30 comparisons between two things one wins 20: their scores lie log 2 apart."""
    chosen = torch.cat([torch.ones(20, 1), torch.zeros(10, 1)]).double()
    every = torch.ones(1, 30, dtype=torch.float64)
    fitted = fit_linear(chosen, 1 - chosen, every, every, torch.tensor([1e-12]).double())
    assert float(fitted.weights["outer"]) == pytest.approx(math.log(2), rel=1e-6)
    assert float(fitted.accuracy) == pytest.approx(2 / 3)


def test_separable_pairs_do_not_run_away() -> None:
    chosen = torch.rand(20, 3, dtype=torch.float64) + 1
    every = torch.ones(1, 20, dtype=torch.float64)
    fitted = fit_linear(chosen, -chosen, every, every, torch.tensor([1e-5]).double())
    assert torch.isfinite(fitted.weights["outer"]).all()
    assert float(fitted.training) < 0.01


def test_a_hidden_layer_learns_what_no_line_can() -> None:
    """Preferred is what lies nearer to a middle value, on either side of it."""
    chance = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 200, 2, generator=chance)
    near = rows[..., 0].abs()
    first = (near[0] < near[1])[:, None]
    chosen, rejected = (torch.where(first, rows[i], rows[1 - i]) for i in (0, 1))
    training = torch.ones(2, 200)
    training[:, 140:] = 0
    decay = torch.tensor([0.01, 0.1])
    given = (chosen, rejected, training, 1 - training, decay)
    line = fit_linear(*(value.double() for value in given))
    layer = fit_hidden(*given, width=8, steps=120, seed=0)
    assert line.accuracy.max() < 0.65
    assert layer.accuracy.min() > 0.9
    again = fit_hidden(*given, width=8, steps=120, seed=0)
    assert torch.equal(layer.weights["inner"], again.weights["inner"])


def test_a_hidden_layer_keeps_its_best_step() -> None:
    chosen, rejected = (rows.float() for rows in pairs(40, 30))
    training = torch.zeros(1, 40)
    training[:, :20] = 1
    given = (chosen, rejected, training, 1 - training, torch.zeros(1))
    short = fit_hidden(*given, width=8, steps=10, seed=3)
    long = fit_hidden(*given, width=8, steps=300, seed=3)
    assert float(long.validation) <= float(short.validation) + 1e-7


def test_scores_do_not_depend_on_the_other_rows() -> None:
    weights = {"inner": torch.randn(2, 3, 4), "bias": torch.randn(2, 4), "outer": torch.randn(2, 4)}
    rows = torch.randn(5, 3)
    alone = torch.cat([scores(weights, row[None]) for row in rows], 1)
    assert torch.allclose(scores(weights, rows), alone, atol=1e-6)
