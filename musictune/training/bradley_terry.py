"""Fitting Bradley-Terry scores (1952) to comparisons: many small problems at once, on one core.

The chance that one thing is preferred to another is the logistic function of the difference of
their scores. A linear score makes this a penalised logistic regression without intercept, convex,
which Newton's method solves to the last digits in about ten steps: no rate, no schedule and no
early stopping are left to choose. A score with a hidden layer is trained by Adam.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]
"""Of several scores: ``outer`` ``(scores, width)``; with a hidden layer also ``inner``
``(scores, inputs, width)`` and ``bias`` ``(scores, width)``."""

_NEWTON = 50  # steps at most
_HALVINGS = 30
_RATE = 1e-2  # of Adam
_PATIENCE = 40  # steps without a better validation loss anywhere
_CLOSE = 1e-9  # longest gradient of what counts as solved


@dataclass(frozen=True)
class Fitted:
    """Solved problems.

    Attributes:
        weights: of one score per problem.
        training, validation: ``(problems,)`` mean loss in nats per comparison, without penalty.
        accuracy: ``(problems,)`` share of the validation comparisons that are in order.
    """

    weights: dict[str, Tensor]
    training: Tensor
    validation: Tensor
    accuracy: Tensor


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """``-log sigmoid(chosen - rejected)`` in nats, of the shape of the two scores."""
    return F.softplus(rejected - chosen)


def scores(weights: Weights, inputs: Tensor) -> Tensor:
    """``(scores, rows)`` of ``inputs`` ``(rows, inputs)``."""
    if "inner" not in weights:
        return weights["outer"] @ inputs.T
    hidden = torch.einsum("ni,bih->bnh", inputs, weights["inner"]) + weights["bias"][:, None]
    return torch.einsum("bnh,bh->bn", F.gelu(hidden), weights["outer"])


def fit_linear(
    chosen: Tensor, rejected: Tensor, training: Tensor, validation: Tensor, decay: Tensor
) -> Fitted:
    """Lower ``mean loss + decay / 2 * |weights|^2`` for each problem, by damped Newton steps.

    Args:
        chosen, rejected: ``(pairs, inputs)`` float64.
        training, validation: ``(problems, pairs)`` how much each comparison counts.
        decay: ``(problems,)`` above 0.
    """
    difference = chosen - rejected
    share = training / training.sum(1, keepdim=True)
    weights = difference.new_zeros(len(decay), difference.shape[1])

    def value(at: Tensor) -> Tensor:
        return (share * F.softplus(-at @ difference.T)).sum(1) + decay / 2 * at.square().sum(1)

    identity = torch.eye(difference.shape[1], dtype=difference.dtype)
    now = value(weights)
    for _ in range(_NEWTON):
        wrong = torch.sigmoid(-weights @ difference.T)
        gradient = decay[:, None] * weights - (share * wrong) @ difference
        if float(gradient.abs().max()) < _CLOSE:
            break
        curved = share * wrong * (1 - wrong)
        hessian = torch.stack([(difference * row[:, None]).T @ difference for row in curved])
        hessian += decay[:, None, None] * identity
        step = torch.cholesky_solve(gradient[..., None], torch.linalg.cholesky(hessian))[..., 0]
        length = torch.ones_like(decay)
        for _ in range(_HALVINGS):
            after = value(weights - length[:, None] * step)
            worse = after > now + 1e-14
            if not worse.any():
                break
            length = torch.where(worse, length / 2, length)
        weights, now = weights - length[:, None] * step, after
    found = {"outer": weights}
    return Fitted(found, *_judged(found, chosen, rejected, training, validation))


def fit_hidden(
    chosen: Tensor,
    rejected: Tensor,
    training: Tensor,
    validation: Tensor,
    decay: Tensor,
    *,
    width: int,
    steps: int,
    seed: int,
) -> Fitted:
    """Full-batch Adam with decoupled decay; each problem keeps its step of least validation loss.

    Args:
        chosen, rejected, training, validation, decay: as for :func:`fit_linear`; the decay here
            takes ``rate * decay`` of the weights away at each step.
        width: of the hidden layer (GELU).
        steps: the most that are made.
        seed: of the weights at the start.
    """
    problems, inputs = len(decay), chosen.shape[1]
    chance = torch.Generator().manual_seed(seed)
    draw = {"generator": chance, "dtype": chosen.dtype}
    weights = {
        "inner": torch.randn(problems, inputs, width, **draw) / inputs**0.5,
        "bias": torch.zeros(problems, width, dtype=chosen.dtype),
        "outer": torch.randn(problems, width, **draw) / width,
    }
    for weight in weights.values():
        weight.requires_grad_()
    share = training / training.sum(1, keepdim=True)
    checked = validation / validation.sum(1, keepdim=True)
    both = torch.cat([chosen, rejected])
    adam = torch.optim.Adam(list(weights.values()), lr=_RATE)
    best = {name: weight.detach().clone() for name, weight in weights.items()}
    least = torch.full_like(decay, torch.inf)
    since = 0
    for _ in range(steps + 1):
        losses = bradley_terry_loss(*scores(weights, both).split(len(chosen), 1))
        with torch.no_grad():
            seen = (checked * losses).sum(1)
            better = seen < least
            least = torch.where(better, seen, least)
            for name, weight in weights.items():
                taken = better.view(-1, *[1] * (weight.dim() - 1))
                best[name] = torch.where(taken, weight, best[name])
        since = 0 if better.any() else since + 1
        if since > _PATIENCE:
            break
        adam.zero_grad()
        (share * losses).sum().backward()
        adam.step()
        with torch.no_grad():
            for weight in weights.values():
                weight *= (1 - _RATE * decay).view(-1, *[1] * (weight.dim() - 1))
    return Fitted(best, *_judged(best, chosen, rejected, training, validation))


@torch.no_grad()
def _judged(
    weights: Weights, chosen: Tensor, rejected: Tensor, training: Tensor, validation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    high, low = scores(weights, chosen), scores(weights, rejected)
    losses = bradley_terry_loss(high, low)
    right = (high > low).to(losses) + (high == low).to(losses) / 2
    share, checked = (
        counts / counts.sum(1, keepdim=True).clamp(min=1) for counts in (training, validation)
    )
    return (share * losses).sum(1), (checked * losses).sum(1), (checked * right).sum(1)
