"""Several rewards as one: on one scale, weighted, cautious where judges disagree, and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import CheckFailed, InputError
from musictune.metrics.base import Reward

_UNKNOWN = -4.0
_CONSTANT = 1e-6  # of the largest value: float32 does not tell less apart


class OneScale:
    """Reward: another's values in standard deviations from what a calibration set scored.

    What is not known (minus infinity) becomes a finite ``unknown``, so that no training sees an
    infinite reward. `fit` puts it one standard deviation beyond the worst clip of the calibration
    set (our choice): worse than all that were heard, and near enough to them that one such clip
    does not decide a whole batch.

    Args:
        reward: what scores; its values are finite or minus infinity.
        mean, deviation: of the calibration set, in the reward's own unit.
        unknown: what a clip gets whose value is not known, in standard deviations.

    Raises:
        InputError: a number is not finite, or the deviation is not above 0.
    """

    def __init__(
        self, reward: Reward, mean: float, deviation: float, unknown: float = _UNKNOWN
    ) -> None:
        name = _name(reward)
        if not (math.isfinite(mean) and math.isfinite(unknown)):
            raise InputError(
                f"reward {name}: mean {mean:g} and value of the unknown {unknown:g} must be finite"
            )
        if not (math.isfinite(deviation) and deviation > 0):
            raise InputError(
                f"reward {name}: a standard deviation of {deviation:g} must be finite and above 0"
            )
        self.reward = reward
        self.mean = mean
        self.deviation = deviation
        self.unknown = unknown

    @classmethod
    def fit(cls, reward: Reward, clips: Sequence[Clip], *, turned: bool = False) -> Self:
        """The scale on which the clips whose value is known have mean 0 and deviation 1.

        Args:
            reward: what scores.
            clips: the calibration set, such as what the untuned model plays.
            turned: whether less of it is wanted, as with a negative weight: then what is not known
                lies above the highest value, which is the worst.

        Raises:
            InputError: fewer than two clips have a value, all have the same, or one is NaN or
                plus infinity.
        """
        name = _name(reward)
        values = reward(clips).double()
        if bool((values.isnan() | (values == math.inf)).any()):
            raise InputError(
                f"reward {name} gives NaN or infinity on the calibration set; repair the reward"
            )
        known = values[values.isfinite()]
        if len(known) < 2:
            raise InputError(
                f"reward {name} knows the value of {len(known)} of {len(values)} calibration "
                f"clips; 2 or more are needed: give other clips or leave the reward out"
            )
        mean, deviation = float(known.mean()), float(known.std(correction=0))
        if deviation <= _CONSTANT * float(known.abs().max()):
            raise InputError(
                f"reward {name} is constant ({mean:g}) on all {len(known)} calibration clips: "
                f"there is nothing to learn from it; leave it out or give other prompts"
            )
        worst = float(known.max() if turned else known.min())
        unknown = (worst - mean) / deviation + (1.0 if turned else -1.0)
        return cls(reward, mean, deviation, unknown)

    @property
    def settings(self) -> dict[str, float]:
        """All but the reward, as keywords to build it again."""
        return {"mean": self.mean, "deviation": self.deviation, "unknown": self.unknown}

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)`` float32 in standard deviations."""
        values = self.reward(clips).double()
        scaled = (values - self.mean) / self.deviation
        return torch.where(values == -math.inf, self.unknown, scaled).float()


