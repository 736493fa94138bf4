"""Simple preference optimisation."""

from __future__ import annotations

from torch import Tensor

from musictune.training.objectives.base import Compared, PairObjective
from musictune.training.objectives.terms import checked_number, per_token, preferred


class SimPO(PairObjective):
    """SimPO (Meng et al., arXiv 2405.14734): mean log-likelihood per token, and no reference.

    The loss of a pair is ``-log sigmoid(beta * margin - gamma)``, the margin being the mean
    log-likelihood of a token of the chosen clip minus that of the rejected one, in nats. Nothing
    holds the policy near where it began except small steps.

    Args:
        beta: per nat per token; 2 is the paper's for most of its models.
        gamma: by how much ``beta * margin`` must be above 0 to count as won; 1 is half of beta,
            as in the paper's Llama 3 setting.

    Raises:
        InputError: a value out of its range.
    """

    name = "simpo"
    needs_reference = False

    def __init__(self, beta: float = 2.0, gamma: float = 1.0) -> None:
        self.beta = checked_number("beta", beta, above=0)
        self.gamma = checked_number("gamma", gamma, least=0)

    def loss(self, pairs: Compared) -> Tensor:
        chosen, rejected = per_token(pairs)
        return preferred(self.beta * (chosen - rejected) - self.gamma)
