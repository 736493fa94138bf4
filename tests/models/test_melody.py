"""MusicGen with melody against transformers' own loss and generation, and bases that do not fit."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    MusicgenMelodyForConditionalGeneration,
)

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.methods import load_adapter, save_adapter
from musictune.methods.base import trained_parameters
from musictune.methods.pivotal import Pivotal
from musictune.models import load_model
from musictune.models.base import Batch
from musictune.models.chroma import extract_chroma
from musictune.models.melody import Melodies, MusicGenMelody
from musictune.models.musicgen import MusicGen

RATE = 16_000
heeds = pytest.mark.skipif(
    transformers.__version__.startswith("5.17."), reason="its generate drops melody and text"
)


def tune(*notes: int, seconds: float = 0.4) -> Clip:
    time = torch.arange(round(seconds * RATE)) / RATE
    waves = [torch.sin(2 * torch.pi * 440 * 2 ** ((note - 69) / 12) * time) for note in notes]
    return Clip(0.3 * torch.cat(waves)[None], RATE)


RISING, FALLING = tune(60, 62, 64, 65), tune(71, 69, 66, 63)


@pytest.fixture(params=[1, 2], ids=["mono", "stereo"])
def model(request: pytest.FixtureRequest) -> MusicGenMelody:
    return MusicGenMelody.toy(request.param)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "toy"
    MusicGenMelody.toy().save(folder)
    return folder


def random_batch(model: MusicGen, frames: int, texts: tuple[str, ...]) -> Batch:
    codes = torch.randint(model.vocabulary, (len(texts), model.codebooks, frames))
    return Batch(codes, torch.full((len(texts),), frames), texts)


def labels(model: MusicGen, batch: Batch) -> Tensor:
    _, targets, mask = model.delay(batch.codes, batch.lengths, model.pad)
    return targets.masked_fill(~mask, -100).transpose(1, 2)


def features(model: MusicGenMelody, *melodies: Clip) -> Tensor:
    return torch.stack([extract_chroma(melody, model.chroma) for melody in melodies])


@torch.no_grad()
def greedy(
    model: MusicGenMelody, texts: list[str], melodies: Melodies | None, frames: int
) -> Tensor:
    """Codes ``(clips, codebooks, frames)`` by the backbone alone: prefix first, then columns."""
    delays = torch.arange(model.codebooks) // model.channels
    states, mask = model.prefix(texts, melodies, guided=True)
    first: Tensor | None = states
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    column = torch.full((len(texts), model.codebooks), model.pad)
    columns = []
    for step in range(frames + int(delays[-1])):
        inputs: dict[str, Any] = {"encoder_hidden_states": first, "encoder_attention_mask": mask}
        if first is None:
            ones = mask.new_ones(len(mask), step + 1)
            inputs = {"attention_mask": torch.cat([mask, ones], 1)}
        logits = model.backbone(
            input_ids=column.repeat(2, 1).view(-1, 1),
            past_key_values=cache,
            use_cache=True,
            **inputs,
        ).logits[:, -1]
        first = None
        prompted, null = logits.unflatten(0, (-1, model.codebooks)).chunk(2)
        best = (null + 3 * (prompted - null)).argmax(-1)
        frame = step - delays
        column = torch.where((frame >= 0) & (frame < frames), best, model.pad)
        columns.append(column)
    index = torch.arange(frames) + delays[:, None]
    return torch.stack(columns, -1).gather(-1, index.expand(len(texts), -1, -1))


def generated(model: MusicGenMelody, texts: list[str], melodies: Melodies, steps: int) -> Tensor:
    """Codes of transformers' own greedy ``generate``."""
    ids, mask = model.tokens(texts)
    heard = {} if melodies[0] is None else {"input_features": features(model, *melodies)}  # type: ignore[arg-type]
    found = []
    decode = model.network.audio_encoder.decode
    model.network.audio_encoder.decode = lambda codes, *rest, **more: (
        found.append(codes[0]) or decode(codes, *rest, **more)
    )
    model.network.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        guidance_scale=3.0,
        max_new_tokens=steps,
        **heard,
    )
    del model.network.audio_encoder.decode
    return torch.stack(found, 2).flatten(1, 2)


# --- against transformers ---


@pytest.mark.parametrize("frames", [1, 2, 30])
def test_nll_equals_the_loss_of_transformers(model: MusicGenMelody, frames: int) -> None:
    batch = random_batch(model, frames, ("slow piano", "fast drums"))
    ids, said = model.tokens(batch.texts)
    theirs = model.network(input_ids=ids, attention_mask=said, labels=labels(model, batch)).loss
    assert torch.allclose(model.nll(batch).mean(), theirs, atol=1e-5)


def test_without_text_is_the_null_condition_of_transformers(model: MusicGenMelody) -> None:
    batch = random_batch(model, 12, ("",))
    ids = model.tokenizer([""], return_tensors="pt").input_ids
    theirs = model.network(
        input_ids=ids, attention_mask=torch.zeros_like(ids), labels=labels(model, batch)
    ).loss
    assert torch.allclose(model.nll(batch)[0], theirs, atol=1e-5)


