"""Policy gradients against the exact ones of a policy small enough to write out all its music.

Two codebooks, three steps, three codes. What is played at a step depends on both codes of the step
before; a clip ends after a step whose first code is the last one, so that clips differ in length.
Every component of the estimated gradient must lie as near the exact one as its own standard error
says, at a level that among all of them a right estimator is refused once in 370 times ("3 sigma").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from scipy import stats
from torch import Tensor

from musictune.training.objectives.base import Played, RolloutObjective, per_clip
from musictune.training.objectives.grpo import GRPO
from musictune.training.objectives.reinforce import Reinforce
from musictune.training.objectives.rloo import RLOO
from musictune.training.objectives.terms import per_place

BOOKS, STEPS, CODES, EACH = 2, 3, 3, 4
PLACES = BOOKS * STEPS
BETA = 0.7
Loss = Callable[[Played], Tensor]


@dataclass(frozen=True)
class World:
    """The policy's scores ``(contexts, codebooks, codes)``, a reference's, and rewards.

    A context is the codes of the step before, or the start at the first step.
    """

    scores: Tensor
    reference: Tensor
    rewards: Tensor  # one for each clip that can be played
    everything: Tensor  # (clips, codebooks, steps) all of them, 0 after the end
    values: Tensor  # (steps, contexts) what somebody might expect

    def contexts(self, codes: Tensor) -> Tensor:
        """``(clips, steps)`` of clips ``(clips, codebooks, steps)``."""
        before = 1 + codes[:, 0, :-1] * CODES + codes[:, 1, :-1]
        step = torch.arange(1, STEPS) * (1 + CODES**2)
        return torch.cat([torch.zeros(len(codes), 1, dtype=torch.int64), before + step], 1)

    def tokens(self, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability, divergence and mask, ``(clips, codebooks, steps)``."""
        ended = (codes[:, 0] == CODES - 1).cumsum(1) - (codes[:, 0] == CODES - 1).long() > 0
        mask = (~ended)[:, None].expand(-1, BOOKS, -1)
        contexts = self.contexts(codes)
        logs, before = (table[contexts].transpose(1, 2).log_softmax(-1) for table in self.tables)
        tokens = logs.gather(-1, codes[..., None])[..., 0]
        return tokens, (logs.exp() * (logs - before)).sum(-1), mask

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        return self.scores, self.reference

    def chances(self) -> Tensor:
        """How likely each of all clips is, with gradients."""
        tokens, _, mask = self.tokens(self.everything)
        return torch.where(mask, tokens, 0.0).sum((1, 2)).exp()


def make_world() -> World:
    generator = torch.Generator().manual_seed(11)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    codes = torch.cartesian_prod(*[torch.arange(CODES)] * PLACES).unflatten(1, (BOOKS, STEPS))
    contexts = STEPS * (1 + CODES**2)
    made = World(
        (0.7 * some(contexts, BOOKS, CODES)).requires_grad_(),
        0.7 * some(contexts, BOOKS, CODES),
        torch.zeros(0),
        codes,
        2 + some(contexts),
    )
    _, _, mask = made.tokens(codes)
    codes = codes[(mask | (codes == 0)).all(1).all(1)]
    return replace(made, everything=codes, rewards=3 + some(len(codes)))


WORLD = make_world()


