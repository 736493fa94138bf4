"""What happens when memory is short: said before, or half the batch and on."""

from __future__ import annotations

import pytest
import torch

from musictune.errors import InputError
from musictune.generation import Engine, Request, Session, session
from musictune.generation.decoder import Decoder
from musictune.models.musicgen import MusicGen

ASKED = [Request("slow piano", 0.3, seed=i) for i in range(5)]


@pytest.mark.parametrize(("clips", "left"), [(0, None), (1, 1), (2, 2), (3, 2), (4, 4), (9, 4)])
def test_the_batch_is_halved_until_its_cache_fits(
    clips: int,
    left: int | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = Engine(MusicGen.toy(), "float32")
    each = engine.decoder().cache_bytes(2, 503)
    monkeypatch.setattr(session, "free_memory", lambda device: clips * each + 1)
    if left is None:
        with pytest.raises(InputError, match=r"10 seconds need about .* GB of memory"):
            Session(engine, 4)
        return
    assert Session(engine, 4).batch == left
    assert ("going on with" in capsys.readouterr().err) == (left < 4)


def test_what_a_cache_takes_is_what_was_said() -> None:
    decoder = Engine(MusicGen.toy(), "float32").decoder()
    cache = decoder.cache(6, 100)
    held = sum(t.numel() * t.element_size() for t in cache.keys + cache.values)
    assert held == decoder.cache_bytes(6, 100)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_halves_the_batch_and_all_is_played(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine(MusicGen.toy(), "float32")
    wanted = dict(engine.play(ASKED))
    step = Decoder.step

    def greedy(self: Decoder, hidden: torch.Tensor, *rest: object) -> torch.Tensor:
        if len(hidden) > 4:
            raise error
        return step(self, hidden, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "step", greedy)
    made = dict(engine.play(ASKED, batch=5))
    assert all(torch.equal(made[i], wanted[i]) for i in range(5))
    assert "going on with a batch of 2" in capsys.readouterr().err


def test_not_even_one_clip_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*arguments: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Decoder, "step", step)
    with pytest.raises(InputError, match=r"not enough memory for one clip of 0\.3 s"):
        list(Engine(MusicGen.toy()).play(ASKED, batch=4))


def test_other_failures_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*arguments: object) -> torch.Tensor:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Decoder, "step", step)
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(Engine(MusicGen.toy()).play(ASKED, batch=4))
