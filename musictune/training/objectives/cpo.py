"""Contrastive preference optimisation."""

from __future__ import annotations

from torch import Tensor

from musictune.training.objectives.base import Compared, PairObjective
from musictune.training.objectives.terms import checked_number, per_token, preferred


class CPO(PairObjective):
    """CPO (Xu et al., arXiv 2401.08417): DPO with no reference, plus imitation of the chosen clip.

    The loss of a pair is ``-log sigmoid(beta * margin)`` plus the chosen clip's negative
    log-likelihood; the margin is the log-likelihood of the whole chosen clip minus that of the
    whole rejected one, in nats. The paper adds the likelihood of whole answers; here it is per
    token, as TRL has it, so that thousands of tokens do not drown the preference.

    Args:
        beta: per nat of whole clips. With no reference to compare with, two clips differ by
            hundreds of nats for what they are alone, a longer one by thousands, so that many pairs
            are all won or all lost from the start: `simpo` is the better choice for clips of
            different lengths.
        nll_weight: of the negative log-likelihood in nats per token.

    Raises:
        InputError: a value out of its range.
    """

    name = "cpo"
    needs_reference = False

    def __init__(self, beta: float = 0.1, nll_weight: float = 1.0) -> None:
        self.beta = checked_number("beta", beta, above=0)
        self.nll_weight = checked_number("nll_weight", nll_weight, least=0)

    def loss(self, pairs: Compared) -> Tensor:
        margin = self.beta * (pairs.chosen - pairs.rejected)
        return preferred(margin) - self.nll_weight * per_token(pairs)[0]
