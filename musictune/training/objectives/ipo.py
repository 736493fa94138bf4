"""Identity preference optimisation."""

from __future__ import annotations

from torch import Tensor

from musictune.training.objectives.base import Compared, PairObjective
from musictune.training.objectives.terms import checked_number, log_ratios


class IPO(PairObjective):
    """IPO (Azar et al., arXiv 2310.12036): the margin is drawn to one value, not to infinity.

    The loss of a pair is ``(margin - 1 / (2 beta))^2`` (their equation 17, beta being their tau).
    They write it for whole answers; here the margin is that of mean log-ratios per token, as TRL
    has it, so that the target does not depend on how long clips are.

    Args:
        beta: sets the target, ``1 / (2 beta)`` nats per token. 10 (ours) asks for 0.05 nats, which
            is 100 nats over a clip of 2,000 tokens; values for whole answers, such as 0.1, would
            ask for 5 nats at every token, more than most tokens have.

    Raises:
        InputError: a value out of its range.
    """

    name = "ipo"

    def __init__(self, beta: float = 10.0) -> None:
        self.beta = checked_number("beta", beta, above=0)

    def loss(self, pairs: Compared) -> Tensor:
        chosen, rejected = log_ratios(pairs)
        margin = chosen / pairs.chosen_tokens - rejected / pairs.rejected_tokens
        return (margin - 1 / (2 * self.beta)) ** 2
