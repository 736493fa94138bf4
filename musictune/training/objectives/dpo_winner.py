"""Direct preference optimisation that holds on to the chosen clips."""

from __future__ import annotations

from torch import Tensor

from musictune.training.objectives.base import Compared
from musictune.training.objectives.dpo import DPO
from musictune.training.objectives.terms import checked_number, per_token


class DPOWinner(DPO):
    """DPO plus the loss of imitating the chosen clip.

    DPO alone is content when both clips become less likely, the rejected one faster; music then
    drifts away from both. TangoFlux (Hung et al., arXiv 2412.21037) adds the winner's flow loss,
    and iterative reasoning preference optimisation (Pang et al., arXiv 2404.19733) its negative
    log-likelihood per token, which is what is done here.

    Args:
        beta: as of `dpo`.
        winner_weight: of the negative log-likelihood, in nats per token. A token of music costs
            some 3 to 6 nats, so at 1 the imitation is the larger part of the loss.
        label_smoothing: as of `dpo`.

    Raises:
        InputError: a value out of its range.
    """

    name = "dpo_winner"

    def __init__(
        self, beta: float = 0.1, winner_weight: float = 1.0, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(beta, label_smoothing)
        self.winner_weight = checked_number("winner_weight", winner_weight, least=0)

    def loss(self, pairs: Compared) -> Tensor:
        return super().loss(pairs) - self.winner_weight * per_token(pairs)[0]
