"""What several objectives are made of."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.errors import InputError
from musictune.training.objectives.base import Compared, Played


def checked_number(
    name: str,
    value: float,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
) -> float:
    """``value``, if it is a number in the range that the bounds give.

    Raises:
        InputError: it is not.
    """
    bounds: list[tuple[str, float, Callable[[float, float], bool]]] = [
        ("above", above, operator.gt),
        ("at least", least, operator.ge),
        ("below", below, operator.lt),
        ("at most", most, operator.le),
    ]
    set_bounds = [bound for bound in bounds if math.isfinite(bound[1])]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and all(ok(value, end) for _, end, ok in set_bounds):
        return float(value)
    said = " and ".join(f"{word} {end:g}" for word, end, _ in set_bounds)
    raise InputError(f"{name} {value!r} must be a number {said}; correct that setting".strip())


# --- of pairs ---


def log_ratios(pairs: Compared) -> tuple[Tensor, Tensor]:
    """Log-ratio of policy to reference of chosen and rejected clips, each ``(pairs,)``, in nats.

    Each clip is subtracted from itself first. A clip of 6,000 tokens has a log-likelihood near
    -30,000, where fp32 has steps of 0.002; the difference of two such values close to each other
    is exact, while chosen minus rejected would round.
    """
    chosen = pairs.chosen.float() if pairs.chosen.itemsize < 4 else pairs.chosen
    rejected = pairs.rejected.float() if pairs.rejected.itemsize < 4 else pairs.rejected
    return chosen - pairs.chosen_reference.detach(), rejected - pairs.rejected_reference.detach()


def per_token(pairs: Compared) -> tuple[Tensor, Tensor]:
    """Mean log-likelihood of a token of the chosen and the rejected clips, each ``(pairs,)``."""
    return pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens


def preferred(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of a preference whose logit is ``margin``, where some labels are wrong.

    Args:
        margin: any shape; far from 0 the loss is linear or 0, never infinite.
        label_smoothing: the share of labels held to be wrong.
    """
    loss = -F.logsigmoid(margin)
    if label_smoothing == 0:
        return loss
    return (1 - label_smoothing) * loss - label_smoothing * F.logsigmoid(-margin)


# --- of rollouts ---


def per_place(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the tokens of each clip divided by the places that any clip has, ``(clips,)``.

    Unlike a mean over its own tokens this does not weigh the tokens of a short clip more, which
    would bias a policy gradient.

    Args:
        values: ``(clips, codebooks, steps)``.
        mask: which of them count.
    """
    return torch.where(mask, values, 0.0).flatten(1).sum(1) / mask[0].numel()


def later(kl: Tensor, mask: Tensor) -> Tensor:
    """What comes after each step, summed, ``(clips, 1, steps)``, without gradients.

    Args:
        kl: ``(clips, codebooks, steps)``.
        mask: which of them count.
    """
    steps = torch.where(mask, kl, 0.0).detach().sum(1, keepdim=True)
    return steps.flip(-1).cumsum(-1).flip(-1) - steps


def ratio_to_sampled(played: Played) -> Tensor:
    """Policy now over policy that played, per token, ``(clips, codebooks, steps)``.

    Cut at 20 nats either way (our choice), as fp32 would overflow at 88.
    """
    return (played.tokens - played.sampled.detach()).clamp(-20, 20).exp()


def in_groups(rewards: Tensor, groups: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Each clip's reward and those of its whole group, in float64.

    Args:
        rewards: ``(clips,)``.
        groups: ``(clips,)`` which group each clip is of; any numbers, in any order.
        name: of the objective, for the error.

    Returns:
        ``(clips, 1)`` rewards and ``(clips, clips)`` the rewards of the clips in the same group,
        NaN at all others.

    Raises:
        InputError: a group has a single clip, so that there is nothing to compare it with.
    """
    same = groups[:, None] == groups[None, :]
    if bool((same.sum(1) < 2).any()):
        raise InputError(
            f"objective {name} compares clips of one prompt, and a prompt has 1 clip; make at "
            "least 2 clips for each prompt"
        )
    values = rewards.detach().double()
    return values[:, None], torch.where(same, values[None, :], math.nan)
