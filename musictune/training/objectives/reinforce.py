"""REINFORCE with a learned baseline, as MusicRL did it."""

from __future__ import annotations

import torch
from torch import Tensor

from musictune.training.objectives.base import Played, RolloutObjective
from musictune.training.objectives.terms import checked_number, later, per_place


class Reinforce(RolloutObjective):
    """REINFORCE with a value baseline and full divergence (MusicRL, arXiv 2402.04229).

    A token is weighed by the clip's reward minus the reward that was expected before its step,
    V(s), and V is drawn to the reward by squared error. The divergence from the reference is that
    of whole distributions, not of the sampled tokens. Rewards come at the end of a clip, so the
    reward to come is the clip's at every step.

    MusicRL weighs the first by ``1 - alpha`` and the divergence by ``alpha`` (it does not say
    which); here alpha is ``beta / (1 + beta)``, all divided by ``1 - alpha``. Tokens are summed
    and divided by the number of places, so beta is still against the divergence of whole clips.

    Each clip is learned from once: nothing corrects for a policy that has moved since.

    Args:
        beta: reward that a nat of a whole clip's divergence costs.
        value_weight: of the squared error of V.
        future_kl: also weigh each token by the divergence it leads to later. Then this is the
            whole gradient of the mean reward minus beta times divergence; without (the paper's
            form as we read it) the states passed through are taken as given. It adds noise, as
            no baseline is subtracted from it.

    Raises:
        InputError: a value out of its range.
    """

    name = "reinforce"
    needs_values = True

    def __init__(
        self, beta: float = 0.04, value_weight: float = 0.5, future_kl: bool = False
    ) -> None:
        self.beta = checked_number("beta", beta, least=0)
        self.value_weight = checked_number("value_weight", value_weight, above=0)
        self.future_kl = future_kl

    def loss(self, played: Played, beta: float) -> Tensor:
        """As of every objective.

        Raises:
            ValueError: no values.
        """
        if played.values is None:
            raise ValueError("reinforce needs the values expected before each step")
        reward = played.advantages.detach()[:, None]
        surprise = (reward - played.values.detach())[:, None, :]
        if self.future_kl:
            surprise = surprise - beta * later(played.kl, played.mask)
        policy = per_place(beta * played.kl - surprise * played.tokens, played.mask)
        steps = played.mask.any(1)
        error = torch.where(steps, (played.values - reward) ** 2, 0.0).sum(1) / steps.sum(1)
        return policy + self.value_weight * error