@pytest.mark.parametrize("notes", [1, 2, 5], ids=["repeated", "short", "cut"])
def test_a_melody_is_repeated_and_cut_as_in_transformers(notes: int) -> None:
    model = MusicGenMelody.toy()
    model.chroma_length = model.network.config.chroma_length = 11
    melody = tune(*range(60, 60 + notes), seconds=0.4)
    ids, said = model.tokens(["slow piano"])
    columns = torch.randint(64, (4, 7))
    theirs = model.network(
        input_ids=ids,
        attention_mask=said,
        input_features=features(model, melody),
        decoder_input_ids=columns,
    )
    states, mask = model.condition(["slow piano"], [melody])
    assert torch.allclose(states, theirs.encoder_hidden_states, atol=1e-6)
    ours = model.backbone(
        input_ids=columns, encoder_hidden_states=states, encoder_attention_mask=mask
    ).logits
    assert torch.allclose(ours, theirs.logits, atol=1e-5)


@heeds
@pytest.mark.parametrize("melodies", [[None, None], [RISING, FALLING]], ids=["none", "melody"])
def test_greedy_codes_equal_those_of_generate(
    model: MusicGenMelody, melodies: list[Clip | None]
) -> None:
    texts, frames = ["slow piano", "bright guitar"], 60
    steps = frames + model.codebooks // model.channels - 1
    theirs = generated(model, texts, melodies, steps)[..., :frames]
    assert theirs.unique().numel() > 5
    assert torch.equal(greedy(model, texts, melodies, frames), theirs)


@heeds
def test_each_clip_of_mixed_texts_is_what_generate_makes_of_it_alone() -> None:
    model, frames = MusicGenMelody.toy(), 40
    texts: list[str] = ["slow piano", "", "a fast bright guitar solo with drums"]
    melodies = [RISING, None, FALLING]
    together = greedy(model, texts, melodies, frames)
    for i, (text, melody) in enumerate(zip(texts, melodies, strict=True)):
        alone = generated(model, [text], [melody], frames + 3)[..., :frames]
        assert torch.equal(together[i], alone[0]), text


@heeds
def test_prefix_is_what_generate_gives_its_decoder(model: MusicGenMelody) -> None:
    texts, melodies = ["slow piano", "bright guitar"], [RISING, FALLING]
    seen: list[Tensor] = []
    handle = model.backbone.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["encoder_hidden_states"]), with_kwargs=True
    )
    generated(model, texts, melodies, 8)
    handle.remove()
    states, mask = model.prefix(texts, melodies, guided=True)
    assert torch.allclose(states, seen[0], atol=1e-6)
    assert mask.shape == states.shape[:2] and mask.all()
    alone, said = model.prefix(texts, melodies, guided=False)
    assert torch.equal(alone, states[:2]) and torch.equal(said, mask[:2])
    assert seen[1] is None  # given once, at the first step


# --- what is heard ---


def test_another_melody_gives_other_logits_and_other_music() -> None:
    model, texts = MusicGenMelody.toy(), ["slow piano"]
    columns = torch.randint(64, (4, 7))
    logits = []
    for melody in (RISING, FALLING, None):
        states, mask = model.condition(texts, [melody])
        logits.append(
            model.backbone(
                input_ids=columns, encoder_hidden_states=states, encoder_attention_mask=mask
            ).logits[:, -7:]
        )
    for i in range(3):
        assert (logits[i] - logits[i - 1]).abs().amax((1, 2)).min() > 1e-3
    rising, _ = model.rollout(texts, 0.5, 0, [RISING])
    falling, _ = model.rollout(texts, 0.5, 0, [FALLING])
    again, clips = model.rollout(texts, 0.5, 0, [RISING])
    assert not torch.equal(rising.codes, falling.codes)
    assert torch.equal(rising.codes, again.codes)
    assert torch.equal(model.decode(again)[0].wave, clips[0].wave)


def test_mask_is_zero_on_padding_only() -> None:
    model = MusicGenMelody.toy()
    _, mask = model.prefix(["slow piano", "", "a fast bright guitar"], None, guided=True)
    assert mask.shape == (6, 16 + 5)
    assert mask.sum(1).tolist() == [16 + 3, 16 + 1, 16 + 5] * 2
    assert torch.equal(mask, mask.sort(1, descending=True).values)


def test_a_transformers_that_drops_the_condition_is_given_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = MusicGenMelody.toy()
    wanted, _ = model.rollout(["slow piano", "drums"], 0.4, 0, [RISING, FALLING])
    real = model.network.prepare_inputs_for_generation

    def dropping(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**real(*args, **kwargs), "encoder_hidden_states": None}

    monkeypatch.setattr(model.network, "prepare_inputs_for_generation", dropping)
    made, _ = model.rollout(["slow piano", "drums"], 0.4, 0, [RISING, FALLING])
    assert torch.equal(made.codes, wanted.codes)
    assert not model.backbone._forward_pre_hooks


