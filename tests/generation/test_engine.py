"""The decode loop against transformers' own ``generate``, and its seeds."""

from __future__ import annotations

import math

import pytest
import torch

from musictune.errors import InputError
from musictune.generation import Engine, Sampling
from musictune.models.musicgen import MusicGen, _spied

GREEDY = Sampling(top_k=1)


@pytest.fixture(params=[1, 2], ids=["mono", "stereo"])
def model(request: pytest.FixtureRequest) -> MusicGen:
    return MusicGen.toy(request.param)


@pytest.mark.parametrize("guidance", [3.0, 1.0])
@pytest.mark.parametrize(
    ("prompts", "frames"),
    [
        (["slow piano"], 40),
        (["fast drums, bright and loud", "", "dark strings"], 37),
        (["jazz guitar"] * 5, 4),
    ],
)
def test_greedy_tokens_are_those_of_transformers(
    model: MusicGen, prompts: list[str], frames: int, guidance: float
) -> None:
    ids, mask = model.tokens(prompts)
    with _spied(model.network.audio_encoder) as decoded:
        model.network.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            guidance_scale=guidance,
            max_new_tokens=frames + 3,
        )
    theirs = torch.stack(decoded, 2).flatten(1, 2)
    sampling = Sampling(top_k=1, guidance=guidance)
    engine = Engine(model, "float32")
    ours, _ = engine.rollout(prompts, frames / model.frame_rate, 0, sampling)
    assert torch.equal(ours.codes, theirs)


def test_first_token_is_drawn_from_the_models_distribution() -> None:
    """Over many seeds: what sampling adds to the greedy path."""
    model = MusicGen.toy()
    model.decode = lambda batch: []  # type: ignore[method-assign]  # sound is not the question
    made, _ = Engine(model).rollout([""] * 3000, 0.02, 0, Sampling(top_k=0, guidance=1.0), 3000)
    shares = torch.bincount(made.codes[:, 0, 0], minlength=64) / 3000
    states, heard = model.condition([""])
    start = torch.full((4, 1), model.pad)
    logits = model.backbone(
        input_ids=start, encoder_hidden_states=states, encoder_attention_mask=heard
    ).logits
    assert torch.allclose(shares, logits[0, 0].softmax(0), atol=0.03)


@pytest.mark.parametrize("seconds", [0.001, 0.02, 0.05, 0.5, 1.23])
def test_length_is_exact(model: MusicGen, seconds: float) -> None:
    batch, clips = Engine(model).rollout(["slow piano"], seconds, 0)
    frames = max(1, round(seconds * 50))
    assert batch.codes.shape == (1, model.codebooks, frames)
    assert batch.lengths.tolist() == [frames]
    assert batch.codes.min() >= 0 and batch.codes.max() < model.vocabulary
    assert clips[0].samples == frames * 320
    assert clips[0].channels == model.channels


def test_same_seed_same_music_and_another_seed_another(model: MusicGen) -> None:
    engine = Engine(model)
    torch.manual_seed(1)
    first, clips = engine.rollout(["slow piano", "fast drums"], 0.6, 7)
    torch.manual_seed(2)
    again, same = engine.rollout(["slow piano", "fast drums"], 0.6, 7)
    other, _ = engine.rollout(["slow piano", "fast drums"], 0.6, 70)
    assert torch.equal(first.codes, again.codes)
    assert all(torch.equal(a.wave, b.wave) for a, b in zip(clips, same, strict=True))
    assert not torch.equal(first.codes, other.codes)


def test_a_clip_does_not_depend_on_its_neighbours(model: MusicGen) -> None:
    engine = Engine(model)
    prompts = ["slow piano", "", "fast drums, bright and loud", "dark strings", "flute"]
    together, clips = engine.rollout(prompts, 0.6, 7)
    by_twos, _ = engine.rollout(prompts, 0.6, 7, batch=2)
    assert torch.equal(together.codes, by_twos.codes)
    alone, clip = engine.rollout([prompts[2]], 0.6, [9])
    assert torch.equal(alone.codes[0], together.codes[2])
    assert torch.allclose(clip[0].wave, clips[2].wave, atol=1e-6)


def test_prompt_and_guidance_matter(model: MusicGen) -> None:
    engine = Engine(model)
    piano, _ = engine.rollout(["slow piano"], 0.6, 7)
    drums, _ = engine.rollout(["fast drums, bright and loud"], 0.6, 7)
    free, _ = engine.rollout(["slow piano"], 0.6, 7, Sampling(guidance=1.0))
    assert not torch.equal(piano.codes, drums.codes)
    assert not torch.equal(piano.codes, free.codes)


def test_without_prompt_guidance_changes_nothing(model: MusicGen) -> None:
    engine = Engine(model)
    guided, _ = engine.rollout([""], 0.4, 7, Sampling(top_k=1, guidance=3.0))
    free, _ = engine.rollout([""], 0.4, 7, Sampling(top_k=1, guidance=1.0))
    assert torch.equal(guided.codes, free.codes)


def test_stream_hands_over_in_order_and_counts_steps() -> None:
    engine = Engine(MusicGen.toy())
    steps: list[int] = []
    parts = engine.stream(["slow piano"] * 5, 0.2, 0, GREEDY, batch=2, on_step=steps.append)
    first, clips = next(parts)
    assert len(first) == len(clips) == 1 and sum(steps) == 2 * 13
    assert [part.texts for part, _ in parts] == [("slow piano",)] * 4
    assert sum(steps) == engine.steps(5, 0.2)


def test_dropout_is_off_and_training_goes_on() -> None:
    model = MusicGen.toy().train()
    once, _ = Engine(model).rollout(["slow piano"], 0.4, 0)
    assert model.training and model.backbone.training
    assert torch.equal(once.codes, Engine(MusicGen.toy()).rollout(["slow piano"], 0.4, 0)[0].codes)
    assert not once.codes.is_inference()


def test_scores_that_are_not_numbers_are_an_error() -> None:
    model = MusicGen.toy()
    with torch.no_grad():
        model.network.decoder.lm_heads[0].weight[0] = math.nan
    with pytest.raises(InputError, match="not finite"):
        Engine(model).rollout(["slow piano"], 0.2, 0)
    assert not model.training


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((["a"], 0.0, 0), "0 seconds"),
        ((["a"], -2.0, 0), "-2 seconds"),
        ((["a"], math.nan, 0), "nan seconds"),
        ((["a"], 10.5, 0), "up to 10 seconds"),
        (([], 1.0, 0), "0 prompts"),
        ((["a", "b"], 1.0, [1]), "2 prompts with 1 seeds"),
        ((["a"], 1.0, 0, GREEDY, 0), "batch 0"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Engine(MusicGen.toy()).rollout(*arguments)
