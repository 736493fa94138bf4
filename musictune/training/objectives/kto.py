"""Kahneman-Tversky optimisation."""

from __future__ import annotations

from torch import Tensor

from musictune.training.objectives.base import Compared, PairObjective
from musictune.training.objectives.terms import checked_number, log_ratios


class KTO(PairObjective):
    """KTO (Ethayarajh et al., arXiv 2402.01306): each clip alone is good or bad.

    A clip is valued by how far its log-ratio is above (chosen) or below (rejected) a reference
    point, ``sigmoid(beta * distance)``, and the loss is the weight times one minus that. The
    reference point is the mean log-ratio of clips under prompts that are not theirs, an estimate
    of the divergence from the reference, taken as 0 where it is negative; no gradients pass it.

    The loss of a pair is the mean of its two clips' (the paper's mean over clips), from 0 to the
    mean of the two weights.

    Args:
        beta: per nat of a whole clip's log-ratio. A clip further than some 5 / beta nats from the
            reference point has next to no gradient on either side: unlike DPO, KTO gives up on
            what it has far wrong.
        desirable_weight, undesirable_weight: of chosen and of rejected clips.

    Raises:
        InputError: a value out of its range.
    """

    name = "kto"
    needs_mismatched = True

    def __init__(
        self,
        beta: float = 0.1,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
    ) -> None:
        self.beta = checked_number("beta", beta, above=0)
        self.desirable_weight = checked_number("desirable_weight", desirable_weight, above=0)
        self.undesirable_weight = checked_number("undesirable_weight", undesirable_weight, above=0)

    def loss(self, pairs: Compared) -> Tensor:
        """As of every objective.

        Raises:
            ValueError: no mismatched clips.
        """
        if pairs.mismatched is None or not len(pairs.mismatched):
            raise ValueError("kto needs mismatched clips for its reference point")
        chosen, rejected = log_ratios(pairs)
        point = pairs.mismatched.detach().mean().clamp(min=0)
        # 1 - sigmoid(x) is sigmoid(-x), which does not round to 0 early.
        good = self.desirable_weight * (self.beta * (point - chosen)).sigmoid()
        bad = self.undesirable_weight * (self.beta * (rejected - point)).sigmoid()
        return (good + bad) / 2
