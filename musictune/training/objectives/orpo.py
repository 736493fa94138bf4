"""Odds-ratio preference optimisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from musictune.training.objectives.base import Compared, PairObjective
from musictune.training.objectives.terms import checked_number, per_token, preferred


class ORPO(PairObjective):
    """ORPO (Hong et al., arXiv 2403.07691): imitation of the chosen clip, and an odds ratio.

    The loss of a pair is the chosen clip's negative log-likelihood per token plus beta times
    ``-log sigmoid(log odds ratio)``. The odds are ``p / (1 - p)`` with p the geometric mean of a
    clip's token probabilities, as in the paper. No reference.

    Args:
        beta: of the odds ratio's part (the paper's lambda). At 0.1 the imitation is by far the
            larger part: it is supervised tuning that also pushes the rejected clip away.

    Raises:
        InputError: a value out of its range.
    """

    name = "orpo"
    needs_reference = False

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = checked_number("beta", beta, above=0)

    def loss(self, pairs: Compared) -> Tensor:
        chosen, rejected = per_token(pairs)
        return self.beta * preferred(_log_odds(chosen) - _log_odds(rejected)) - chosen


def _log_odds(log_p: Tensor) -> Tensor:
    """``log(p / (1 - p))`` from ``log p``, exact near 0 and 1.

    Within 1e-6 of certainty there is no way to tell how certain, and no gradient.
    """
    log_p = log_p.clamp(max=-1e-6)
    # Each form of log(1 - p) loses all digits where the other is used. Places that are not used
    # get a harmless value, as an infinite gradient times 0 would be NaN.
    near = log_p > -math.log(2)
    close = torch.log(-torch.expm1(torch.where(near, log_p, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(near, -1.0, log_p)))
    return log_p - torch.where(near, close, far)
