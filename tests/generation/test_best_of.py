"""Best of N: what is chosen, from what, and that it can be made again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from musictune.audio import Clip
from musictune.data.concepts import Concept
from musictune.errors import CheckFailed, InputError
from musictune.generation import Engine, Request
from musictune.generation.best_of import best_of, candidate_seed, divergence_bound, valued
from musictune.models.musicgen import MusicGen
from tests.generation.toys import asked, brightness


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(MusicGen.toy())


def test_the_best_is_kept_and_a_plain_request_makes_it_again(engine: Engine) -> None:
    requests = asked()
    found = {chosen.index: chosen for chosen in best_of(engine, requests, brightness, 5)}
    assert sorted(found) == [0, 1, 2]
    for index, chosen in found.items():
        request = requests[index]
        assert len(chosen.rewards) == 5 and chosen.reward == max(chosen.rewards)
        best = chosen.rewards.index(chosen.reward)
        assert chosen.seed == candidate_seed(request.seed, best)
        ((_, codes),) = engine.play([Request(request.prompt, request.seconds, chosen.seed)])
        assert torch.equal(codes, chosen.codes)
        assert float(brightness([chosen.clip])[0]) == pytest.approx(chosen.reward)


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 2**40), st.integers(1, 4))
def test_more_candidates_never_lower_the_reward(seed: int, fewer: int) -> None:
    engine = Engine(MusicGen.toy())
    request = Request("slow piano", 0.1, seed)
    (few,), (more,) = (
        list(best_of(engine, [request], brightness, count)) for count in (fewer, fewer + 3)
    )
    assert more.rewards[:fewer] == pytest.approx(few.rewards)
    assert more.reward >= few.reward - 1e-7
    assert candidate_seed(seed, 0) == seed and 0 <= more.seed < 2**62


def test_neither_batch_nor_company_matters(engine: Engine) -> None:
    requests = asked()
    together = {each.index: each for each in best_of(engine, requests, brightness, 3, batch=8)}
    for index, request in enumerate(requests):
        (alone,) = best_of(engine, [request], brightness, 3, batch=2)
        assert alone.seed == together[index].seed
        assert torch.equal(alone.codes, together[index].codes)
        assert alone.rewards == pytest.approx(together[index].rewards)


def test_the_reward_hears_all_candidates_of_a_prompt_in_plain_words() -> None:
    model = MusicGen.toy()
    model.concepts = [Concept("zorblax", "piano")]
    heard: list[list[str]] = []

    def reward(clips: Sequence[Clip]) -> Tensor:
        heard.append([clip.caption for clip in clips])
        return brightness(clips)

    requests = [Request("slow <zorblax>", 0.1, seed=1), Request("fast drums", 0.1, seed=1)]
    chosen = list(best_of(Engine(model), requests, reward, 3))
    assert sorted(heard) == [["fast drums"] * 3, ["slow piano"] * 3]
    assert {each.clip.caption for each in chosen} == {"fast drums", "slow piano"}


def test_equal_rewards_give_the_plain_clip(engine: Engine) -> None:
    (chosen,) = best_of(engine, asked(1), lambda clips: torch.zeros(len(clips)), 4)
    assert chosen.seed == asked(1)[0].seed


def test_what_is_not_known_is_not_chosen(engine: Engine) -> None:
    values = torch.tensor([-math.inf, -5.0, -math.inf])
    (chosen,) = best_of(engine, asked(1), lambda clips: values, 3)
    assert chosen.reward == -5.0 and chosen.seed == candidate_seed(0, 1)


def test_steps_are_counted(engine: Engine) -> None:
    steps: list[int] = []
    list(best_of(engine, asked(1), brightness, 4, on_step=steps.append))
    assert sum(steps) == engine.steps(4, 0.2)


@pytest.mark.parametrize("count", [1, 2, 4, 64])
def test_the_divergence_bound_is_the_formula_and_what_order_statistics_give(count: int) -> None:
    assert divergence_bound(count) == pytest.approx(math.log(count) - (count - 1) / count)
    # The best of N has density N u^(N-1) over the rank u: its divergence from the uniform one.
    u = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    density = count * u ** (count - 1)
    assert divergence_bound(count) == pytest.approx(float(density.xlogy(density).mean()), abs=1e-4)


def test_bad_input_is_one_line(engine: Engine) -> None:
    with pytest.raises(InputError, match="best of 0 cannot be"):
        list(best_of(engine, asked(), brightness, 0))
    with pytest.raises(InputError, match="up to 10 seconds"):
        list(best_of(engine, [Request("flute", 11.0)], brightness, 2))


def _raises(clips: Sequence[Clip]) -> Tensor:
    raise ValueError("no ears")


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        (lambda clips: torch.full((len(clips),), math.nan), "gave nan for toy: slow piano"),
        (lambda clips: torch.full((len(clips),), math.inf), "gave inf"),
        (lambda clips: torch.zeros(1), r"shape \(1,\) for 2 clips"),
        (lambda clips: torch.zeros(len(clips), 2), r"shape \(2, 2\)"),
        (_raises, "ValueError: no ears"),
    ],
)
def test_a_reward_that_fails_is_named(engine: Engine, reward, says: str) -> None:
    with pytest.raises(CheckFailed, match=says) as failed:
        list(best_of(engine, asked(1), reward, 2))
    assert "\n" not in str(failed.value)


def test_errors_meant_for_people_pass_as_they_are() -> None:
    def reward(clips: Sequence[Clip]) -> Tensor:
        raise InputError("this one")

    with pytest.raises(InputError, match=r"^this one$"):
        valued(reward, [])
