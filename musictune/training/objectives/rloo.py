"""REINFORCE with the other clips of the prompt as baseline."""

from __future__ import annotations

from torch import Tensor

from musictune.training.objectives.base import Played, RolloutObjective
from musictune.training.objectives.terms import checked_number, in_groups, later, per_place


class RLOO(RolloutObjective):
    """RLOO (Ahmadian et al., arXiv 2402.14740): leave-one-out baselines.

    A clip is compared with the mean of the other clips of its prompt. The gradient is unbiased,
    needs no value network, and learns from every clip. The paper takes the sampled log-ratio off
    the reward; here the divergence is the exact one of whole distributions, beside the reward.
    Tokens are summed and divided by the number of places, so beta is still against the divergence
    of whole clips.

    Each clip is learned from once: nothing corrects for a policy that has moved since.

    Args:
        beta: reward that a nat of a whole clip's divergence costs.
        future_kl: also weigh each token by the divergence it leads to later, for the whole
            gradient of mean reward minus beta times divergence. It adds noise, as no baseline is
            subtracted from it.

    Raises:
        InputError: a value out of its range; a prompt with a single clip.
    """

    name = "rloo"

    def __init__(self, beta: float = 0.04, future_kl: bool = False) -> None:
        self.beta = checked_number("beta", beta, least=0)
        self.future_kl = future_kl

    def advantages(self, rewards: Tensor, groups: Tensor) -> Tensor:
        own, group = in_groups(rewards, groups, self.name)
        # The mean of differences, not the difference of means: exactly 0 for equal rewards.
        others = (~group.isnan()).sum(1) - 1
        return ((own - group).nansum(1) / others).to(rewards.dtype)

    def loss(self, played: Played, beta: float) -> Tensor:
        weight = played.advantages.detach()[:, None, None]
        if self.future_kl:
            weight = weight - beta * later(played.kl, played.mask)
        return per_place(beta * played.kl - weight * played.tokens, played.mask)