@pytest.mark.parametrize(
    ("melodies", "says"),
    [
        ([Clip(torch.zeros(1, RATE), RATE, source="hush.wav")], r"melody hush\.wav is silent"),
        ([tune(60, seconds=0.1)], "give at least"),
        ([RISING, FALLING], "2 melodies for 1 texts"),
    ],
)
def test_melodies_that_cannot_be_followed(melodies: list[Clip | None], says: str) -> None:
    model = MusicGenMelody.toy()
    with pytest.raises(InputError, match=says):
        model.prefix(["slow piano"], melodies)
    with pytest.raises(InputError, match=says):
        model.rollout(["slow piano"], 0.2, 0, melodies)


# --- training ---


def test_half_the_backbone_is_near() -> None:
    full, half = MusicGenMelody.toy(), MusicGenMelody.toy()
    half.half_backbone()
    batch = random_batch(full, 20, ("slow piano", "a fast bright guitar"))
    with torch.no_grad():
        assert torch.allclose(half.nll(batch), full.nll(batch), rtol=1e-2)
    _, clips = half.rollout(["slow piano"], 0.2, 0, [RISING])
    assert clips[0].wave.isfinite().all()


def test_pivotal_learns_one_batch_and_its_adapter_comes_back(tmp_path: Path) -> None:
    model, batch = MusicGenMelody.toy(), learnable()
    method = Pivotal(fraction=0.2, rounds=1, probe_steps=2)
    method.prepare(model, itertools.repeat(batch))
    method.attach(model)
    optimizer = torch.optim.AdamW(trained_parameters(model).values(), lr=3e-2, weight_decay=0)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model.nll(batch).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    save_adapter(model, method, tmp_path / "adapter")
    merged = MusicGenMelody.toy()
    load_adapter(merged, tmp_path / "adapter")
    merged.save(tmp_path / "merged")
    with torch.no_grad():
        learned = model.nll(batch)
        assert torch.allclose(merged.nll(batch), learned, atol=1e-5)
        assert torch.allclose(load_model(tmp_path / "merged", "cpu").nll(batch), learned, atol=1e-5)
        with method.disabled(model):
            assert torch.equal(model.nll(batch), MusicGenMelody.toy().nll(batch))


def test_gradient_checkpointing_changes_nothing() -> None:
    model = MusicGenMelody.toy()
    batch = learnable()
    grads = []
    for saving in (False, True):
        if saving:
            model.backbone.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        model.train()
        for part in model.modules():
            if hasattr(part, "dropout") and isinstance(part.dropout, float):
                part.dropout = 0.0
        model.zero_grad()
        model.nll(batch).sum().backward()
        grads.append([p.grad.clone() for p in model.backbone.parameters() if p.grad is not None])
    for plain, saved in zip(*grads, strict=True):
        assert torch.allclose(plain, saved, atol=1e-6)


def learnable() -> Batch:
    codes = torch.randint(0, 64, (2, 4, 12), generator=torch.Generator().manual_seed(5))
    return Batch(codes, torch.tensor([12, 9]), ("a bright piano", "slow"))


# --- files ---


def test_load_model_gives_back_what_save_wrote(saved: Path) -> None:
    model, loaded = MusicGenMelody.toy(), load_model(saved, "cpu")
    assert isinstance(loaded, MusicGenMelody)
    assert (loaded.chroma, loaded.chroma_length) == (model.chroma, model.chroma_length)
    assert (loaded.max_seconds, loaded.base) == (10.0, str(saved))
    batch = random_batch(model, 10, ("slow piano", ""))
    assert torch.equal(model.nll(batch), loaded.nll(batch))
    states, _ = model.prefix(["slow piano"], [RISING])
    assert torch.equal(states, loaded.prefix(["slow piano"], [RISING])[0])


def test_plain_transformers_loads_what_save_writes(saved: Path) -> None:
    model = MusicGenMelody.toy()
    plain = MusicgenMelodyForConditionalGeneration.from_pretrained(saved, use_safetensors=True)
    batch = random_batch(model, 10, ("slow piano",))
    ids = model.tokenizer(["slow piano"], return_tensors="pt")
    loss = plain(**ids, labels=labels(model, batch)).loss
    assert torch.allclose(loss, model.nll(batch)[0], atol=1e-6)


def test_each_kind_loads_its_own(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a musicgen_melody model where a musicgen"):
        MusicGen.load(saved)
    MusicGen.toy().save(tmp_path / "plain")
    with pytest.raises(InputError, match="is a musicgen model where a musicgen_melody"):
        MusicGenMelody.load(tmp_path / "plain")
    assert type(load_model(tmp_path / "plain", "cpu")) is MusicGen


def test_how_it_listens_is_read_from_its_folder(saved: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    file = copy / "preprocessor_config.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps({**fields, "num_chroma": 24}))
    with pytest.raises(InputError, match=r"12 pitch classes in config\.json, 24 in"):
        load_model(copy, "cpu")
    file.write_text("{")
    with pytest.raises(InputError, match="cannot be loaded") as error:
        load_model(copy, "cpu")
    assert "\n" not in str(error.value)
    file.unlink()
    assert load_model(copy, "cpu").chroma.window == 16_384  # type: ignore[attr-defined]
