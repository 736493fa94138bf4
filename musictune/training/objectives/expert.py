"""Expert iteration: imitating the best of what was just made."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from musictune.training.objectives.base import Played, RolloutObjective, per_clip
from musictune.training.objectives.terms import checked_number, in_groups


class Expert(RolloutObjective):
    """Expert iteration, or reward-ranked tuning (RAFT, Dong et al., arXiv 2304.06767).

    The best share of each prompt's clips is imitated, the others are left alone: the loss of a
    clip is its negative log-likelihood per token, or 0. The mean over all clips is thus the mean
    over the imitated ones times their share.

    Clips as good as the last of the best are imitated too, but never the worst of a group: where
    all rewards are equal nothing is learned.

    Args:
        beta: weight of the divergence in nats per token, of all clips; RAFT has none.
        share: how much of each group is imitated, at least one clip. A share of 1 / n is
            imitation of best-of-n.

    Raises:
        InputError: a value out of its range; a prompt with a single clip.
    """

    name = "expert"

    def __init__(self, beta: float = 0.0, share: float = 0.25) -> None:
        self.beta = checked_number("beta", beta, least=0)
        self.share = checked_number("share", share, above=0, below=1)

    def advantages(self, rewards: Tensor, groups: Tensor) -> Tensor:
        own, group = in_groups(rewards, groups, self.name)
        clips = (~group.isnan()).sum(1, keepdim=True)
        best = (clips * self.share + 1e-9).floor().clamp(min=1).long()
        ranked = group.nan_to_num(nan=-math.inf).sort(1, descending=True).values
        worst = group.nan_to_num(nan=math.inf).amin(1, keepdim=True)
        kept = (own >= ranked.gather(1, best - 1)) & (own > worst)
        return kept[:, 0].to(rewards.dtype)

    def loss(self, played: Played, beta: float) -> Tensor:
        imitated = torch.where(played.mask, played.tokens, 0.0)
        weight = played.advantages.detach()[:, None, None]
        return per_clip(beta * played.kl - weight * imitated, played.mask)
