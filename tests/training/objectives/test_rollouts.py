"""Losses over rollouts: values worked by hand, advantages, clipping, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from musictune.errors import InputError
from musictune.training.objectives.base import RolloutObjective
from musictune.training.objectives.expert import Expert
from musictune.training.objectives.grpo import GRPO
from musictune.training.objectives.reinforce import Reinforce
from musictune.training.objectives.rloo import RLOO
from tests.training.objectives.toys import numbers, played

COMPARING = [RLOO(), GRPO(), GRPO(scale="none"), Expert()]

# One clip of 2 codebooks and 3 steps of which, as in the delayed layout, two corners are no music.
TOKENS = torch.tensor([[[-1.0, -2.0, 0.0], [0.0, -0.5, -3.0]]], dtype=torch.float64)
MASK = torch.tensor([[[True, True, False], [False, True, True]]])
KL = torch.tensor([[[0.1, 0.2, 0.0], [0.0, 0.3, 0.4]]], dtype=torch.float64)


def given_groups(rewards: list[float], groups: list[int]) -> tuple[Tensor, Tensor]:
    return numbers(rewards), torch.tensor(groups)


# --- advantages ---


def test_rloo_advantages_by_hand() -> None:
    found = RLOO().advantages(*given_groups([1, 2, 6, 10, 4], [7, 7, 7, 3, 3]))
    assert found.tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5, 6, -6])


def test_grpo_advantages_by_hand() -> None:
    rewards, groups = given_groups([1, 2, 6, 10, 4], [7, 7, 7, 3, 3])
    found = GRPO(scale="none").advantages(rewards, groups)
    assert found.tolist() == pytest.approx([-2, -1, 3, 3, -3])
    # squares about the means: 4 + 1 + 9 = 14 over 2, and 9 + 9 = 18 over 1
    first, second = math.sqrt(7) + 1e-4, math.sqrt(18) + 1e-4
    expected = [-2 / first, -1 / first, 3 / first, 3 / second, -3 / second]
    assert GRPO().advantages(rewards, groups).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rewards", "share", "kept"),
    [
        ([1, 5, 3, 4], 0.25, [0, 1, 0, 0]),
        ([1, 5, 3, 4], 0.5, [0, 1, 0, 1]),
        ([1, 5, 3, 4], 0.1, [0, 1, 0, 0]),  # at least one
        ([1, 5, 3, 4], 0.7, [0, 1, 0, 1]),  # 2.8 clips are 2
        ([1, 5, 3, 4], 0.75, [0, 1, 1, 1]),
        ([5, 5, 3, 4], 0.25, [1, 1, 0, 0]),  # as good as the best
        ([0, 0, 0, 1], 0.5, [0, 0, 0, 1]),  # never the worst
        ([2, 2, 2, 2], 0.5, [0, 0, 0, 0]),
        ([0.3, 0.1, 0.2] * 10, 0.1, [1, 0, 0] * 10),
    ],
)
def test_expert_keeps_the_best_share(rewards: list[float], share: float, kept: list[float]) -> None:
    found = Expert(share=share).advantages(numbers(rewards), torch.zeros(len(rewards)))
    assert found.tolist() == kept


def test_expert_chooses_within_each_group() -> None:
    found = Expert(share=0.5).advantages(*given_groups([1, 100, 2, 101, 0, 99], [0, 1, 0, 1, 0, 1]))
    assert found.tolist() == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("objective", COMPARING, ids=lambda o: o.name)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1e-30, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_teach_nothing(
    objective: RolloutObjective, value: float, dtype: torch.dtype
) -> None:
    rewards = torch.full((7,), value, dtype=dtype)
    found = objective.advantages(rewards, torch.tensor([0, 1, 0, 1, 0, 1, 1]))
    assert found.dtype == dtype
    assert found.tolist() == [0.0] * 7


def test_one_group_of_equal_rewards_beside_another() -> None:
    found = GRPO().advantages(*given_groups([0.1, 0.1, 0.1, 1, 2], [0, 0, 0, 1, 1]))
    assert found[:3].tolist() == [0, 0, 0]
    assert found[3:].tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)], rel=1e-3)


@pytest.mark.parametrize("objective", COMPARING, ids=lambda o: o.name)
@given(data=st.data())
def test_the_order_of_clips_and_the_names_of_groups_do_not_matter(
    objective: RolloutObjective, data: st.DataObject
) -> None:
    sizes = data.draw(st.lists(st.integers(2, 5), min_size=1, max_size=4))
    groups = torch.tensor([g for g, size in enumerate(sizes) for _ in range(size)])
    some = st.floats(-100, 100).map(lambda x: round(x, 2))
    rewards = numbers(data.draw(st.lists(some, min_size=len(groups), max_size=len(groups))))
    order = torch.tensor(data.draw(st.permutations(range(len(groups)))))
    there = objective.advantages(rewards, groups)
    torch.testing.assert_close(
        objective.advantages(rewards[order], 1000 - 3 * groups[order]), there[order]
    )


@given(rewards=st.lists(st.floats(-100, 100), min_size=2, max_size=8), shift=st.floats(-50, 50))
def test_a_shift_of_all_rewards_does_not_matter(rewards: list[float], shift: float) -> None:
    groups = torch.zeros(len(rewards))
    for objective in (RLOO(), GRPO(), GRPO(scale="none")):
        there = objective.advantages(numbers(rewards), groups)
        shifted = objective.advantages(numbers(rewards) + shift, groups)
        torch.testing.assert_close(shifted, there, atol=1e-8, rtol=1e-8)
        assert there.sum().item() == pytest.approx(0, abs=1e-9)
    scale = len(rewards) / (len(rewards) - 1)
    torch.testing.assert_close(
        RLOO().advantages(numbers(rewards), groups),
        scale * GRPO(scale="none").advantages(numbers(rewards), groups),
    )


@pytest.mark.parametrize("objective", COMPARING, ids=lambda o: o.name)
def test_a_single_clip_has_nothing_to_be_compared_with(objective: RolloutObjective) -> None:
    with pytest.raises(InputError, match=f"objective {objective.name} .*at least 2 clips"):
        objective.advantages(numbers([1, 2, 3]), torch.tensor([0, 0, 1]))


def test_reinforce_takes_rewards_as_they_are() -> None:
    rewards, groups = given_groups([1, -2, 3], [0, 0, 1])
    assert Reinforce().advantages(rewards, groups).tolist() == [1, -2, 3]


# --- losses ---


def test_rloo_by_hand() -> None:
    """-(2 x (-1 - 2 - 0.5 - 3)) + 0.5 x (0.1 + 0.2 + 0.3 + 0.4), over 2 x 3 places."""
    loss = RLOO().loss(played(TOKENS, [2.0], kl=KL, mask=MASK), 0.5)
    assert loss.tolist() == pytest.approx([(13 + 0.5) / 6])


def test_rloo_with_the_divergence_to_come_by_hand() -> None:
    """After step 0 come 0.2 + 0.3 + 0.4 = 0.9 nats, after step 1 0.4, after step 2 none."""
    loss = RLOO(future_kl=True).loss(played(TOKENS, [2.0], kl=KL, mask=MASK), 0.5)
    weighed = -(2 - 0.45) * -1 - (2 - 0.2) * (-2 - 0.5) - 2 * -3
    assert loss.tolist() == pytest.approx([(weighed + 0.5) / 6])


@pytest.mark.parametrize("future_kl", [False, True])
def test_reinforce_by_hand(future_kl: bool) -> None:
    """Reward 2; 1, 3 and 2.5 were expected before the steps: surprises 1, -1, -0.5."""
    values = torch.tensor([[1.0, 3.0, 2.5]], dtype=torch.float64, requires_grad=True)
    objective = Reinforce(value_weight=0.1, future_kl=future_kl)
    loss = objective.loss(played(TOKENS, [2.0], kl=KL, mask=MASK, values=values), 0.5)
    ahead = [0.45, 0.2, 0.0] if future_kl else [0.0, 0.0, 0.0]
    weights = [1 - ahead[0], -1 - ahead[1], -0.5 - ahead[2]]
    policy = -(weights[0] * -1 + weights[1] * (-2 - 0.5) + weights[2] * -3)
    assert loss.tolist() == pytest.approx([(policy + 0.5) / 6 + 0.1 * (1 + 1 + 0.25) / 3])
    loss.sum().backward()
    # only the regression: twice the error over three steps
    assert values.grad is not None
    assert values.grad[0].tolist() == pytest.approx([0.1 * 2 * e / 3 for e in (-1, 1, 0.5)])


def test_values_of_steps_without_music_do_not_count() -> None:
    mask = torch.tensor([[[True, True, False], [False, True, False]]])
    losses = [
        Reinforce().loss(played(TOKENS, [2.0], mask=mask, values=numbers([1, 3, last])[None]), 0.0)
        for last in (1e6, -7)
    ]
    torch.testing.assert_close(*losses)


def test_reinforce_needs_values() -> None:
    with pytest.raises(ValueError, match="values"):
        Reinforce().loss(played(TOKENS, [2.0], mask=MASK), 0.1)


@pytest.mark.parametrize("scale", ["std", "none"])
def test_grpo_by_hand(scale: str) -> None:
    """Ratios 1.1, 2, 1 and 0.5, with 0.8 to 1.3 allowed."""
    ratios = torch.tensor([[[1.1, 2.0, 1.0], [1.0, 1.0, 0.5]]], dtype=torch.float64)
    sampled = TOKENS - ratios.log()
    objective = GRPO(scale=scale, clip_low=0.2, clip_high=0.3)  # type: ignore[arg-type]
    places = 4 if scale == "std" else 6
    up = objective.loss(played(TOKENS, [2.0], sampled=sampled, kl=KL, mask=MASK), 0.5)
    # praised: at most 1.3 is counted, but 0.5 as it is
    assert up.tolist() == pytest.approx([(-2 * (1.1 + 1.3 + 1.0 + 0.5) + 0.5) / places])
    down = objective.loss(played(TOKENS, [-2.0], sampled=sampled, kl=KL, mask=MASK), 0.5)
    # blamed: 2 as it is, at least 0.8
    assert down.tolist() == pytest.approx([(2 * (1.1 + 2.0 + 1.0 + 0.8) + 0.5) / places])


def test_grpo_lets_go_of_what_is_clipped() -> None:
    tokens = TOKENS.clone().requires_grad_()
    ratios = torch.tensor([[[1.1, 2.0, 1.0], [1.0, 1.0, 0.5]]], dtype=torch.float64)
    objective = GRPO(scale="none")
    objective.loss(
        played(tokens, [6.0], sampled=TOKENS - ratios.log(), mask=MASK), 0.0
    ).sum().backward()
    assert tokens.grad is not None
    expected = torch.tensor([[[-1.1, 0, 0], [0, -1.0, -0.5]]], dtype=torch.float64)
    torch.testing.assert_close(tokens.grad, expected)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_grpo_survives_a_policy_that_ran_away(advantage: float) -> None:
    tokens = torch.tensor([[[-0.1, -500.0]]], requires_grad=True)
    sampled = torch.tensor([[[-500.0, -0.1]]])
    loss = GRPO().loss(played(tokens, [advantage], sampled=sampled), 0.1)
    loss.sum().backward()
    assert tokens.grad is not None
    assert bool(loss.isfinite().all() and tokens.grad.isfinite().all())


def test_expert_by_hand() -> None:
    """Per token of the imitated clip; the divergence of both."""
    tokens, kl, mask = (part.expand(2, -1, -1) for part in (TOKENS, KL, MASK))
    loss = Expert().loss(played(tokens, [1.0, 0.0], kl=kl, mask=mask), 0.5)
    assert loss.tolist() == pytest.approx([(6.5 + 0.5) / 4, 0.5 / 4])


def test_expert_is_imitation_of_the_best() -> None:
    """The gradient over all clips is that over the kept ones alone, times their share."""
    torch.manual_seed(0)
    scores = torch.randn(8, 2, 3, 5, dtype=torch.float64, requires_grad=True)
    rewards = torch.randn(8, dtype=torch.float64)
    tokens = scores.log_softmax(-1)[..., 0]
    objective = Expert(share=0.25)
    weights = objective.advantages(rewards, torch.zeros(8))
    objective.loss(played(tokens, weights.tolist()), 0.0).mean().backward()
    assert scores.grad is not None
    found, scores.grad = scores.grad, None
    best = rewards.topk(2).indices
    (-scores[best].log_softmax(-1)[..., 0]).mean().backward()
    torch.testing.assert_close(found, 0.25 * scores.grad)


@pytest.mark.parametrize("objective", [Reinforce(), *COMPARING], ids=lambda o: o.name)
def test_what_is_not_music_does_not_count(objective: RolloutObjective) -> None:
    values = torch.ones(1, 3, dtype=torch.float64)
    clean = objective.loss(played(TOKENS, [2.0], kl=KL, mask=MASK, values=values), 0.5)
    dirt = torch.where(MASK, 0.0, 99.0)
    dirty = played(*(TOKENS + dirt, [2.0]), sampled=TOKENS, kl=KL + dirt, mask=MASK, values=values)
    torch.testing.assert_close(objective.loss(dirty, 0.5), clean)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Reinforce(beta=-0.1), "beta -0.1 must be a number at least 0"),
        (lambda: Reinforce(value_weight=0), "value_weight 0 must"),
        (lambda: RLOO(beta=math.nan), "beta nan must"),
        (lambda: GRPO(beta=-1), "beta -1 must"),
        (lambda: GRPO(scale="var"), "scale 'var' must be std or none"),  # type: ignore[arg-type]
        (lambda: GRPO(clip_low=0), "clip_low 0 must"),
        (lambda: GRPO(clip_low=1.5), "clip_low 1.5 must be a number above 0 and at most 1"),
        (lambda: GRPO(clip_high=-0.2), "clip_high -0.2 must"),
        (lambda: Expert(share=0), "share 0 must"),
        (lambda: Expert(share=1), "share 1 must be a number above 0 and below 1"),
        (lambda: Expert(beta=-1), "beta -1 must"),
    ],
)
def test_settings_out_of_range(build: Callable[[], RolloutObjective], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build()
