"""What an alignment objective sees and gives. Adding one is adding one file with one subclass.

All of them speak of the model's own log-likelihood of music in codec tokens, of whole clips or of
single tokens; what adapters add can be switched off, so the reference is the same model and costs
no second copy of the weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from musictune.data.concepts import Concept


@dataclass(frozen=True)
class Compared:
    """Pairs of clips made for the same prompts, one of each preferred.

    Attributes:
        chosen, rejected: ``(pairs,)`` log-likelihood of each whole clip in nats under the policy,
            with gradients.
        chosen_reference, rejected_reference: ``(pairs,)`` the same under the reference; zeros
            where the objective needs none.
        chosen_tokens, rejected_tokens: ``(pairs,)`` float, how many tokens each clip has.
        mismatched: ``(clips,)`` log-ratio of policy to reference, in nats, of clips under prompts
            that are not theirs, without gradients; None where the objective needs none.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_reference: Tensor
    rejected_reference: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    mismatched: Tensor | None = None


@dataclass(frozen=True)
class Played:
    """Clips that the policy itself made, token by token.

    Attributes:
        tokens: ``(clips, codebooks, steps)`` log-probability of each token under the policy in
            nats, with gradients; 0 where ``mask`` is false.
        sampled: the same under the policy as it was when it played them, without gradients.
        kl: ``(clips, codebooks, steps)`` exact divergence of policy from reference over the whole
            vocabulary at each token, in nats, with gradients; 0 where ``mask`` is false.
        mask: ``(clips, codebooks, steps)`` bool, which tokens are music.
        advantages: ``(clips,)`` what :meth:`RolloutObjective.advantages` made of the rewards.
        values: ``(clips, steps)`` the reward expected before each step, with gradients for the
            regression only; None where the objective needs none.
    """

    tokens: Tensor
    sampled: Tensor
    kl: Tensor
    mask: Tensor
    advantages: Tensor
    values: Tensor | None = None


class Objective(ABC):
    """What alignment lowers."""

    name: ClassVar[str]
    """The short name on the command line."""


class PairObjective(Objective):
    """An objective over pairs that somebody, or some reward, has compared.

    Attributes:
        needs_reference: whether it compares with the reference.
        needs_mismatched: whether it wants clips under prompts that are not theirs.
        marks: two words that training puts before the prompts of chosen and of rejected clips.
    """

    needs_reference: ClassVar[bool] = True
    needs_mismatched: ClassVar[bool] = False
    marks: ClassVar[tuple[Concept, Concept] | None] = None

    @abstractmethod
    def loss(self, pairs: Compared) -> Tensor:
        """``(pairs,)`` losses."""


class RolloutObjective(Objective):
    """An objective over clips that the policy has just made, and their rewards.

    Attributes:
        beta: weight of the divergence from the reference.
    """

    needs_values: ClassVar[bool] = False
    beta: float

    def advantages(self, rewards: Tensor, groups: Tensor) -> Tensor:
        """What each clip is weighed by, ``(clips,)``: the reward itself unless overridden.

        Args:
            rewards: ``(clips,)`` finite.
            groups: ``(clips,)`` int64, the prompt each clip was made for.
        """
        return rewards

    @abstractmethod
    def loss(self, played: Played, beta: float) -> Tensor:
        """``(clips,)`` losses, of which the mean is lowered.

        Args:
            played: any part of the clips; their advantages were computed over all of them.
            beta: the weight of the divergence now; `beta` unless it is being controlled.
        """


def per_clip(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of each clip, ``(clips,)``.

    Args:
        values: ``(clips, codebooks, steps)``.
        mask: which of them count.
    """
    counted = torch.where(mask, values, 0.0).flatten(1).sum(1)
    return counted / mask.flatten(1).sum(1)
