"""A reward learned from comparisons of feature rows: an ensemble of Bradley-Terry scores.

MusicRL (arXiv 2402.04229) and TuneJury (arXiv 2606.17006) learn such rewards from listeners' votes.
Each member learns from prompts drawn with replacement, and the prompts it did not draw choose how
simple all of them are. The reward is the members' mean less their spread (Coste et al. 2023, arXiv
2310.02743), in standard deviations over the clips that were learned from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from musictune.errors import CheckFailed, InputError
from musictune.training.bradley_terry import fit_hidden, fit_linear, scores

FEWEST = 8
"""Comparisons that anything can be learned from at all; our choice."""

_COMPONENTS = 256  # principal components of the features at most
_DECAYS = tuple(
    10.0**exponent for exponent in (-5.5, -4.5, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0, 0.0)
)
_HIDDEN_DECAYS = (0.01, 0.1, 1.0, 3.0)
_CONSTANT = 1e-6  # spread of a feature, relative to its size, below which it says nothing
_HEADS = ("outer", "inner", "bias")


@dataclass(frozen=True)
class RewardSettings:
    """How a reward learns from comparisons.

    Attributes:
        members: of the ensemble.
        hidden: width of a hidden layer; 0 for scores that are linear in the features, which small
            numbers of votes ask for.
        steps: the most that a hidden layer is trained for; linear scores need no such number.
        held_out: share of the comparisons kept to judge the reward by, whole prompts at a time.
        caution: how much the members' spread counts against a clip.
        seed: of everything random.

    Raises:
        InputError: a value out of range.
    """

    members: int = 5
    hidden: int = 0
    steps: int = 300
    held_out: float = 0.2
    caution: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("members", 1, 100),
            ("hidden", 0, 4096),
            ("steps", 1, 100_000),
            ("held_out", 0.0, 0.9),
            ("caution", 0.0, 100.0),
            ("seed", 0, 2**62),
        ):
            value = getattr(self, name)
            if not least <= value <= most:  # refuses NaN too
                raise InputError(f"{name} {value} cannot be used; choose {least} to {most}")


@dataclass(frozen=True)
class FeatureReward:
    """Scores of rows of features.

    Attributes:
        centre, scale: ``(width,)`` what is taken from the features, and what they are divided by.
        basis: ``(width, components)`` the directions of the features that are looked at.
        heads: the members' scores over components, see `bradley_terry.Weights`.
        caution: how much their spread counts.
        mean, deviation: of the cautious score over the clips that were learned from.
    """

    centre: Tensor
    scale: Tensor
    basis: Tensor
    heads: dict[str, Tensor]
    caution: float
    mean: float
    deviation: float

    @torch.no_grad()
    def members(self, features: Tensor) -> Tensor:
        """``(members, clips)`` scores in nats: differences are the logarithms of odds."""
        inputs = ((features.float() - self.centre) / self.scale) @ self.basis
        return scores(self.heads, inputs)

    def each(self, features: Tensor) -> dict[str, Tensor]:
        """``reward``, and the ``mean`` and ``spread`` of the members behind it, ``(clips,)``.

        All in standard deviations of the reward; ``reward`` is ``mean - caution * spread``.
        """
        found = self.members(features)
        middle, spread = found.mean(0), found.std(0, correction=0)
        mean, spread = (middle - self.mean) / self.deviation, spread / self.deviation
        return {"reward": mean - self.caution * spread, "mean": mean, "spread": spread}

    def __call__(self, features: Tensor) -> Tensor:
        """``(clips,)`` float32 of ``(clips, width)``."""
        return self.each(features)["reward"]

    def probability(self, first: Tensor, second: Tensor) -> Tensor:
        """``(pairs,)`` the chance that ``first`` is preferred, the mean over the members."""
        return torch.sigmoid(self.members(first) - self.members(second)).mean(0)

    def tensors(self) -> dict[str, Tensor]:
        """All but the three numbers."""
        kept = {"centre": self.centre, "scale": self.scale, "basis": self.basis}
        return kept | self.heads

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Self:
        """From what `tensors` gave and the numbers by name.

        Raises:
            KeyError, TypeError, ValueError: something is missing, of a wrong shape or not finite.
        """
        centre, scale, basis = (tensors[name] for name in ("centre", "scale", "basis"))
        heads = {name: tensors[name] for name in _HEADS if name in tensors}
        if not len(centre) == len(scale) == len(basis) or basis.dim() != 2:
            raise ValueError("its tensors are of different widths")
        shapes = {name: tuple(value.shape) for name, value in heads.items()}
        members, width = shapes["outer"]
        inputs = basis.shape[1]
        wanted: dict[str, tuple[int, ...]] = {"outer": (members, inputs)}
        if "inner" in heads:
            wanted = {
                "inner": (members, inputs, width), "bias": (members, width),
                "outer": (members, width),
            }  # fmt: skip
        if shapes != wanted:
            raise ValueError(f"its scores have shapes {shapes}, not {wanted}")
        plain = [float(numbers[name]) for name in ("caution", "mean", "deviation")]
        if not all(
            torch.isfinite(value).all() for value in (centre, scale, basis, *heads.values())
        ):
            raise ValueError("its weights are not finite")
        if not all(map(math.isfinite, plain)) or plain[2] <= 0:
            raise ValueError("its scale is not finite")
        return cls(centre, scale, basis, heads, *plain)


@dataclass(frozen=True)
class RewardReport:
    """How the learning went.

    Attributes:
        learned, held_out: indices of the comparisons on either side.
        probability: ``(held_out,)`` chance that the reward gave to what was chosen.
        groups: ``(held_out,)`` the prompt of each.
        training_accuracy: share of the comparisons learned from that are in order.
        decay: the weight decay chosen.
        choices: a row for each weight decay tried, means over the members: ``weight_decay``,
            ``training_loss``, ``validation_loss`` (nats per comparison), ``validation_accuracy``;
            validation is on the prompts that a member did not draw.
    """

    learned: tuple[int, ...]
    held_out: tuple[int, ...]
    probability: Tensor
    groups: tuple[str, ...]
    training_accuracy: float
    decay: float
    choices: tuple[dict[str, float], ...]

    @property
    def accuracy(self) -> float:
        """Share of the held-out comparisons in order, a tie half; NaN if there are none."""
        return float(in_order(self.probability).mean())


def in_order(probability: Tensor) -> Tensor:
    """1 where what was chosen scores higher, 0 where lower, and a half for equal scores."""
    return (probability > 0.5).double() + (probability == 0.5).double() / 2


def train_reward(
    chosen: Tensor,
    rejected: Tensor,
    groups: Sequence[str],
    settings: RewardSettings = RewardSettings(),
) -> tuple[FeatureReward, RewardReport]:
    """Learn which rows of features are preferred.

    Args:
        chosen, rejected: ``(pairs, width)``.
        groups: the prompt of each comparison; one is never on both sides of the held-out split.
        settings: how.

    Raises:
        InputError: shapes that do not fit, features that are not finite, too few comparisons, or
            all of one prompt where some are to be held out.
        CheckFailed: what was learned does not depend on the features.
    """
    _check(chosen, rejected, groups)
    chance = torch.Generator().manual_seed(settings.seed)
    learned, held_out = split_by_group(groups, settings.held_out, chance)
    if len(learned) < FEWEST:
        raise InputError(
            f"{len(learned)} of {len(groups)} comparisons are left to learn from; {FEWEST} or more "
            "are needed: hold out less or collect more votes"
        )
    high, low = chosen[learned].float(), rejected[learned].float()
    centre, scale, basis = _axes(torch.cat([high, low]), settings.seed)
    inputs = [(((rows - centre) / scale) @ basis).double() for rows in (high, low)]
    # Mean square length 1, so that one range of weight decays suits all features.
    size = float(torch.cat(inputs).square().sum(1).mean().sqrt()) or 1.0
    inputs = [rows / size for rows in inputs]

    drawn, left = _resampled([groups[index] for index in learned], settings.members, chance)
    decays = torch.tensor(_HIDDEN_DECAYS if settings.hidden else _DECAYS, dtype=torch.float64)
    tried = len(decays)
    problems = (drawn.repeat(tried, 1), left.repeat(tried, 1))
    decay = decays.repeat_interleave(settings.members)
    if settings.hidden:
        # Nothing is solved to the last digit here, so half the digits do.
        single = [value.float() for value in (*inputs, *problems, decay)]
        width, steps = settings.hidden, settings.steps
        fitted = fit_hidden(*single, width=width, steps=steps, seed=settings.seed)
    else:
        fitted = fit_linear(inputs[0], inputs[1], *problems, decay)
    columns = {
        "training_loss": fitted.training,
        "validation_loss": fitted.validation,
        "validation_accuracy": fitted.accuracy,
    }
    means = {name: value.view(tried, -1).mean(1) for name, value in columns.items()}
    best = int(means["validation_loss"].argmin())
    kept = slice(best * settings.members, (best + 1) * settings.members)
    heads = {name: value[kept].float().contiguous() for name, value in fitted.weights.items()}
    raw = FeatureReward(centre, scale, basis / size, heads, settings.caution, 0.0, 1.0)
    reward = _standardised(raw, torch.cat([high, low]))
    report = RewardReport(
        learned=tuple(learned),
        held_out=tuple(held_out),
        probability=reward.probability(chosen[held_out], rejected[held_out]),
        groups=tuple(groups[index] for index in held_out),
        training_accuracy=float(in_order(reward.probability(high, low)).mean()),
        decay=float(decays[best]),
        choices=tuple(
            {"weight_decay": float(decays[row])}
            | {name: float(value[row]) for name, value in means.items()}
            for row in range(tried)
        ),
    )
    return reward, report


def split_by_group(
    groups: Sequence[str], share: float, chance: torch.Generator
) -> tuple[list[int], list[int]]:
    """Indices to learn from and to hold out: whole groups, in random order, until ``share`` is out.

    Raises:
        InputError: ``share`` is above 0 and there is one group only.
    """
    names = list(dict.fromkeys(groups))
    if not share:
        return list(range(len(groups))), []
    if len(names) < 2:
        raise InputError(
            f"all {len(groups)} comparisons are of one prompt, so that none can be held out; "
            "collect votes on other prompts or hold out 0"
        )
    counts = {name: 0 for name in names}
    for group in groups:
        counts[group] += 1
    out: set[str] = set()
    total = 0
    for place in torch.randperm(len(names), generator=chance).tolist()[:-1]:
        if total >= share * len(groups):
            break
        out.add(names[place])
        total += counts[names[place]]
    learned = [index for index, group in enumerate(groups) if group not in out]
    return learned, [index for index, group in enumerate(groups) if group in out]


def _check(chosen: Tensor, rejected: Tensor, groups: Sequence[str]) -> None:
    if chosen.dim() != 2 or chosen.shape != rejected.shape or len(chosen) != len(groups):
        raise InputError(
            f"features {list(chosen.shape)} and {list(rejected.shape)} of {len(groups)} "
            "comparisons do not fit; give (pairs, width) twice and one group for each pair"
        )
    if len(groups) < FEWEST:
        raise InputError(
            f"{len(groups)} comparisons are too few to learn from; {FEWEST} are the least, and "
            "some hundreds make sense: collect more votes"
        )
    broken = ~(torch.isfinite(chosen) & torch.isfinite(rejected)).all(1)
    if broken.any():
        raise InputError(
            f"features of {int(broken.sum())} of {len(groups)} comparisons are not finite, the "
            f"first of comparison {int(broken.nonzero()[0])}; leave those out"
        )


def _axes(rows: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centre and scale ``(width,)`` of the features, and their leading directions."""
    centre, scale = rows.mean(0), rows.std(0, correction=0)
    # What does not vary here would be noise times its inverse elsewhere.
    same = scale <= _CONSTANT * rows.abs().amax(0)
    scale = torch.where(same, 1.0, scale)
    rows = torch.where(same, 0.0, (rows - centre) / scale)
    if min(rows.shape) <= 2 * _COMPONENTS:
        _, sizes, axes = torch.linalg.svd(rows, full_matrices=False)
        axes = axes.T
    else:
        with torch.random.fork_rng([]):  # the routine draws from torch's own
            torch.manual_seed(seed)
            _, sizes, axes = torch.svd_lowrank(rows, q=_COMPONENTS + 16, niter=4)
    live = int((sizes > 1e-5 * sizes[0]).sum()) if sizes[0] > 0 else 1
    axes = axes[:, : min(live, _COMPONENTS)]
    return centre, scale, torch.where(same[:, None], 0.0, axes).contiguous()


