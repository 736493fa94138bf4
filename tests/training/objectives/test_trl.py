"""Losses and advantages against TRL's own code, where it has the same."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.peers.trl import TRL, VERSION
from musictune.errors import InputError
from musictune.training.objectives.base import Compared, PairObjective, Played
from musictune.training.objectives.cpo import CPO
from musictune.training.objectives.dpo import DPO
from musictune.training.objectives.dpo_winner import DPOWinner
from musictune.training.objectives.grpo import GRPO
from musictune.training.objectives.ipo import IPO
from musictune.training.objectives.kto import KTO
from musictune.training.objectives.orpo import ORPO
from musictune.training.objectives.rloo import RLOO
from musictune.training.objectives.simpo import SimPO

SOURCE = os.environ.get("MUSICTUNE_TRL", "")
needs_trl = pytest.mark.skipif(
    not SOURCE, reason=f"MUSICTUNE_TRL names no wheel or folder of TRL {VERSION}"
)
PAIRS = 32
GROUPS, EACH, TOKENS = 4, 5, 6


@pytest.fixture(scope="module")
def trl() -> TRL:
    return TRL(Path(SOURCE))


@pytest.fixture
def pairs() -> Compared:
    generator = torch.Generator().manual_seed(0)

    def some(scale: float, shift: float) -> Tensor:
        return shift + scale * torch.randn(PAIRS, dtype=torch.float64, generator=generator)

    chosen, rejected = some(20, -400).requires_grad_(), some(20, -450).requires_grad_()
    return Compared(
        *(chosen, rejected, chosen.detach() + some(8, -2), rejected.detach() + some(8, 2)),
        *((some(10, 100)).round(), (some(10, 100)).round()),
        mismatched=some(5, 3),
    )


def whole(pairs: Compared) -> tuple[Tensor, ...]:
    return pairs.chosen, pairs.rejected, pairs.chosen_reference, pairs.rejected_reference


def per_token(pairs: Compared) -> tuple[Tensor, ...]:
    tokens = (pairs.chosen_tokens, pairs.rejected_tokens) * 2
    return tuple(value / count for value, count in zip(whole(pairs), tokens, strict=True))


def assert_alike(objective: PairObjective, pairs: Compared, theirs: Tensor) -> None:
    """Equal losses, and equal gradients of their mean."""
    ours = objective.loss(pairs)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    inputs = (pairs.chosen, pairs.rejected)
    torch.testing.assert_close(
        torch.autograd.grad(ours.mean(), inputs), torch.autograd.grad(theirs.mean(), inputs)
    )


@needs_trl
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo(trl: TRL, pairs: Compared, smoothing: float) -> None:
    theirs = trl.dpo("sigmoid", whole(pairs), beta=0.1, label_smoothing=smoothing)
    assert_alike(DPO(0.1, smoothing), pairs, theirs)


@needs_trl
def test_robust_dpo(trl: TRL, pairs: Compared) -> None:
    theirs = trl.dpo("robust", whole(pairs), beta=0.1, label_smoothing=0.2)
    assert_alike(DPO(0.1, 0.2, robust=True), pairs, theirs)


@needs_trl
def test_dpo_winner(trl: TRL, pairs: Compared) -> None:
    """TRL adds rpo_alpha times the mean over all chosen tokens; ours is the mean over clips of
    each one's mean, so that the two agree per clip and for clips of one length."""
    theirs = trl.dpo("sigmoid", whole(pairs), beta=0.1, label_smoothing=0.0)
    assert_alike(DPOWinner(0.1, 0.7), pairs, theirs - 0.7 * per_token(pairs)[0])


@needs_trl
def test_ipo(trl: TRL, pairs: Compared) -> None:
    """TRL divides the log-probabilities by the clips' lengths before it calls the loss."""
    theirs = trl.dpo("ipo", per_token(pairs), beta=10.0, label_smoothing=0.0)
    assert_alike(IPO(10.0), pairs, theirs)


@needs_trl
@pytest.mark.parametrize("shift", [0.0, -50.0])
def test_kto(trl: TRL, pairs: Compared, shift: float) -> None:
    """TRL takes the mean over all clips, ours over the two of a pair first."""
    assert pairs.mismatched is not None
    mismatched = pairs.mismatched + shift  # the second has its mean below 0
    theirs = trl.kto(
        whole(pairs), mismatched, beta=0.1, desirable_weight=1.5, undesirable_weight=0.8
    )
    moved = Compared(
        *whole(pairs), pairs.chosen_tokens, pairs.rejected_tokens, mismatched=mismatched
    )
    assert_alike(KTO(0.1, 1.5, 0.8), moved, theirs.unflatten(0, (2, PAIRS)).mean(0))


@needs_trl
def test_simpo(trl: TRL, pairs: Compared) -> None:
    """TRL takes gamma / beta off the margin and multiplies by beta afterwards."""
    theirs = trl.cpo("simpo", *per_token(pairs)[:2], beta=2.0, simpo_gamma=1.0)
    assert_alike(SimPO(2.0, 1.0), pairs, theirs)


