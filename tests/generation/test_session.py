"""Continuous batching: who plays beside whom, and when, is not heard."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.errors import InputError
from musictune.generation import Engine, Request, Sampling, Session
from musictune.generation.precision import PRECISIONS
from musictune.models.musicgen import MusicGen

PROMPTS = ["slow piano", "", "fast drums, bright and loud", "dark strings", "flute"]

TOY = MusicGen.toy()


def requests(count: int) -> list[Request]:
    return [Request(PROMPTS[i % 5], 0.2 + 0.3 * (i % 4), seed=i) for i in range(count)]


@pytest.fixture(scope="module")
def model() -> MusicGen:
    return MusicGen.toy()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_music_is_the_same_in_any_batch_and_order(model: MusicGen, precision: str) -> None:
    engine, asked = Engine(model, precision), requests(6)
    alone = dict(engine.play(asked, batch=1))
    for batch in (3, 6):
        together = dict(engine.play(asked, batch=batch))
        assert all(torch.equal(alone[i], together[i]) for i in range(6))
    backwards = dict(engine.play(asked[::-1], batch=2))
    assert all(torch.equal(alone[i], backwards[5 - i]) for i in range(6))


def test_lengths_are_exact_and_short_ones_come_first(model: MusicGen) -> None:
    asked = requests(5)
    order = []
    for index, codes in Engine(model).play(asked, batch=5):
        order.append(index)
        assert codes.shape == (4, model.frames(asked[index].seconds))
        assert int(codes.min()) >= 0 and int(codes.max()) < model.vocabulary
    assert order == [0, 4, 1, 2, 3]


@settings(deadline=None, max_examples=8)
@given(st.lists(st.sampled_from(["add", "step", "cancel"]), max_size=40), st.integers(1, 3))
def test_whatever_happens_the_rest_plays_as_if_alone(events: list[str], batch: int) -> None:
    engine = Engine(TOY, "float32")
    session, asked, cancelled = Session(engine, batch, longest=1.0), {}, set()
    for number, event in enumerate(events):
        if event == "add":
            request = Request(PROMPTS[number % 5], 0.1 + 0.06 * (number % 7), seed=number)
            asked[session.add(request)] = request
        elif event == "cancel" and asked:
            ticket = number % len(asked)
            session.cancel(ticket)
            cancelled.add(ticket)
        else:
            session.step()
    while session.busy:
        session.step()
    for ticket, request in asked.items():
        if ticket in cancelled:
            with pytest.raises(InputError, match=f"no ticket {ticket}"):
                session.codes(ticket)
            continue
        ((_, alone),) = engine.play([request])
        assert torch.equal(session.take(ticket), alone)


def test_codes_grow_as_they_are_known(model: MusicGen) -> None:
    session = Session(Engine(model), 1, longest=0.4)
    ticket = session.add(Request("slow piano", 0.4, seed=3))
    seen = [session.codes(ticket)]
    while session.busy:
        session.step()
        seen.append(session.codes(ticket))
    whole = session.take(ticket)
    assert [part.shape[1] for part in seen] == [0, 0, 0, 0, *range(1, 21)]
    assert all(torch.equal(part, whole[:, : part.shape[1]]) for part in seen)


@pytest.mark.parametrize("frames", [0, 1, 2, 3, 25, 34, 35])
@pytest.mark.parametrize("channels", [1, 2])
def test_what_was_played_goes_on_the_same_when_given(frames: int, channels: int) -> None:
    """The given columns are heard at once, and must leave what playing them would have left."""
    engine = Engine(MusicGen.toy(channels), "float32")
    request = Request("slow piano", 0.7, seed=3)
    ((_, whole),) = engine.play([request])
    again = Request("slow piano", 0.7, seed=3, given=whole[:, :frames])
    ((_, continued),) = engine.play([again])
    assert torch.equal(continued, whole)


def test_given_codes_stay_and_change_what_follows(model: MusicGen) -> None:
    engine = Engine(model, "float32")
    others = [
        torch.randint(64, (4, 30), generator=torch.Generator().manual_seed(i)) for i in (0, 1)
    ]
    made = dict(engine.play([Request("flute", 1.0, seed=5, given=codes) for codes in others]))
    assert all(torch.equal(made[i][:, :30], others[i]) for i in (0, 1))
    assert not torch.equal(made[0][:, 30:], made[1][:, 30:])


def test_requests_of_different_sampling_share_a_batch(model: MusicGen) -> None:
    engine = Engine(model, "float32")
    kinds = [
        Sampling(), Sampling(top_k=1), Sampling(guidance=1.0), Sampling(top_p=0.5), Sampling(2.0)
    ]  # fmt: skip
    asked = [Request("jazz guitar", 0.6, 7, sampling) for sampling in kinds]
    together = dict(engine.play(asked))
    for index, request in enumerate(asked):
        # The pair also where guidance is 1: without it the sums are others.
        beside = dict(engine.play([request, Request("flute", 0.1)]))
        assert torch.equal(beside[0], together[index])
    assert len({tuple(codes.flatten().tolist()) for codes in together.values()}) == len(kinds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": 0.0}, "choose a length above 0"),
        ({"seconds": -3.0}, "choose a length above 0"),
        ({"seconds": float("nan")}, "choose a length above 0"),
        ({"seconds": 11.0}, "too long"),
        ({"given": torch.zeros(3, 5, dtype=torch.int64)}, r"\(4, frames\)"),
        ({"given": torch.zeros(4, 5)}, "int64"),
        ({"given": torch.full((4, 5), 64)}, "from 0 to 63"),
        ({"given": torch.full((4, 5), -1)}, "from 0 to 63"),
        ({"given": torch.zeros(4, 500, dtype=torch.int64)}, "do not fit"),
    ],
)
def test_bad_requests_are_refused(model: MusicGen, change: dict, message: str) -> None:
    session = Session(Engine(model))
    with pytest.raises(InputError, match=message):
        session.add(Request(**({"prompt": "piano", "seconds": 1.0} | change)))
    assert not session.busy


def test_scores_that_are_no_numbers_end_only_who_has_them() -> None:
    model = MusicGen.toy()
    with torch.no_grad():
        model.backbone.lm_heads[0].weight[3] = float("nan")
    session = Session(Engine(model), longest=0.2)
    session.add(Request("piano", 0.2))
    with pytest.raises(InputError, match="not finite"):
        while session.busy:
            session.step()
    assert not session.busy


def test_a_session_refuses_what_it_has_no_room_for(model: MusicGen) -> None:
    engine = Engine(model)
    with pytest.raises(InputError, match="batch 0"):
        Session(engine, 0)
    with pytest.raises(InputError, match="longer than the 1 of this session"):
        Session(engine, longest=1.0).add(Request("piano", 2.0))
    with pytest.raises(InputError, match="guidance 3"):
        Session(engine, guided=False).add(Request("piano", 2.0))
    with pytest.raises(InputError, match="not finished"):
        session = Session(engine)
        session.take(session.add(Request("piano", 2.0)))


def test_a_run_under_autocast_hears_the_same_music(model: MusicGen) -> None:
    engine = Engine(model, "float32")
    wanted = dict(engine.play(requests(3)))
    with torch.autocast("cpu", torch.bfloat16):
        made = dict(Engine(model, "float32").play(requests(3)))
    assert all(torch.equal(made[i], wanted[i]) for i in range(3))