def _resampled(
    groups: Sequence[str], members: int, chance: torch.Generator
) -> tuple[Tensor, Tensor]:
    """How often each member draws each comparison, and 1 where it does not, ``(members, pairs)``.

    Prompts are drawn, with all their comparisons, even if they are few: comparisons of one prompt
    share clips, and would give away the answer. Of a single prompt comparisons are drawn.
    """
    names = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    units = torch.tensor([names[group] for group in groups])
    if len(names) < 2:
        units = torch.arange(len(groups))
    count = int(units.max()) + 1
    rows: list[Tensor] = []
    while len(rows) < members:
        times = torch.randint(count, (count,), generator=chance).bincount(minlength=count)
        if (times == 0).any():  # it must have something to be judged by
            rows.append(times[units].double())
    drawn = torch.stack(rows)
    return drawn, (drawn == 0).double()


def _standardised(raw: FeatureReward, features: Tensor) -> FeatureReward:
    values = raw(features).double()
    mean, deviation = float(values.mean()), float(values.std(correction=0))
    if not math.isfinite(deviation) or deviation < 1e-9:
        raise CheckFailed(
            "the learned reward gives all clips the same value: what was chosen and rejected has "
            "the same features; use other features or check the votes"
        )
    return FeatureReward(raw.centre, raw.scale, raw.basis, raw.heads, raw.caution, mean, deviation)
