"""Losses over pairs: values worked by hand, laws, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from musictune.errors import InputError
from musictune.training.objectives.base import Compared, PairObjective
from musictune.training.objectives.cpo import CPO
from musictune.training.objectives.dpo import DPO
from musictune.training.objectives.dpo_winner import DPOWinner
from musictune.training.objectives.ipo import IPO
from musictune.training.objectives.kto import KTO
from musictune.training.objectives.orpo import ORPO
from musictune.training.objectives.simpo import SimPO
from tests.training.objectives.toys import compared

NATS = st.floats(-200, 200).map(lambda x: round(x, 3))
MARGIN = [DPO(), DPO(label_smoothing=0.1), IPO(), KTO(), SimPO(), CPO(nll_weight=0), ORPO()]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def one(objective: PairObjective, pairs: Compared) -> float:
    losses = objective.loss(pairs)
    assert losses.shape == (1,)
    return losses.item()


# A pair of which everything differs: chosen -50 against -53 under the reference (log-ratio 3) with
# 10 tokens; rejected -82 against -81 (log-ratio -1) with 20 tokens. The margin is 4 nats.
PAIR = compared([-50.0], [-82.0], references=([-53.0], [-81.0]), tokens=([10.0], [20.0]))


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        # log(1 + e^-0.4), as 0.1 x 4 = 0.4
        (DPO(), 0.5130152523999526),
        # 0.8 log(1 + e^-2) + 0.2 log(1 + e^2)
        (DPO(0.5, label_smoothing=0.2), 0.8 * 0.126928011042972 + 0.2 * 2.126928011042972),
        # (0.8 log(1 + e^-2) - 0.2 log(1 + e^2)) / 0.6
        (
            DPO(0.5, label_smoothing=0.2, robust=True),
            (0.8 * 0.126928011042972 - 0.2 * 2.126928011042972) / 0.6,
        ),
        # the chosen clip costs 50 nats for 10 tokens
        (DPOWinner(0.1, winner_weight=2.0), 0.5130152523999526 + 2 * 5.0),
        # 3 / 10 + 1 / 20 = 0.35 nats per token, wanted 1 / (2 x 2) = 0.25
        (IPO(2.0), 0.1**2),
        # -5 against -4.1 nats per token: 2 x -0.9 - 1 = -2.8
        (SimPO(2.0, 1.0), math.log(1 + math.exp(2.8))),
        # whole clips differ by 32 nats without a reference
        (CPO(0.05, nll_weight=0.5), math.log(1 + math.exp(-1.6)) + 0.5 * 5.0),
        # odds e^-5 / (1 - e^-5) and e^-4.1 / (1 - e^-4.1)
        (
            ORPO(0.25),
            5.0
            + 0.25
            * math.log(
                1 + (math.exp(-4.1) / (1 - math.exp(-4.1))) * (1 - math.exp(-5)) / math.exp(-5)
            ),
        ),
    ],
    ids=lambda value: type(value).name if isinstance(value, PairObjective) else "",
)
def test_values_by_hand(objective: PairObjective, expected: float) -> None:
    assert one(objective, PAIR) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("mismatched", "point"), [([1.0, 3.0], 2.0), ([-4.0, 1.0], 0.0), ([0.5], 0.5)]
)
def test_kto_by_hand(mismatched: list[float], point: float) -> None:
    pairs = compared([-50.0], [-82.0], references=([-53.0], [-81.0]), mismatched=mismatched)
    good = 2.0 * (1 - sigmoid(0.5 * (3 - point)))
    bad = 3.0 * (1 - sigmoid(0.5 * (point - -1)))
    assert one(KTO(0.5, 2.0, 3.0), pairs) == pytest.approx((good + bad) / 2, rel=1e-12)


def test_the_reference_point_is_not_trained() -> None:
    mismatched = torch.ones(3, dtype=torch.float64, requires_grad=True)
    pairs = dataclasses.replace(compared([5.0], [2.0]), mismatched=mismatched)
    KTO().loss(pairs).sum().backward()
    assert mismatched.grad is None
    assert pairs.chosen.grad is not None


def test_kto_needs_its_reference_point() -> None:
    for mismatched in (None, torch.zeros(0)):
        pairs = Compared(*[torch.zeros(1)] * 4, *[torch.ones(1)] * 2, mismatched=mismatched)
        with pytest.raises(ValueError, match="mismatched"):
            KTO().loss(pairs)


# --- laws ---


@pytest.mark.parametrize("objective", [DPO(), DPO(3.0, 0.3), DPO(0.2, 0.3, robust=True)])
def test_no_log_ratio_is_log_two(objective: DPO) -> None:
    same = ([-1e4], [-777.0])
    assert one(objective, compared(*same, references=same)) == pytest.approx(math.log(2))


def test_where_the_others_start() -> None:
    same = ([-1e4], [-777.0])
    start = compared(*same, references=same)
    assert one(IPO(4.0), start) == pytest.approx(1 / 64)
    assert one(KTO(), start) == pytest.approx(0.5)
    assert one(SimPO(gamma=0.0), compared([-30.0], [-30.0])) == pytest.approx(math.log(2))
    assert one(CPO(nll_weight=0.0), compared([-30.0], [-30.0])) == pytest.approx(math.log(2))
    assert one(ORPO(1.0), compared([-30.0], [-30.0])) == pytest.approx(3 + math.log(2))


@given(margin=NATS, beta=st.floats(0.01, 2))
def test_swapping_a_pair_turns_the_logit(margin: float, beta: float) -> None:
    """For -log sigmoid(x) the loss the other way round is higher by x itself."""
    there, back = compared([margin], [0.0]), compared([0.0], [margin])
    for objective in (DPO(beta), CPO(beta, nll_weight=0.0), SimPO(beta, gamma=0.0)):
        logit = beta * margin / (10 if isinstance(objective, SimPO) else 1)
        assert one(objective, back) - one(objective, there) == pytest.approx(logit, abs=1e-9)
    kto = KTO(beta)
    assert one(kto, there) + one(kto, back) == pytest.approx(1.0)
    wanted = 1 / (2 * beta)
    assert one(IPO(beta), there) - one(IPO(beta), back) == pytest.approx(
        -4 * wanted * margin / 10, abs=1e-9
    )


@given(chosen=NATS, rejected=NATS, references=st.tuples(NATS, NATS), shift=NATS)
def test_only_log_ratios_matter(
    chosen: float, rejected: float, references: tuple[float, float], shift: float
) -> None:
    before = compared([chosen], [rejected], references=([references[0]], [references[1]]))
    after = compared(
        [chosen + shift],
        [rejected - shift],
        references=([references[0] + shift], [references[1] - shift]),
    )
    for objective in (DPO(), DPO(label_smoothing=0.2), IPO(), KTO()):
        assert one(objective, after) == pytest.approx(one(objective, before), abs=1e-9)


@pytest.mark.parametrize("objective", [DPO(), KTO(), SimPO(), CPO(), ORPO(), DPOWinner()])
@given(start=st.floats(-60, -1), ahead=st.floats(0.01, 20))
def test_a_likelier_winner_costs_less(objective: PairObjective, start: float, ahead: float) -> None:
    here = compared([start], [start])
    better = compared([min(start + ahead, -1e-3)], [start])
    worse = compared([start], [min(start + ahead, -1e-3)])
    assert one(objective, better) < one(objective, here) <= one(objective, worse)


@given(before=st.floats(-50, 50), more=st.floats(0.01, 20))
def test_ipo_wants_one_margin(before: float, more: float) -> None:
    """Nearer to ten tokens times 1 / (2 beta) costs less, on either side."""
    objective = IPO(0.5)
    near, far = sorted([before, before + more], key=lambda margin: abs(margin - 10))
    assert one(objective, compared([near], [0.0])) <= one(objective, compared([far], [0.0]))


def test_soft_labels_want_a_finite_margin() -> None:
    """The conservative loss is least at logit(1 - smoothing) / beta; the robust one has no end."""
    best = math.log(0.9 / 0.1) / 0.5
    conservative = DPO(0.5, label_smoothing=0.1)
    at = [one(conservative, compared([best + step], [0.0])) for step in (-0.5, 0.0, 0.5)]
    assert at[1] < min(at[0], at[2])
    robust = DPO(0.5, label_smoothing=0.1, robust=True)
    fall = one(robust, compared([1000.0], [0.0])) - one(robust, compared([1001.0], [0.0]))
    assert fall == pytest.approx(0.1 / 0.8 * 0.5)


def test_robust_dpo_is_unbiased_under_wrong_labels() -> None:
    """Of labels turned with the assumed chance, the mean is plain DPO of the right ones."""
    right, turned = compared([7.0], [3.0]), compared([3.0], [7.0])
    robust = DPO(0.3, label_smoothing=0.2, robust=True)
    mean = 0.8 * one(robust, right) + 0.2 * one(robust, turned)
    assert mean == pytest.approx(one(DPO(0.3), right), rel=1e-12)


# --- numbers as large as clips are ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("objective", [*MARGIN, DPOWinner(), CPO()])
@pytest.mark.parametrize("margin", [1e4, -1e4, 0.0])
def test_gradients_stay_finite(objective: PairObjective, margin: float, dtype: torch.dtype) -> None:
    tokens = torch.tensor([6000.0])
    chosen = torch.tensor([-3e4 + margin], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([-3e4], dtype=dtype, requires_grad=True)
    reference = torch.tensor([-3e4])
    mismatched = torch.tensor([margin])
    pairs = Compared(chosen, rejected, reference, reference, tokens, tokens, mismatched)
    loss = objective.loss(pairs)
    loss.sum().backward()
    for value in (loss, chosen.grad, rejected.grad):
        assert value is not None
        assert bool(value.isfinite().all())


def test_a_lost_pair_keeps_its_pull() -> None:
    """Far on the wrong side the gradient of DPO is beta, not 0 as of a saturated sigmoid."""
    pairs = compared([-1e4], [0.0])
    DPO(0.1).loss(pairs).sum().backward()
    assert pairs.chosen.grad is not None
    assert pairs.chosen.grad.item() == pytest.approx(-0.1)


@pytest.mark.parametrize("log_p", [0.0, -1e-9, -1e-4, -0.69, -0.7, -5.0, -80.0, -1e4])
def test_odds_are_finite_and_exact(log_p: float) -> None:
    from decimal import Decimal, localcontext

    pairs = compared([10 * log_p], [-10.0])
    loss = ORPO(1.0).loss(pairs)
    loss.sum().backward()
    assert pairs.chosen.grad is not None
    assert bool(pairs.chosen.grad.isfinite().all())
    with localcontext() as context:
        context.prec = 60
        held = min(Decimal(log_p), Decimal("-1e-6"))
        odds = held - (1 - held.exp()).ln()
        other = Decimal(-1) - (1 - Decimal(-1).exp()).ln()
        expected = Decimal(-log_p) + (1 + (other - odds).exp()).ln()
    assert loss.item() == pytest.approx(float(expected), rel=1e-9)


def test_odds_of_the_nearly_certain_survive_fp32() -> None:
    """p = 1 - 1e-5 has odds of 1e5; 1 - exp(log p) would have kept two digits of them."""
    chosen, rejected = torch.tensor([-1.0]), torch.tensor([-1e-5])
    pairs = Compared(chosen, rejected, *[torch.zeros(1)] * 2, *[torch.ones(1)] * 2)
    log_odds = math.log(math.exp(-1) / (1 - math.exp(-1))) - math.log(1e5)
    assert one(ORPO(1.0), pairs) - 1 == pytest.approx(-log_odds, abs=1e-4)


def test_small_ratios_of_long_clips_survive_fp32() -> None:
    """1/512 nat is one step of fp32 at -30,000; clips taken from each other would lose it."""
    step = 2.0**-9
    chosen = torch.tensor([-20000.0 + step])
    rejected = torch.tensor([-31.4159])
    pairs = Compared(chosen, rejected, chosen - step, rejected, *[torch.tensor([6000.0])] * 2)
    assert one(DPO(8.0), pairs) == pytest.approx(math.log(1 + math.exp(-8 * step)), rel=1e-6)


# --- what is refused ---


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: DPO(beta=0), "beta 0 must be a number above 0"),
        (lambda: DPO(beta=-1), "beta -1 must"),
        (lambda: DPO(beta=math.nan), "beta nan must"),
        (lambda: DPO(beta=math.inf), "beta inf must"),
        (lambda: DPO(beta=True), "beta True must"),
        (lambda: DPO(beta="much"), "beta 'much' must"),  # type: ignore[arg-type]
        (lambda: DPO(label_smoothing=0.5), "label_smoothing 0.5 must .* at least 0 and below 0.5"),
        (lambda: DPO(label_smoothing=-0.1), "label_smoothing -0.1 must"),
        (lambda: DPO(robust=True), "set label_smoothing"),
        (lambda: DPOWinner(winner_weight=-1), "winner_weight -1 must"),
        (lambda: DPOWinner(label_smoothing=0.7), "label_smoothing 0.7 must"),
        (lambda: IPO(beta=0), "beta 0 must"),
        (lambda: KTO(desirable_weight=0), "desirable_weight 0 must"),
        (lambda: KTO(undesirable_weight=-1), "undesirable_weight -1 must"),
        (lambda: SimPO(gamma=-1), "gamma -1 must"),
        (lambda: CPO(nll_weight=math.inf), "nll_weight inf must"),
        (lambda: ORPO(beta=0), "beta 0 must"),
    ],
)
def test_settings_out_of_range(build: Callable[[], PairObjective], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build()