@needs_trl
def test_cpo(trl: TRL, pairs: Compared) -> None:
    """TRL adds cpo_alpha times the mean over all chosen tokens, ours per clip."""
    theirs = trl.cpo("sigmoid", *whole(pairs)[:2], beta=0.1)
    assert_alike(CPO(0.1, 0.5), pairs, theirs - 0.5 * per_token(pairs)[0])


@needs_trl
def test_orpo(trl: TRL, pairs: Compared) -> None:
    """TRL takes the mean of beta log sigmoid off the likelihood of all chosen tokens."""
    chosen, rejected = per_token(pairs)[:2]
    assert_alike(ORPO(0.1), pairs, -chosen - trl.orpo(chosen, rejected, beta=0.1))


# --- rollouts ---


@pytest.fixture
def rewards() -> Tensor:
    made = torch.randn(GROUPS * EACH, generator=torch.Generator().manual_seed(4))
    made[:EACH] = 0.3  # one group with nothing to choose
    return made


@pytest.fixture
def played(rewards: Tensor) -> Played:
    generator = torch.Generator().manual_seed(5)
    shape = (GROUPS * EACH, 1, TOKENS)
    mask = torch.rand(shape, generator=generator) < 0.8
    mask[..., 0] = True
    logs = torch.where(mask, -4 * torch.rand(shape, generator=generator), 0.0).double()
    apart = torch.where(mask, 0.3 * torch.randn(shape, generator=generator), 0.0).double()
    return Played(
        logs.requires_grad_(), logs.detach() + apart, torch.zeros_like(logs), mask, rewards.double()
    )


@needs_trl
@pytest.mark.parametrize("scale", ["std", "none"])
def test_grpo_advantages(trl: TRL, rewards: Tensor, scale: str) -> None:
    theirs = trl.advantages(
        "grpo", rewards, EACH, scale_rewards="group" if scale == "std" else "none"
    )
    ours = GRPO(scale=scale).advantages(  # type: ignore[arg-type]
        rewards, torch.arange(GROUPS).repeat_interleave(EACH)
    )
    # TRL's mean of equal fp32 values is off by a rounding, which it divides by 1e-4.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=5e-4 if scale == "std" else 1e-6)
    torch.testing.assert_close(ours[EACH:], theirs[EACH:], rtol=1e-5, atol=1e-6)


@needs_trl
def test_rloo_advantages(trl: TRL, rewards: Tensor) -> None:
    theirs = trl.advantages("rloo", rewards, EACH)
    ours = RLOO().advantages(rewards, torch.arange(GROUPS).repeat_interleave(EACH))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@needs_trl
@pytest.mark.parametrize(("scale", "theirs"), [("std", "grpo"), ("none", "dr_grpo")])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_grpo(trl: TRL, played: Played, scale: str, theirs: str, beta: float) -> None:
    """TRL has codebooks in no place of their own, and estimates the divergence from the sampled
    token, exp(d) - d - 1; that estimate is given to ours as if it were the divergence."""
    reference = played.tokens.detach() + 0.2
    apart = reference - played.tokens
    ours = Played(
        *(played.tokens, played.sampled, apart.exp() - apart - 1, played.mask, played.advantages)
    )
    other = trl.rollout(
        "grpo",
        *(played.tokens[:, 0], played.sampled[:, 0], reference[:, 0], played.mask[:, 0]),
        played.advantages,
        **{"beta": beta, "loss_type": theirs, "max_completion_length": TOKENS},
        **{"epsilon_low": 0.2, "epsilon_high": 0.3},
    )
    objective = GRPO(scale=scale, clip_low=0.2, clip_high=0.3)  # type: ignore[arg-type]
    mine = objective.loss(ours, beta).mean()
    torch.testing.assert_close(mine, other)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, played.tokens)[0] for loss in (mine, other))
    )


@needs_trl
def test_rloo(trl: TRL, played: Played) -> None:
    """TRL has the ratio of whole clips, whose gradient where it is 1 is that of the logarithm; and
    it sums tokens, where ours is divided by the number of places."""
    other = trl.rollout(
        "rloo",
        *(played.tokens[:, 0], played.tokens.detach()[:, 0], played.tokens.detach()[:, 0]),
        *(played.mask[:, 0], played.advantages),
        **{"epsilon_low": 0.2, "epsilon_high": 0.2},
    )
    mine = RLOO().loss(played, 0.0).mean()
    there, here = (torch.autograd.grad(loss, played.tokens)[0] for loss in (other, mine))
    torch.testing.assert_close(here * TOKENS, there)


# --- finding it ---


def test_what_is_not_trl_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "trl.whl"
    wheel.write_bytes(b"no archive")
    empty = tmp_path / "empty.whl"
    zipfile.ZipFile(empty, "w").close()
    other = tmp_path / "other"
    about = other / f"trl-{VERSION}.dist-info" / "METADATA"
    about.parent.mkdir(parents=True)
    about.write_text("Name: trl\nVersion: 9.9.9\n", encoding="utf-8")
    for source in (wheel, empty, other, tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=f"pip download --no-deps trl=={VERSION}"):
            TRL(source)
