"""What is said of a learned reward: its interval, its calibration, its curve, its warnings."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from musictune.evaluation.reward_quality import (
    caveat,
    held_out_accuracy,
    interval,
    learning_curve,
    reliability,
)
from musictune.metrics.base import Score
from musictune.training.feature_reward import RewardReport, RewardSettings, train_reward


def report(probability: list[float], groups: list[str]) -> RewardReport:
    held_out = tuple(range(len(groups)))
    return RewardReport((), held_out, torch.tensor(probability), tuple(groups), 1.0, 0.1, ())


def test_accuracy_counts_ties_half_and_widens_over_prompts() -> None:
    apart = held_out_accuracy(report([0.9, 0.2, 0.5, 0.7] * 5, [str(i) for i in range(20)]))
    assert apart.value == pytest.approx(2.5 / 4) and apart.n == 20
    # The same answers, but every prompt all right or all wrong.
    alike = held_out_accuracy(
        report([0.9] * 10 + [0.1] * 6 + [0.9] * 4, list("aaaaabbbbbccccccdddd"))
    )
    assert alike.value == pytest.approx(14 / 20)
    assert alike.low < apart.low < apart.value < apart.high
    assert alike.low >= 0 and alike.high <= 1


def test_accuracy_without_a_miss_is_not_certain() -> None:
    score = held_out_accuracy(report([0.9] * 12, [str(i // 2) for i in range(12)]))
    assert score.value == 1 and score.high == 1 and 0.4 < score.low < 0.7
    assert "over 6 prompts" in score.note


def test_one_prompt_has_no_interval_and_none_no_accuracy() -> None:
    one = held_out_accuracy(report([0.9, 0.1], ["a", "a"]))
    assert one.value == 0.5 and math.isnan(one.low)
    none = held_out_accuracy(report([], []))
    assert math.isnan(none.value) and none.n == 0
    assert "nothing was held out" in caveat(1000, none)


def test_reliability_by_hand() -> None:
    # Sure 0.95 and right three times of four; sure 0.55 (said the wrong way round) and wrong.
    bins, error = reliability(torch.tensor([0.95, 0.95, 0.95, 0.05, 0.45]))
    assert [one.count for one in bins] == [1, 0, 0, 0, 4]
    assert bins[-1].right == 0.75 and bins[-1].sure == pytest.approx(0.95)
    assert bins[0].right == 0 and math.isnan(bins[1].sure)
    assert error == pytest.approx((4 * 0.2 + 1 * 0.55) / 5)
    assert math.isnan(reliability(torch.empty(0))[1])


def test_who_tells_the_truth_is_calibrated() -> None:
    chance = torch.Generator().manual_seed(0)
    said = 0.5 + torch.rand(20_000, generator=chance) / 2
    true = torch.rand(20_000, generator=chance) < said
    honest = torch.where(true, said, 1 - said)
    assert reliability(honest)[1] < 0.015
    boast = torch.where(true, 0.99, 0.01)
    assert reliability(boast)[1] > 0.2


def planted(count: int) -> tuple[Tensor, Tensor, list[str]]:
    chance = torch.Generator().manual_seed(2)
    rows = torch.randn(2, count, 16, generator=chance)
    first = (rows[0] - rows[1]).sum(1, keepdim=True) > 0
    chosen, rejected = (torch.where(first, rows[i], rows[1 - i]) for i in (0, 1))
    return chosen, rejected, [str(i // 3) for i in range(count)]


def test_the_curve_rises_to_the_reward_itself() -> None:
    data, settings = planted(300), RewardSettings(members=2)
    _, found = train_reward(*data, settings)
    curve = learning_curve(*data, settings, found)
    assert [point.pairs for point in curve] == [16, 32, 64, 128, len(found.learned)]
    assert curve[-1].accuracy == found.accuracy == held_out_accuracy(found).value
    assert curve[0].low <= curve[0].accuracy <= curve[0].high
    assert curve[-1].accuracy > curve[0].accuracy + 0.05
    nothing = RewardSettings(members=2, held_out=0.0)
    assert learning_curve(*data, nothing, train_reward(*data, nothing)[1]) == []


def test_warnings() -> None:
    sound = Score(0.8, 0.7, 0.9, 50, "higher")
    assert caveat(5000, sound) == ""
    assert "150 comparisons are few" in caveat(150, sound)
    assert "cannot be told from chance" in caveat(5000, Score(0.55, 0.45, 0.65, 50, "higher"))
    assert interval(sound) == "80.0% (95 % interval 70.0% to 90.0%)"
    assert interval(Score(0.5, math.nan, math.nan, 2, "higher")) == "50.0%"