class Weighted:
    """Reward: the weighted sum of others; a negative weight turns one round.

    Where a part is not known (minus infinity) the sum is not known either, whichever sign the
    part's weight has; on one scale (`on_one_scale`) there is no such value.

    Args:
        parts: reward and weight by name.

    Raises:
        InputError: there are no parts, or a weight is 0 or not finite.
    """

    def __init__(self, parts: Mapping[str, tuple[Reward, float]]) -> None:
        if not parts:
            raise InputError("no rewards to add up; give one or more")
        for name, (_, weight) in parts.items():
            if not math.isfinite(weight) or weight == 0:
                raise InputError(
                    f"weight {weight:g} of reward {name} must be finite and not 0; leave the "
                    f"reward out to do without it"
                )
        self.parts = dict(parts)

    def each(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """``(clips,)`` float32 of each part by name, before it is weighted."""
        return {name: reward(clips) for name, (reward, _) in self.parts.items()}

    def total(self, each: Mapping[str, Tensor]) -> Tensor:
        """``(clips,)`` float32: the weighted sum of what `each` gave."""
        columns = [weight * each[name].double() for name, (_, weight) in self.parts.items()]
        unknown = torch.stack([each[name] == -math.inf for name in self.parts]).any(0)
        return torch.where(unknown, -math.inf, torch.stack(columns).sum(0)).float()

    def on_one_scale(self, clips: Sequence[Clip]) -> Weighted:
        """The same weights over parts of which each is measured in deviations on ``clips``.

        Raises:
            InputError: as by `OneScale.fit`.
        """
        return Weighted(
            {
                name: (OneScale.fit(reward, clips, turned=weight < 0), weight)
                for name, (reward, weight) in self.parts.items()
            }
        )

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)`` float32."""
        return self.total(self.each(clips))


class Ensemble:
    """Reward: the mean of several judges less ``caution`` times their spread.

    Where judges that were trained alike disagree, neither has seen such music: what they praise
    there is more likely their error (Coste et al. 2023, arXiv 2310.02743). The spread is the
    standard deviation over the members as they are, so that one member alone has none.

    Args:
        members: judges on one scale.
        caution: how much disagreement counts against a clip; 0 for the plain mean.

    Raises:
        InputError: there are no members, or the caution is negative or not finite.
    """

    def __init__(self, members: Sequence[Reward], caution: float = 1.0) -> None:
        if not members:
            raise InputError("no members in the ensemble; give one or more rewards")
        if not math.isfinite(caution) or caution < 0:
            raise InputError(f"caution {caution:g} must be finite and 0 or more; 1 is usual")
        self.members = tuple(members)
        self.caution = caution

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)`` float32; minus infinity where a member does not know the value."""
        values = torch.stack([member(clips).double() for member in self.members])
        unknown = (values == -math.inf).any(0)
        values = torch.where(unknown, 0.0, values)
        mean = values.mean(0)
        cautious = mean - self.caution * (values - mean).square().mean(0).sqrt()
        return torch.where(unknown, -math.inf, cautious).float()


def checked(reward: Reward, name: str) -> Reward:
    """The reward, refused under its name as soon as it answers with what is no reward.

    It gives ``(clips,)`` float32 on the CPU without gradients, finite or minus infinity, or raises:

        CheckFailed: it raised, gave NaN or plus infinity, or not one number for each clip.
        InputError: it said itself that its input cannot be used; the name is put before.
    """
    return _Checked(reward, name)


@dataclass(frozen=True)
class _Checked:
    reward: Reward
    name: str

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        try:
            values = self.reward(clips)
        except InputError as error:
            raise InputError(f"reward {self.name}: {error}") from error
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckFailed(
                f"reward {self.name} failed with {type(error).__name__}: {reason or 'no reason'}; "
                f"repair it or leave it out"
            ) from error
        if not isinstance(values, Tensor) or values.shape != (len(clips),):
            got = (
                f"a tensor of shape {tuple(values.shape)}"
                if isinstance(values, Tensor)
                else f"a {type(values).__name__}"
            )
            raise CheckFailed(
                f"reward {self.name} gave {got} for {len(clips)} clips; it must give a tensor of "
                f"shape ({len(clips)},)"
            )
        values = values.detach().float().cpu()
        wrong = values.isnan() | (values == math.inf)
        if bool(wrong.any()):
            first = int(wrong.nonzero()[0])
            source = clips[first].source or f"number {first}"
            raise CheckFailed(
                f"reward {self.name} gave {float(values[first]):g} for {int(wrong.sum())} of "
                f"{len(clips)} clips, first for clip {source}; it must give a finite number, or "
                f"minus infinity where it does not know"
            )
        return values


def _name(reward: Reward) -> str:
    return str(getattr(reward, "name", "") or type(reward).__name__)
