"""Group relative policy optimisation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from musictune.errors import InputError
from musictune.training.objectives.base import Played, RolloutObjective, per_clip
from musictune.training.objectives.terms import (
    checked_number,
    in_groups,
    per_place,
    ratio_to_sampled,
)


class GRPO(RolloutObjective):
    """GRPO (Shao et al., arXiv 2402.03300): rewards are compared within the clips of a prompt.

    A clip's advantage is its reward minus the group's mean, over the group's standard deviation
    (of n - 1; 1e-4 is added, which is ours as it is TRL's). Clips can be learned from several
    times: the ratio of policy to the policy that played is clipped. The divergence is the exact
    one of whole distributions, where the paper estimates it from the sampled token.

    The mean has the clip itself in it, so that with n clips the gradient is (n - 1) / n of the
    unbiased one: a smaller step, not another direction.

    Args:
        beta: advantage that a nat of a whole clip's divergence costs.
        scale: ``std`` as above, each clip's loss a mean over its own tokens; ``none`` for neither
            (Dr. GRPO, Liu et al., arXiv 2503.20783), which does not favour prompts of nearly equal
            rewards, nor short clips.
        clip_low, clip_high: how far below and above 1 the ratio still counts.

    Raises:
        InputError: a value out of its range; a prompt with a single clip.
    """

    name = "grpo"

    def __init__(
        self,
        beta: float = 0.04,
        scale: Literal["std", "none"] = "std",
        clip_low: float = 0.2,
        clip_high: float = 0.2,
    ) -> None:
        self.beta = checked_number("beta", beta, least=0)
        if scale not in ("std", "none"):
            raise InputError(f"scale {scale!r} must be std or none; correct that setting")
        self.scale = scale
        self.clip_low = checked_number("clip_low", clip_low, above=0, most=1)
        self.clip_high = checked_number("clip_high", clip_high, above=0)

    def advantages(self, rewards: Tensor, groups: Tensor) -> Tensor:
        own, group = in_groups(rewards, groups, self.name)
        clips = (~group.isnan()).sum(1)
        # The mean of differences, not the difference of means: exactly 0 for equal rewards.
        found = (own - group).nansum(1) / clips
        if self.scale == "std":
            apart = group - group.nanmean(1, keepdim=True)
            found = found / ((apart**2).nansum(1) / (clips - 1)).sqrt().add(1e-4)
        return found.to(rewards.dtype)

    def loss(self, played: Played, beta: float) -> Tensor:
        weight = played.advantages.detach()[:, None, None]
        ratio = ratio_to_sampled(played)
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        gain = torch.minimum(ratio * weight, clipped * weight)
        mean = per_clip if self.scale == "std" else per_place
        return mean(beta * played.kl - gain, played.mask)
