"""A reward learned from feature rows: planted truth, chance, ensembles, bad input."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from musictune.errors import CheckFailed, InputError
from musictune.evaluation.reward_quality import held_out_accuracy
from musictune.training.feature_reward import (
    FeatureReward,
    RewardSettings,
    split_by_group,
    train_reward,
)

Planted = tuple[Tensor, Tensor, list[str]]


def planted(count: int, width: int = 24, seed: int = 0, random: bool = False) -> Planted:
    """Comparisons of four to a prompt, ordered by a hidden linear rule or by a coin."""
    chance = torch.Generator().manual_seed(seed)
    rule = torch.randn(width, generator=chance)
    rows = torch.randn(2, count, width, generator=chance)
    margin = (rows[0] - rows[1]) @ rule
    if random:
        margin = torch.randn(count, generator=chance)
    first = (margin > 0)[:, None]
    chosen, rejected = torch.where(first, rows[0], rows[1]), torch.where(first, rows[1], rows[0])
    # Features differ in size and place, as real ones do.
    size = torch.logspace(-2, 2, width)
    return chosen * size + 5, rejected * size + 5, [f"prompt {i // 4}" for i in range(count)]


def test_a_planted_rule_is_found() -> None:
    reward, report = train_reward(*planted(1000))
    assert report.accuracy > 0.95
    assert len(report.held_out) == 200
    assert held_out_accuracy(report).low > 0.9
    chosen, rejected, _ = planted(500, seed=0)  # of the same rule
    assert float((reward(chosen) > reward(rejected)).float().mean()) > 0.95


def test_a_coin_cannot_be_learned() -> None:
    covered = 0
    for seed in range(5):
        _, report = train_reward(*planted(400, seed=seed, random=True), RewardSettings(seed=seed))
        score = held_out_accuracy(report)
        covered += score.low <= 0.5 <= score.high
        assert 0.3 < report.accuracy < 0.7
    assert covered >= 4


def test_more_comparisons_teach_more() -> None:
    few = [train_reward(*planted(40, seed=s))[0] for s in range(3)]
    many = [train_reward(*planted(800, seed=s))[0] for s in range(3)]

    def right(rewards: Sequence[FeatureReward]) -> float:
        shares = []
        for seed, reward in enumerate(rewards):
            chosen, rejected, _ = planted(800, seed=seed)
            shares.append(float((reward(chosen[400:]) > reward(rejected[400:])).float().mean()))
        return sum(shares) / len(shares)

    assert right(many) > right(few) + 0.05


def test_swapping_all_votes_turns_the_reward_round() -> None:
    chosen, rejected, groups = planted(200)
    plain = RewardSettings(caution=0.0)
    reward, report = train_reward(chosen, rejected, groups, plain)
    turned, other = train_reward(rejected, chosen, groups, plain)
    assert torch.allclose(reward(chosen), -turned(chosen), atol=1e-3)
    assert other.accuracy == report.accuracy
    forth, back = reward.probability(chosen, rejected), reward.probability(rejected, chosen)
    assert torch.allclose(forth + back, torch.ones(200), atol=1e-6)


def test_it_is_on_the_scale_of_what_it_learned_from() -> None:
    chosen, rejected, groups = planted(200)
    reward, _ = train_reward(chosen, rejected, groups, RewardSettings(held_out=0.0))
    values = reward(torch.cat([chosen, rejected])).double()
    assert float(values.mean()) == pytest.approx(0, abs=1e-4)
    assert float(values.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_members_differ_most_far_from_what_was_heard() -> None:
    chosen, rejected, groups = planted(200)
    reward, _ = train_reward(chosen, rejected, groups, RewardSettings(caution=2.0))
    heads = reward.heads["outer"]
    assert all(not torch.equal(heads[0], other) for other in heads[1:])
    near = reward.each(chosen)
    far = reward.each(reward.centre + 10 * (chosen - reward.centre))
    assert float(far["spread"].mean()) > 5 * float(near["spread"].mean())
    assert torch.allclose(near["reward"], near["mean"] - 2 * near["spread"])
    alone, _ = train_reward(chosen, rejected, groups, RewardSettings(members=1))
    assert not alone.each(chosen)["spread"].any()


def test_equal_seeds_give_equal_bits() -> None:
    first, _ = train_reward(*planted(120))
    second, _ = train_reward(*planted(120))
    other, _ = train_reward(*planted(120), RewardSettings(seed=1))
    assert all(torch.equal(a, second.tensors()[n]) for n, a in first.tensors().items())
    assert not torch.equal(first.heads["outer"], other.heads["outer"])


def test_the_report_names_the_chosen_decay() -> None:
    _, report = train_reward(*planted(200, random=True))
    best = min(report.choices, key=lambda row: row["validation_loss"])
    assert report.decay == best["weight_decay"] >= 0.01  # of noise little is believed
    assert set(report.learned) | set(report.held_out) == set(range(200))


def test_a_hidden_layer_can_be_asked_for() -> None:
    chosen, rejected, groups = planted(160, width=8)
    reward, report = train_reward(
        chosen, rejected, groups, RewardSettings(hidden=8, steps=40, members=2)
    )
    assert reward.heads["inner"].shape[0] == 2
    assert report.accuracy > 0.7


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.floats(0.05, 0.9))
def test_no_prompt_is_on_both_sides(names: list[int], share: float) -> None:
    groups = [str(name) for name in names]
    chance = torch.Generator().manual_seed(0)
    if len(set(groups)) == 1:
        with pytest.raises(InputError, match="one prompt"):
            split_by_group(groups, share, chance)
        return
    learned, out = split_by_group(groups, share, chance)
    assert learned and out
    assert sorted(learned + out) == list(range(len(groups)))
    assert not {groups[i] for i in learned} & {groups[i] for i in out}


def test_features_that_do_not_vary_are_left_alone() -> None:
    chosen, rejected, groups = planted(100)
    same = torch.full((100, 3), 1e4)
    reward, _ = train_reward(torch.cat([chosen, same], 1), torch.cat([rejected, same], 1), groups)
    assert not reward.basis[-3:].any()
    moved = torch.cat([chosen, same + 1], 1)
    assert torch.equal(reward(moved), reward(torch.cat([chosen, same], 1)))


def test_nothing_to_learn_is_said() -> None:
    rows = torch.randn(20, 4)
    with pytest.raises(CheckFailed, match="same value"):
        train_reward(rows, rows, [str(i) for i in range(20)])


@pytest.mark.parametrize("count", [0, 1, 7])
def test_too_few_comparisons(count: int) -> None:
    chosen, rejected, groups = planted(8)
    with pytest.raises(InputError, match=f"{count} comparisons are too few.*8 are the least"):
        train_reward(chosen[:count], rejected[:count], groups[:count])


def test_too_few_beside_what_is_held_out() -> None:
    with pytest.raises(InputError, match="left to learn from; 8 or more"):
        train_reward(*planted(8), RewardSettings(held_out=0.3))


def test_bad_features() -> None:
    chosen, rejected, groups = planted(20)
    broken = chosen.clone()
    broken[3, 0], broken[5, 1] = float("nan"), float("inf")
    with pytest.raises(InputError, match=r"features of 2 of 20 .* the first of comparison 3"):
        train_reward(broken, rejected, groups)
    with pytest.raises(InputError, match="do not fit"):
        train_reward(chosen, rejected[:, :5], groups)
    with pytest.raises(InputError, match="do not fit"):
        train_reward(chosen, rejected, groups[:5])


@pytest.mark.parametrize(
    "wrong",
    [{"members": 0}, {"held_out": 1.0}, {"held_out": float("nan")}, {"caution": -1.0},
     {"hidden": -1}, {"steps": 0}, {"seed": -1}],
)  # fmt: skip
def test_bad_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} .* cannot be used; choose"):
        RewardSettings(**wrong)  # type: ignore[arg-type]
