"""The step that a GPU keeps to itself: the same music, and on a GPU really replayed."""

from __future__ import annotations

import pytest
import torch

from musictune.generation import Engine, Request, Sampling, Session
from musictune.generation.graphs import DeviceStep
from musictune.models.melody import MusicGenMelody
from musictune.models.musicgen import MusicGen

PROMPTS = ["slow piano", "", "fast drums, bright and loud", "dark strings", "flute"]


def asked(*samplings: Sampling) -> list[Request]:
    return [
        Request(PROMPTS[i % 5], 0.2 + 0.3 * (i % 3), seed=i, sampling=samplings[i % len(samplings)])
        for i in range(7)
    ]


def on_device(model: MusicGen, requests: list[Request], batch: int) -> dict[int, torch.Tensor]:
    """The device's step, its operations one by one on this machine's CPU."""
    guided = any(request.sampling.guidance != 1 for request in requests)
    session = Session(Engine(model, "float32"), batch, longest=1.0, guided=guided)
    session._device = DeviceStep(
        session._decoder, session._cache, session._rows, session._halves, capture=False
    )
    tickets = {session.add(request): index for index, request in enumerate(requests)}
    found = {}
    while session.busy:
        for ticket in session.step():
            found[tickets[ticket]] = session.take(ticket)
    return found


@pytest.mark.parametrize("batch", [1, 3, 5, 7])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_tokens_are_those_of_the_other_step(batch: int, guidance: float) -> None:
    model, requests = MusicGen.toy(), asked(Sampling(top_k=1, guidance=guidance))
    wanted = dict(Engine(model, "float32").play(requests))
    made = on_device(model, requests, batch)
    assert all(torch.equal(made[i], wanted[i]) for i in range(7))


def test_a_nucleus_is_drawn_with_the_same_luck() -> None:
    model, requests = MusicGen.toy(2), asked(Sampling(top_p=0.8), Sampling(top_p=0.5, top_k=9))
    wanted = dict(Engine(model, "float32").play(requests))
    made = on_device(model, requests, 4)
    assert all(torch.equal(made[i], wanted[i]) for i in range(7))


def test_drawn_music_is_its_own_in_any_batch() -> None:
    model, requests = MusicGen.toy(), asked(Sampling(), Sampling(2.0, 20), Sampling(guidance=2.0))
    alone, together = on_device(model, requests, 1), on_device(model, requests, 7)
    assert all(torch.equal(alone[i], together[i]) for i in range(7))
    assert len({tuple(codes[:, :10].flatten().tolist()) for codes in alone.values()}) == 7


def test_bases_without_cross_attention() -> None:
    model, requests = MusicGenMelody.toy(), asked(Sampling(top_k=1))
    wanted = dict(Engine(model, "float32").play(requests))
    made = on_device(model, requests, 3)
    assert all(torch.equal(made[i], wanted[i]) for i in range(7))


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 4])
def test_graphs_replay(batch: int) -> None:
    model = MusicGen.toy().to("cuda")
    requests = asked(Sampling(top_k=1))
    session = Session(Engine(model, "bfloat16"), batch, longest=1.0)
    for request in requests:
        session.add(request)
    steps = 0
    while session.busy:
        session.step()
        steps += 1
    device = session._device
    assert device is not None
    assert device.replayed == steps and device.captured <= 2 * batch
    assert all(session.take(ticket).shape[0] == 4 for ticket in range(7))
