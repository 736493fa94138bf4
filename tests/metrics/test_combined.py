"""Rewards made of rewards: laws of scales, sums and ensembles, and judges that misbehave."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import CheckFailed, InputError
from musictune.metrics.base import Reward
from musictune.metrics.combined import Ensemble, OneScale, Weighted, checked

numbers = st.floats(-1e3, 1e3, width=32)
columns = st.lists(numbers, min_size=2, max_size=12)


def clips(count: int) -> list[Clip]:
    """Clips whose first sample is their number, a hundredth of it."""
    return [
        Clip(torch.tensor([[0.01 * i, 0.0]]), 16_000, "piano", f"{i}.wav") for i in range(count)
    ]


class Given:
    """Reward: what is written down for each clip."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = values

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        numbers = [round(100 * float(clip.wave[0, 0])) for clip in clips]
        return torch.tensor([self.values[i] for i in numbers], dtype=torch.float32)


@settings(deadline=None, max_examples=40)
@given(columns)
def test_one_scale_has_mean_0_and_deviation_1_on_its_own_set(values: list[float]) -> None:
    spread = float(torch.tensor(values).double().std(correction=0))
    assume(spread > 1e-3 * max(map(abs, values)) and spread > 1e-6)
    found = OneScale.fit(Given(values), clips(len(values)))(clips(len(values))).double()
    assert float(found.mean()) == pytest.approx(0, abs=1e-4)
    assert float(found.std(correction=0)) == pytest.approx(1, abs=1e-4)


@settings(deadline=None, max_examples=40)
@given(columns, st.floats(0.01, 100), st.floats(-100, 100))
def test_one_scale_does_not_know_units(values: list[float], unit: float, shift: float) -> None:
    spread = float(torch.tensor(values).double().std(correction=0))
    assume(spread * unit > 1e-2 * (max(map(abs, values)) * unit + abs(shift)) and spread > 1e-3)
    some = clips(len(values))
    one = OneScale.fit(Given(values), some)(some)
    other = OneScale.fit(Given([unit * value + shift for value in values]), some)(some)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_what_is_not_known_lies_a_deviation_beyond_the_worst() -> None:
    values = [0.0, 2.0, -math.inf]
    scale = OneScale.fit(Given(values), clips(3))
    assert scale(clips(3)).tolist() == [-1.0, 1.0, -2.0]
    turned = OneScale.fit(Given(values), clips(3), turned=True)
    assert turned(clips(3)).tolist() == [-1.0, 1.0, 2.0]
    again = OneScale(Given(values), **scale.settings)
    assert torch.equal(again(clips(3)), scale(clips(3)))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([3.0, 3.0, 3.0], "constant"),
        ([1.0, math.nan], "NaN"),
        ([1.0, math.inf, 2.0], "infinity"),
        ([1.0, -math.inf], "1 of 2"),
        ([-math.inf, -math.inf], "0 of 2"),
        ([], "0 of 0"),
    ],
)
def test_what_cannot_be_scaled_is_refused_by_name(values: list[float], match: str) -> None:
    with pytest.raises(InputError, match=match) as refused:
        OneScale.fit(Given(values), clips(len(values)))
    assert "Given" in str(refused.value)


@pytest.mark.parametrize(
    ("mean", "deviation", "unknown"),
    [(math.nan, 1.0, -4.0), (0.0, 0.0, -4.0), (0.0, -1.0, -4.0), (0.0, 1.0, -math.inf)],
)
def test_a_scale_of_no_numbers_is_refused(mean: float, deviation: float, unknown: float) -> None:
    with pytest.raises(InputError, match="Given"):
        OneScale(Given([]), mean, deviation, unknown)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8), numbers, numbers)
def test_a_weighted_sum_is_linear(rows: list[tuple[float, float]], a: float, b: float) -> None:
    assume(a != 0 and b != 0)
    one, other = Given([x for x, _ in rows]), Given([y for _, y in rows])
    some = clips(len(rows))
    both = Weighted({"one": (one, a), "other": (other, b)})
    expected = a * one(some).double() + b * other(some).double()
    torch.testing.assert_close(both(some), expected.float(), rtol=1e-6, atol=1e-6)
    each = both.each(some)
    assert list(each) == ["one", "other"]
    assert torch.equal(each["one"], one(some))
    assert torch.equal(both.total(each), both(some))


