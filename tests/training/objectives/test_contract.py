"""What every objective promises, for each one found in ``musictune.training.objectives``."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest
import torch
from torch import Tensor

from musictune.training.objectives import objectives
from musictune.training.objectives.base import (
    Compared,
    Objective,
    PairObjective,
    Played,
    RolloutObjective,
)

EVERY = list(objectives().values())
PAIRS = [kind for kind in EVERY if issubclass(kind, PairObjective)]
ROLLOUTS = [kind for kind in EVERY if issubclass(kind, RolloutObjective)]
CLIPS, BOOKS, STEPS, VOCABULARY = 6, 2, 4, 5


def chosen_and_rejected(scores: Tensor, codes: Tensor, reference: Tensor) -> Compared:
    """The first half of the clips was preferred to the second."""
    logs, before = (
        part.log_softmax(-1).gather(-1, codes[..., None]).flatten(1).sum(1)
        for part in (scores, reference)
    )
    half = CLIPS // 2
    tokens = torch.full((half,), float(BOOKS * STEPS), dtype=scores.dtype)
    return Compared(
        *(logs[:half], logs[half:], before[:half], before[half:], tokens, tokens),
        mismatched=(logs - before).detach(),
    )


def rolled_out(kind: RolloutObjective, scores: Tensor, codes: Tensor, reference: Tensor) -> Played:
    """The first of each two clips had the higher reward."""
    mask = torch.ones(CLIPS, BOOKS, STEPS, dtype=torch.bool)
    mask[:, 0, -1] = mask[:, 1, 0] = False
    logs, before = scores.log_softmax(-1), reference.log_softmax(-1)
    tokens = torch.where(mask, logs.gather(-1, codes[..., None])[..., 0], 0.0)
    kl = torch.where(mask, (logs.exp() * (logs - before)).sum(-1), 0.0)
    groups = torch.arange(CLIPS) // 2
    rewards = torch.tensor([1.0, 0.0] * (CLIPS // 2), dtype=scores.dtype)
    values = torch.full((CLIPS, STEPS), 0.5, dtype=scores.dtype, requires_grad=True)
    return Played(
        *(tokens, tokens.detach(), kl, mask, kind.advantages(rewards, groups)),
        values if kind.needs_values else None,
    )


@pytest.fixture
def codes() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (CLIPS, BOOKS, STEPS), generator=generator)


@pytest.fixture
def scores() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    shape = (CLIPS, BOOKS, STEPS, VOCABULARY)
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


@pytest.fixture
def reference(scores: Tensor) -> Tensor:
    noise = torch.randn(scores.shape, generator=torch.Generator().manual_seed(3))
    return (scores.detach() + 0.1 * noise).requires_grad_()


def test_none_is_missed() -> None:
    assert len(PAIRS) >= 7
    assert len(ROLLOUTS) >= 4


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.name)
def test_it_names_its_paper(kind: type[Objective]) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", kind.name)
    text = inspect.cleandoc(vars(kind)["__doc__"])
    assert re.search(r"arXiv \d{4}\.\d{5}", text), "the docstring names no paper"
    settings = list(inspect.signature(kind).parameters)
    assert all(re.search(rf"\b{setting}\b", text) for setting in settings), settings


@pytest.mark.parametrize("kind", PAIRS, ids=lambda kind: kind.name)
def test_pairs(kind: type[PairObjective], scores: Tensor, codes: Tensor, reference: Tensor) -> None:
    objective = kind()
    losses = objective.loss(chosen_and_rejected(scores, codes, reference))
    assert losses.shape == (CLIPS // 2,)
    assert bool(losses.isfinite().all())
    losses.mean().backward()
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())
    assert bool((scores.grad.flatten(1).abs().sum(1) > 0).all()), "a clip has no gradient"
    assert reference.grad is None, "the reference must not be trained"


@pytest.mark.parametrize("kind", PAIRS, ids=lambda kind: kind.name)
def test_a_step_prefers_the_chosen(
    kind: type[PairObjective], scores: Tensor, codes: Tensor, reference: Tensor
) -> None:
    objective = kind()

    def at(there: Tensor) -> tuple[Tensor, float]:
        pairs = chosen_and_rejected(there, codes, reference)
        if pairs.mismatched is not None:  # a reference point that does not move with the step
            pairs = dataclasses.replace(pairs, mismatched=torch.zeros_like(pairs.mismatched))
        return objective.loss(pairs).mean(), (pairs.chosen - pairs.rejected).sum().item()

    loss, margin = at(scores)
    loss.backward()
    assert scores.grad is not None
    step = scores.grad * (1e-3 / scores.grad.norm())
    after, wider = at(scores.detach() - step)
    assert after < loss
    assert wider > margin


@pytest.mark.parametrize("kind", PAIRS, ids=lambda kind: kind.name)
def test_each_pair_stands_alone(
    kind: type[PairObjective], scores: Tensor, codes: Tensor, reference: Tensor
) -> None:
    """A batch of pairs gives what its pairs give, in their order."""
    pairs = chosen_and_rejected(scores, codes, reference)
    turned = Compared(
        *(getattr(pairs, field.name).flip(0) for field in dataclasses.fields(pairs))  # all tensors
    )
    torch.testing.assert_close(kind().loss(turned), kind().loss(pairs).flip(0))


@pytest.mark.parametrize("kind", ROLLOUTS, ids=lambda kind: kind.name)
def test_rollouts(
    kind: type[RolloutObjective], scores: Tensor, codes: Tensor, reference: Tensor
) -> None:
    objective = kind()
    assert objective.beta >= 0
    played = rolled_out(objective, scores, codes, reference.detach())
    assert played.advantages.shape == (CLIPS,)
    losses = objective.loss(played, 0.1)
    assert losses.shape == (CLIPS,)
    assert bool(losses.isfinite().all())
    losses.mean().backward()
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())
    assert scores.grad.abs().sum() > 0
    assert not scores.grad[~played.mask].any(), "what is no music has a gradient"
    assert played.values is None or played.values.grad is not None


@pytest.mark.parametrize("kind", ROLLOUTS, ids=lambda kind: kind.name)
def test_a_step_makes_the_better_clips_likelier(
    kind: type[RolloutObjective], scores: Tensor, codes: Tensor, reference: Tensor
) -> None:
    objective = kind()

    def at(there: Tensor) -> tuple[Tensor, float]:
        played = rolled_out(objective, there, codes, reference.detach())
        played = dataclasses.replace(played, sampled=played.tokens.detach())
        whole = played.tokens.sum((1, 2))
        return objective.loss(played, 0.0).mean(), (whole[::2] - whole[1::2]).sum().item()

    loss, margin = at(scores)
    loss.backward()
    assert scores.grad is not None
    step = scores.grad * (1e-3 / scores.grad.norm())
    assert at(scores.detach() - step)[1] > margin


@pytest.mark.parametrize("kind", ROLLOUTS, ids=lambda kind: kind.name)
def test_beta_draws_to_the_reference(
    kind: type[RolloutObjective], scores: Tensor, codes: Tensor, reference: Tensor
) -> None:
    """With no advantage and the divergence alone, a step makes it smaller."""
    objective = kind()

    def at(there: Tensor) -> tuple[Tensor, Tensor]:
        played = rolled_out(objective, there, codes, reference.detach())
        still = torch.full_like(played.advantages, 0.5 if objective.needs_values else 0.0)
        played = dataclasses.replace(played, advantages=still)
        return objective.loss(played, 1.0).mean(), played.kl.sum()

    loss, kl = at(scores)
    loss.backward()
    assert scores.grad is not None
    assert at(scores.detach() - 1e-3 * scores.grad / scores.grad.norm())[1] < kl


@pytest.mark.parametrize("kind", ROLLOUTS, ids=lambda kind: kind.name)
def test_part_of_the_clips_costs_what_it_did_among_all(
    kind: type[RolloutObjective], scores: Tensor, codes: Tensor, reference: Tensor
) -> None:
    """So that a batch can be walked through in pieces."""
    objective = kind()
    played = rolled_out(objective, scores, codes, reference.detach())
    fields = [field.name for field in dataclasses.fields(played)]
    cut = {name: value[2:5] for name in fields if (value := getattr(played, name)) is not None}
    part = objective.loss(Played(**cut), 0.1)
    torch.testing.assert_close(part, objective.loss(played, 0.1)[2:5])
