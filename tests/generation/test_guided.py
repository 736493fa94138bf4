"""Reward-guided sampling: plain where nothing is asked, better where something is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import CheckFailed, InputError
from musictune.generation import Engine, Request
from musictune.generation.best_of import best_of, candidate_seed
from musictune.generation.guided import _drawn, _ends, guided, guided_steps, probabilities
from musictune.generation.request import UNKNOWN
from musictune.models.musicgen import MusicGen
from tests.generation.toys import asked, brightness

FINITE = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(MusicGen.toy(), "float32")


def constant(clips: Sequence[Clip]) -> Tensor:
    return torch.zeros(len(clips))


# --- a clip that is interrupted ---


@settings(deadline=None, max_examples=5)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 100))
def test_a_clip_goes_on_as_if_never_interrupted(first: int, second: int, seed: int) -> None:
    engine = Engine(MusicGen.toy(), "float32")
    request = Request("slow piano", 0.24, seed)  # 12 frames
    ((_, whole),) = engine.play([request])
    ((_, part),) = engine.play([replace(request, stop=min(first, second))])
    assert torch.equal(part[:, : min(first, second)], whole[:, : min(first, second)])
    ((_, more),) = engine.play([replace(request, stop=max(first, second), given=part)])
    ((_, rest),) = engine.play([replace(request, given=more)])
    assert torch.equal(rest, whole)


def test_codebooks_that_lag_behind_are_unknown(engine: Engine) -> None:
    request = Request("flute", 0.4, 3)
    ((_, whole),) = engine.play([request])
    ((_, part),) = engine.play([replace(request, stop=5)])
    assert part.shape == (4, 8)
    for book in range(4):
        assert torch.equal(part[book, : 8 - book], whole[book, : 8 - book])
        assert (part[book, 8 - book :] == UNKNOWN).all()


def test_short_parts_play_beside_whole_clips(engine: Engine) -> None:
    requests = asked(6)
    mixed = [replace(each, stop=4) if i % 2 else each for i, each in enumerate(requests)]
    made = dict(engine.play(mixed, batch=3))
    for index, request in enumerate(mixed):
        ((_, alone),) = engine.play([request])
        assert torch.equal(made[index], alone)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stop": 0}, "stop 0 must be from 1 to the clip's 20"),
        ({"stop": 21}, "stop 21 must"),
        ({"given": torch.tensor([[1, UNKNOWN]] * 4)}, "from 0 to 63"),
        ({"given": torch.tensor([[UNKNOWN, 1]] * 4)}, "from 0 to 63"),
        ({"given": torch.full((4, 2), -2)}, "from 0 to 63"),
    ],
)
def test_bad_parts_are_refused(engine: Engine, change: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        list(engine.play([replace(Request("flute", 0.4), **change)]))


# --- how one is drawn ---


@given(FINITE, st.floats(0, 20))
def test_probabilities_rise_with_the_value(values: list[float], strength: float) -> None:
    chances = probabilities(torch.tensor(values, dtype=torch.float64), strength)
    assert float(chances.sum()) == pytest.approx(1)
    order = sorted(range(len(values)), key=values.__getitem__)
    assert all(chances[a] <= chances[b] + 1e-12 for a, b in itertools.pairwise(order))


@given(FINITE, st.floats(0.1, 10), st.floats(-50, 50), st.floats(0, 5))
def test_the_unit_of_the_reward_does_not_matter(
    values: list[float], scale: float, shift: float, strength: float
) -> None:
    one = torch.tensor(values, dtype=torch.float64).round(decimals=2)
    same = probabilities(one * scale + shift, strength)
    assert torch.allclose(probabilities(one, strength), same, atol=1e-6)


def test_probabilities_by_hand() -> None:
    # Two values are one standard deviation above and below their mean.
    chances = probabilities(torch.tensor([3.0, 5.0]).double(), 1.5)
    assert float(chances[1] / chances[0]) == pytest.approx(math.exp(3.0))
    values = torch.tensor([1.0, 4.0, 4.0]).double()
    assert probabilities(values, math.inf).tolist() == [0, 1, 0]
    assert probabilities(values, 0).tolist() == pytest.approx([1 / 3] * 3)
    assert probabilities(torch.full((4,), 0.1).double(), 9).tolist() == [0.25] * 4
    unknown = torch.tensor([-math.inf, 2.0, 2.0]).double()
    assert probabilities(unknown, 1).tolist() == [0, 0.5, 0.5]
    assert probabilities(torch.full((2,), -math.inf).double(), 1).tolist() == [0.5, 0.5]


def test_draws_have_their_probabilities() -> None:
    chances = torch.tensor([0.1, 0.0, 0.6, 0.3]).double()
    drawn = torch.tensor([_drawn(chances, seed) for seed in range(4000)])
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert shares[1] == 0
    assert torch.allclose(shares.double(), chances, atol=4 * math.sqrt(0.25 / 4000))


# --- whole clips ---


@pytest.mark.parametrize(("candidates", "strength"), [(1, 2.0), (3, 0.0)])
def test_without_a_choice_it_is_plain_sampling(
    engine: Engine, candidates: int, strength: float
) -> None:
    requests = asked()
    plain = dict(engine.play(requests))
    for made in guided(engine, requests, brightness, candidates, 0.1, strength):
        assert torch.equal(made.codes, plain[made.index])
        assert made.divergence == pytest.approx(0, abs=1e-9)
        assert float(brightness([made.clip])[0]) == pytest.approx(made.reward)


def test_in_one_piece_with_the_best_taken_it_is_best_of(engine: Engine) -> None:
    requests = asked()
    best = {each.index: each for each in best_of(engine, requests, brightness, 3)}
    for made in guided(engine, requests, brightness, 3, 10.0, math.inf):
        assert torch.equal(made.codes, best[made.index].codes)
        assert made.rewards == (pytest.approx(best[made.index].rewards),)
        assert made.divergence == pytest.approx(math.log(3))


def test_each_piece_is_what_its_candidate_plays(engine: Engine) -> None:
    request = Request("slow piano", 0.4, 7)
    (made,) = guided(engine, [request], constant, 3, 0.1)
    codes = None
    for end, choice in zip((5, 10, 15, 20), made.choices, strict=True):
        seed = candidate_seed(7, choice)
        ((_, codes),) = engine.play([replace(request, seed=seed, given=codes, stop=end)])
    assert codes is not None and torch.equal(made.codes, codes)
    assert made.divergence == pytest.approx(0, abs=1e-9)


def test_a_constant_reward_draws_all_alike(engine: Engine) -> None:
    requests = [Request("flute", 0.16, seed) for seed in range(10)]
    found = [made.choices for made in guided(engine, requests, constant, 2, 0.02, batch=30)]
    share = sum(map(sum, found)) / sum(map(len, found))
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / sum(map(len, found)))


def test_it_reaches_more_than_plain_music_at_equal_seeds(engine: Engine) -> None:
    requests = [Request("slow piano", 0.4, seed) for seed in range(10)]
    plain = {made.index: made.reward for made in guided(engine, requests, brightness, 1, 9.0)}
    better = {
        made.index: made.reward
        for made in guided(engine, requests, brightness, 4, 0.2, math.inf, batch=40)
    }
    gain = torch.tensor([better[i] - plain[i] for i in range(10)])
    assert float(gain.mean() / (gain.std() / math.sqrt(10))) > 3  # a paired t-test


def test_neither_batch_nor_company_matters(engine: Engine) -> None:
    requests = asked()
    together = {each.index: each for each in guided(engine, requests, brightness, 3, 0.1)}
    for index, request in enumerate(requests):
        (alone,) = guided(engine, [request], brightness, 3, 0.1, batch=2)
        assert alone.choices == together[index].choices
        assert torch.equal(alone.codes, together[index].codes)


def test_given_music_stays_and_steps_are_counted(engine: Engine) -> None:
    ((_, given),) = engine.play([Request("flute", 0.2, 1)])
    requests = [Request("flute", 0.5, 2, given=given), Request("slow piano", 0.3, 2)]
    steps: list[int] = []
    for made in guided(engine, requests, brightness, 2, 0.1, on_step=steps.append):
        if made.index == 0:
            assert torch.equal(made.codes[:, :10], given) and made.codes.shape == (4, 25)
    assert sum(steps) == guided_steps(engine, requests, 2, 0.1)


@given(st.floats(0.01, 20), st.integers(1, 500))
def test_choices_end_with_the_clip_and_are_evenly_spaced(seconds: float, frames: int) -> None:
    ends = _ends(_ENGINE, Request("", frames / 50), seconds)
    every = max(1, round(min(seconds, frames / 50) * 50))
    assert ends[-1] == frames
    gaps = [b - a for a, b in zip([0, *ends], ends, strict=False)]
    assert all(gap == every for gap in gaps[:-1])
    assert gaps[-1] <= 1.5 * every and (2 * gaps[-1] >= every or len(ends) == 1)


_ENGINE = Engine(MusicGen.toy())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((0, 1.0, 2.0), "by 0 candidates"),
        ((2, 0.0, 2.0), "every 0 seconds"),
        ((2, math.nan, 2.0), "every nan seconds"),
        ((2, 1.0, -1.0), "strength -1"),
        ((2, 1.0, math.nan), "strength nan"),
    ],
)
def test_bad_numbers_are_named(engine: Engine, values: tuple, says: str) -> None:
    with pytest.raises(InputError, match=says):
        list(guided(engine, asked(), brightness, *values))


def test_a_reward_that_fails_later_is_named(engine: Engine) -> None:
    calls: list[int] = []

    def reward(clips: Sequence[Clip]) -> Tensor:
        calls.append(len(clips))
        return torch.full((len(clips),), math.nan if len(calls) > 1 else 0.0)

    with pytest.raises(CheckFailed, match="gave nan"):
        list(guided(engine, asked(1), reward, 2, 0.1))
    assert calls == [2, 2]