def test_a_negative_weight_turns_a_reward_but_not_what_is_not_known() -> None:
    reward = Given([1.0, -math.inf, 3.0])
    turned = Weighted({"it": (reward, -2.0)})
    assert turned(clips(3)).tolist() == [-2.0, -math.inf, -6.0]
    scaled = turned.on_one_scale(clips(3))
    found = scaled(clips(3))
    assert found.isfinite().all()
    assert found.argmin() == 1, "what is not known is no praise, turned round either"
    assert found[0] > found[2]


@pytest.mark.parametrize("weight", [0.0, math.nan, math.inf])
def test_a_weight_of_nothing_is_refused(weight: float) -> None:
    with pytest.raises(InputError, match="reward it"):
        Weighted({"it": (Given([]), weight)})


def test_a_sum_and_an_ensemble_need_members() -> None:
    with pytest.raises(InputError, match="one or more"):
        Weighted({})
    with pytest.raises(InputError, match="one or more"):
        Ensemble([])


@pytest.mark.parametrize("caution", [-0.1, math.nan, math.inf])
def test_no_negative_caution(caution: float) -> None:
    with pytest.raises(InputError, match="caution"):
        Ensemble([Given([])], caution)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(numbers, min_size=n, max_size=n), min_size=1, max_size=5)
    ),
    st.floats(0, 10),
)
def test_an_ensemble_is_never_above_its_mean(rows: list[list[float]], caution: float) -> None:
    some = clips(len(rows[0]))
    members = [Given(row) for row in rows]
    plain, cautious = Ensemble(members, 0.0)(some), Ensemble(members, caution)(some)
    mean = torch.tensor(rows).double().mean(0).float()
    torch.testing.assert_close(plain, mean, rtol=1e-6, atol=1e-6)
    assert (cautious <= plain).all()
    spread = torch.tensor(rows).double().std(0, correction=0)
    expected = (torch.tensor(rows).double().mean(0) - caution * spread).float()
    torch.testing.assert_close(cautious, expected, rtol=1e-5, atol=1e-3)


@settings(deadline=None, max_examples=40)
@given(columns, st.integers(1, 5), st.floats(0, 100))
def test_equal_members_pay_nothing(values: list[float], count: int, caution: float) -> None:
    some = clips(len(values))
    found = Ensemble([Given(values)] * count, caution)(some)
    torch.testing.assert_close(found, Given(values)(some), rtol=1e-6, atol=1e-6)


def test_one_member_that_does_not_know_is_enough() -> None:
    members = [Given([1.0, 2.0]), Given([1.0, -math.inf])]
    assert Ensemble(members)(clips(2)).tolist() == [1.0, -math.inf]


def _raising(_: Sequence[Clip]) -> Tensor:
    raise ZeroDivisionError("division\nby zero")


WRONG: dict[str, tuple[Callable[[Sequence[Clip]], object], str]] = {
    "raises": (_raising, "ZeroDivisionError: division by zero"),
    "nan": (lambda some: torch.tensor([1.0, math.nan, math.nan]), "nan for 2 of 3.*1.wav"),
    "praise without end": (lambda some: torch.tensor([1.0, 2.0, math.inf]), "inf for 1 of 3"),
    "one number": (lambda some: torch.tensor(1.0), r"shape \(\)"),
    "too few": (lambda some: torch.ones(2), r"shape \(2,\)"),
    "a column": (lambda some: torch.ones(3, 1), r"shape \(3, 1\)"),
    "a list": (lambda some: [1.0, 2.0, 3.0], "a list"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_judge_that_misbehaves_is_named(kind: str) -> None:
    reward, match = WRONG[kind]
    with pytest.raises(CheckFailed, match=match) as failed:
        checked(reward, "of mine")(clips(3))  # type: ignore[arg-type]
    assert "of mine" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert failed.value.exit_code == 1


def test_bad_input_stays_bad_input() -> None:
    def refusing(some: Sequence[Clip]) -> Tensor:
        raise InputError("clip 3 has no caption")

    with pytest.raises(InputError, match="reward tempo: clip 3 has no caption"):
        checked(refusing, "tempo")(clips(3))


def test_a_good_judge_is_left_alone() -> None:
    values = [1.0, -math.inf, -3.0]
    assert checked(Given(values), "good")(clips(3)).tolist() == values
    grown = torch.ones(3, dtype=torch.float64, requires_grad=True)
    loose: Reward = lambda some: grown  # noqa: E731
    found = checked(loose, "loose")(clips(3))
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert checked(Given([]), "none")([]).shape == (0,)


def test_a_name_is_told_when_a_checked_reward_is_constant() -> None:
    with pytest.raises(InputError, match="reward dull is constant"):
        Weighted({"dull": (checked(Given([1.0, 1.0]), "dull"), 1.0)}).on_one_scale(clips(2))
