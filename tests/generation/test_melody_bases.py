"""The engine on bases whose texts and melodies stand before the music."""

from __future__ import annotations

import pytest
import torch

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.generation import Engine, Request, Sampling
from musictune.models.chroma import extract_chroma
from musictune.models.melody import MusicGenMelody
from musictune.models.musicgen import MusicGen, _spied


@pytest.fixture(params=[1, 2], ids=["mono", "stereo"])
def model(request: pytest.FixtureRequest) -> MusicGenMelody:
    return MusicGenMelody.toy(request.param)


def rising() -> Clip:
    time = torch.arange(32_000) / 16_000
    return Clip(0.5 * torch.sin(2 * torch.pi * (440 + 100 * time) * time)[None], 16_000)


@pytest.mark.parametrize("guidance", [3.0, 1.0])
@pytest.mark.parametrize("melody", [None, rising()], ids=["no-melody", "melody"])
def test_greedy_tokens_are_those_of_transformers(
    model: MusicGenMelody, melody: Clip | None, guidance: float
) -> None:
    ids, mask = model.tokens(["slow piano"])
    heard = {} if melody is None else {"input_features": extract_chroma(melody, model.chroma)[None]}
    with _spied(model.network.audio_encoder) as decoded:
        model.network.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, guidance_scale=guidance,
            max_new_tokens=63, **heard,
        )  # fmt: skip
    theirs = torch.stack(decoded, 2).flatten(1, 2)[0, :, :60]
    request = Request("slow piano", 1.2, 0, Sampling(top_k=1, guidance=guidance), melody=melody)
    ((_, ours),) = Engine(model, "float32").play([request])
    assert torch.equal(ours, theirs)


def test_clips_with_and_without_melody_share_a_batch(model: MusicGenMelody) -> None:
    engine = Engine(model, "float32")
    asked = [
        Request(["slow piano", "fast drums, bright and loud"][i % 2], 0.4 + 0.2 * i, seed=i,
                melody=rising() if i % 2 else None)
        for i in range(5)
    ]  # fmt: skip
    together, alone = dict(engine.play(asked)), dict(engine.play(asked, batch=1))
    assert all(torch.equal(together[i], alone[i]) for i in range(5))


def test_music_goes_on_from_what_is_given(model: MusicGenMelody) -> None:
    engine = Engine(model, "float32")
    ((_, whole),) = engine.play([Request("slow piano", 1.2, 3, melody=rising())])
    again = Request("slow piano", 1.2, 3, melody=rising(), given=whole[:, :40])
    ((_, continued),) = engine.play([again])
    assert torch.equal(continued, whole)


def test_a_base_that_does_not_listen_says_so() -> None:
    with pytest.raises(InputError, match="does not listen to melodies"):
        list(Engine(MusicGen.toy()).play([Request("piano", 1.0, melody=rising())]))