def estimates(
    advantages: Callable[[Tensor, Tensor], Tensor], loss: Loss, count: int = 700, clips: int = 64
) -> Tensor:
    """Gradients of the mean loss, ``(batches, components)``, of clips that the policy plays."""
    generator = torch.Generator().manual_seed(5)
    chances = WORLD.chances().detach()
    drawn = torch.multinomial(chances, count * clips, True, generator=generator)
    drawn = drawn.unflatten(0, (count, clips))
    groups = torch.arange(clips) // EACH
    weights = torch.stack([advantages(rewards, groups) for rewards in WORLD.rewards[drawn]])

    def cost(scores: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
        tokens, kl, mask = replace(WORLD, scores=scores).tokens(codes)
        expected = WORLD.values[WORLD.contexts(codes)]
        return loss(Played(tokens, tokens.detach(), kl, mask, weights, expected)).mean()

    every = torch.func.vmap(torch.func.grad(cost), in_dims=(None, 0, 0))
    found: Tensor = every(WORLD.scores.detach(), WORLD.everything[drawn], weights)
    return found.flatten(1)


def of_objective(objective: RolloutObjective, beta: float) -> Tensor:
    return estimates(objective.advantages, lambda played: objective.loss(played, beta))


def worst(found: Tensor, exact: Tensor) -> float:
    """The largest distance from the exact gradient in standard errors."""
    error = found.std(0) / len(found) ** 0.5
    apart = (found.mean(0) - exact.flatten()).abs()
    never = error < 1e-12
    assert float(apart[never].max() if never.any() else 0.0) < 1e-10
    return float((apart[~never] / error[~never]).max())


def allowed(components: int) -> float:
    """3 sigma for the largest of so many."""
    return float(stats.norm.isf(stats.norm.sf(3) / components))


LIMIT = allowed(WORLD.scores.numel())


def exact(beta: float = 0.0, moving: bool = False) -> Tensor:
    """Gradient of beta times divergence minus expected reward.

    Args:
        beta: of the divergence of whole clips.
        moving: whether the divergence is also differentiated through the states passed.
    """
    chances = WORLD.chances()
    _, kl, mask = WORLD.tokens(WORLD.everything)
    divergence = torch.where(mask, kl, 0.0).sum((1, 2))
    states = chances if moving else chances.detach()
    objective = beta * (states * divergence).sum() - (chances * WORLD.rewards).sum()
    return torch.autograd.grad(objective, WORLD.scores)[0]


def test_the_world_is_whole() -> None:
    chances = WORLD.chances()
    assert chances.sum().item() == pytest.approx(1)
    assert len(WORLD.everything.unique(dim=0)) == len(WORLD.everything) == 3 + 6 * (3 + 6 * 9)
    lengths = WORLD.tokens(WORLD.everything)[2][:, 0].sum(1)
    assert set(lengths.tolist()) == {1, 2, 3}


def test_the_divergence_of_all_steps_is_that_of_whole_clips() -> None:
    """By the chain rule: sum of p log p / q over all clips."""
    chances = WORLD.chances()
    there = replace(WORLD, scores=WORLD.reference).chances()
    _, kl, mask = WORLD.tokens(WORLD.everything)
    steps = (chances * torch.where(mask, kl, 0.0).sum((1, 2))).sum()
    torch.testing.assert_close(steps, (chances * (chances / there).log()).sum())


@pytest.mark.parametrize("beta", [0.0, BETA])
@pytest.mark.parametrize("future_kl", [False, True])
@pytest.mark.parametrize("kind", [Reinforce, RLOO], ids=lambda kind: kind.name)
def test_unbiased(kind: type[Reinforce] | type[RLOO], future_kl: bool, beta: float) -> None:
    """With `future_kl` it is the whole gradient; the baseline of `reinforce` is a wrong one."""
    if future_kl and beta == 0:
        pytest.skip("the same without a divergence")
    found = of_objective(kind(future_kl=future_kl), beta)
    assert worst(PLACES * found, exact(beta, moving=future_kl)) < LIMIT


def test_only_the_future_makes_the_whole_gradient() -> None:
    """The two differ by more than noise: each is refused as the other."""
    found = PLACES * of_objective(RLOO(), 3.0)
    assert worst(found, exact(3.0)) < LIMIT < worst(found, exact(3.0, moving=True))


@pytest.mark.parametrize("constant", [0.0, 7.0])
def test_any_constant_may_be_expected(constant: float) -> None:
    objective = Reinforce()
    found = estimates(
        objective.advantages,
        lambda played: objective.loss(
            replace(played, values=torch.full((64, STEPS), constant, dtype=torch.float64)), 0.0
        ),
    )
    assert worst(PLACES * found, exact()) < LIMIT


def test_grpo_without_scale_is_short_by_one_clip_in_each_group() -> None:
    """Its baseline has the clip itself in it: (n - 1) / n of the gradient, exactly that."""
    found = PLACES * of_objective(GRPO(scale="none"), 0.0)
    assert worst(found, (EACH - 1) / EACH * exact()) < LIMIT < worst(found, exact())
    assert worst(EACH / (EACH - 1) * found, exact()) < LIMIT


# --- the check refuses what is wrong ---


def by_hand(weights: Callable[[Tensor, Tensor], Tensor], masked: bool = True) -> Tensor:
    def loss(played: Played) -> Tensor:
        mask = played.mask if masked else torch.ones_like(played.mask)
        return per_place(-played.advantages[:, None, None] * played.tokens, mask)

    return PLACES * estimates(weights, loss)


def test_the_check_passes_what_is_right_by_hand() -> None:
    assert worst(by_hand(lambda rewards, _: rewards), exact()) < LIMIT


def test_the_check_refuses_the_clip_itself_in_its_baseline() -> None:
    def weights(rewards: Tensor, _: Tensor) -> Tensor:
        return rewards - rewards.unflatten(0, (-1, EACH)).mean(1).repeat_interleave(EACH)

    assert worst(by_hand(weights), exact()) > LIMIT


def test_the_check_refuses_tokens_after_the_end() -> None:
    assert worst(by_hand(lambda rewards, _: rewards, masked=False), exact()) > LIMIT


def test_the_check_refuses_a_mean_over_own_tokens() -> None:
    """A mean per clip weighs the tokens of short clips more; no factor makes up for it."""
    found = estimates(
        RLOO().advantages,
        lambda played: per_clip(-played.advantages[:, None, None] * played.tokens, played.mask),
    )
    mean, wanted = found.mean(0), exact().flatten()
    best = (mean @ wanted) / (mean @ mean)
    assert worst(best * found, wanted) > LIMIT


def test_the_check_refuses_values_that_have_seen_the_step() -> None:
    """A baseline may know what came before a step, not what was played at it."""
    objective = Reinforce()
    found = estimates(
        objective.advantages,
        lambda played: objective.loss(replace(played, values=played.sampled.sum(1)), 0.0),
    )
    assert worst(PLACES * found, exact()) > LIMIT
