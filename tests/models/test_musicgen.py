"""MusicGen against transformers itself, its text conditioning, and bases that cannot be loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, MusicgenForConditionalGeneration

from musictune.audio import Clip
from musictune.data.concepts import Concept
from musictune.errors import InputError
from musictune.models import load_model
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen


@pytest.fixture(params=[1, 2], ids=["mono", "stereo"])
def model(request: pytest.FixtureRequest) -> MusicGen:
    return MusicGen.toy(request.param)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "toy"
    MusicGen.toy().save(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def random_batch(model: MusicGen, frames: int, texts: tuple[str, ...]) -> Batch:
    codes = torch.randint(model.vocabulary, (len(texts), model.codebooks, frames))
    return Batch(codes, torch.full((len(texts),), frames), texts)


def test_delay_by_hand() -> None:
    model = MusicGen.toy()
    codes = torch.arange(1, 13).view(1, 4, 3)
    inputs, targets, mask = model.delay(codes, torch.tensor([2]), 64)
    assert targets[0].tolist() == [
        [1, 2, 64, 64, 64, 64],
        [64, 4, 5, 64, 64, 64],
        [64, 64, 7, 8, 64, 64],
        [64, 64, 64, 10, 11, 64],
    ]
    assert torch.equal(mask, targets != 64)
    assert inputs[0, :, 0].tolist() == [64] * 4
    assert torch.equal(inputs[..., 1:], targets[..., :-1])


def test_delay_equals_the_pattern_of_transformers(model: MusicGen) -> None:
    frames, codebooks = 9, model.codebooks
    codes = torch.randint(64, (2, codebooks, frames))
    _, targets, mask = model.delay(codes, torch.tensor([frames, frames]), 64)
    length = frames + codebooks // model.channels
    _, pattern = model.network.decoder.build_delay_pattern_mask(
        torch.full((2 * codebooks, 1), 64), pad_token_id=64, max_length=length
    )
    assert torch.equal(mask.flatten(0, 1), pattern[:, 1:] == -1)
    assert torch.equal(targets[mask], codes.flatten())


@pytest.mark.parametrize("frames", [1, 2, 30])
def test_nll_equals_the_loss_of_transformers(model: MusicGen, frames: int) -> None:
    batch = random_batch(model, frames, ("slow piano", "fast bright drums with bass"))
    _, targets, mask = model.delay(batch.codes, batch.lengths, model.pad)
    ids, heard = model.tokens(batch.texts)
    labels = targets.masked_fill(~mask, -100).transpose(1, 2)
    theirs = model.network(input_ids=ids, attention_mask=heard, labels=labels).loss
    assert torch.allclose(model.nll(batch).mean(), theirs, atol=1e-5)


def test_without_text_is_the_null_condition_of_transformers(model: MusicGen) -> None:
    null = model.network.get_unconditional_inputs(1)
    batch = random_batch(model, 12, ("",))
    _, targets, mask = model.delay(batch.codes, batch.lengths, model.pad)
    theirs = model.network(
        encoder_outputs=null.encoder_outputs,
        attention_mask=null.attention_mask,
        labels=targets.masked_fill(~mask, -100).transpose(1, 2),
    ).loss
    assert torch.allclose(model.nll(batch)[0], theirs, atol=1e-5)


def test_stereo_sides_are_interleaved() -> None:
    model = MusicGen.toy(2)
    left, right = torch.randn(2, 1, 8_000) * 0.1
    mono = MusicGen.toy()
    mono.network.audio_encoder.load_state_dict(model.network.audio_encoder.state_dict())
    codes = model.encode([Clip(torch.cat([left, right]), 16_000)]).codes
    assert torch.equal(codes[:, 0::2], mono.encode([Clip(left, 16_000)]).codes)
    assert torch.equal(codes[:, 1::2], mono.encode([Clip(right, 16_000)]).codes)
    clip = model.decode(Batch(codes, torch.tensor([25]), ("",)))[0]
    assert clip.channels == 2
    alone = mono.decode(Batch(codes[:, 1::2], torch.tensor([25]), ("",)))[0]
    assert torch.allclose(clip.wave[1:], alone.wave, atol=1e-6)


def test_text_encoder_learns_only_if_asked() -> None:
    model = MusicGen.toy()
    batch = random_batch(model, 10, ("slow piano",))
    model.requires_grad_(False)
    model.backbone.requires_grad_(True)
    model.nll(batch).sum().backward()
    words = model.text_encoder.get_input_embeddings().weight
    assert words.grad is None
    words.requires_grad_(True)
    model.nll(batch).sum().backward()
    assert words.grad is not None and words.grad.abs().sum() > 0


def test_training_mode_has_no_dropout_in_text_or_codec() -> None:
    model = MusicGen.toy().train()
    assert model.backbone.training
    assert not model.text_encoder.training and not model.network.audio_encoder.training
    assert torch.equal(model.condition(["slow piano"])[0], model.condition(["slow piano"])[0])


def test_a_concept_is_read_as_its_tokens() -> None:
    model = MusicGen.toy()
    model.concepts = [Concept("zorblax", "piano", tokens=2)]
    model.tokenizer.add_tokens(["<zorblax-0>", "<zorblax-1>"])
    first = len(model.tokenizer) - 2
    for prompt in ("slow <zorblax> music", "slow zorblax music"):
        ids, _ = model.tokens([prompt])
        assert ids[0, 1:3].tolist() == [first, first + 1]


def test_codec_key_follows_the_weights_of_the_codec_only() -> None:
    model, other = MusicGen.toy(), MusicGen.toy()
    with torch.no_grad():
        next(other.backbone.parameters()).add_(1)
    assert model.codec_key == other.codec_key
    third = MusicGen.toy()
    with torch.no_grad():
        next(third.network.audio_encoder.parameters()).add_(1)
    assert model.codec_key != third.codec_key


def test_plain_transformers_loads_what_save_writes(saved: Path) -> None:
    model = MusicGen.toy()
    plain = MusicgenForConditionalGeneration.from_pretrained(saved, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    batch = random_batch(model, 10, ("slow piano",))
    _, targets, mask = model.delay(batch.codes, batch.lengths, model.pad)
    ids = tokenizer(["slow piano"], return_tensors="pt")
    labels = targets.masked_fill(~mask, -100).transpose(1, 2)
    assert torch.allclose(plain(**ids, labels=labels).loss, model.nll(batch)[0], atol=1e-6)
    assert plain.generate(**ids, max_new_tokens=20).shape[-1] > 0


def test_load_gives_back_what_save_wrote(saved: Path) -> None:
    model, loaded = MusicGen.toy(), load_model(saved, "cpu")
    batch = random_batch(model, 10, ("slow piano", ""))
    assert torch.equal(model.nll(batch), loaded.nll(batch))
    assert loaded.base == str(saved)
    assert (loaded.max_seconds, loaded.frame_rate) == (10.0, 50.0)
    assert loaded.codec_key == model.codec_key
    assert loaded.concepts == []


def test_half_precision_files_are_read_as_float32_unless_asked(tmp_path: Path) -> None:
    MusicGen.toy().to(torch.bfloat16).save(tmp_path / "half")
    assert next(MusicGen.load(tmp_path / "half").parameters()).dtype == torch.float32
    half = MusicGen.load(tmp_path / "half", dtype=torch.bfloat16)
    nll = half.nll(random_batch(half, 10, ("slow piano",)))
    assert nll.dtype == torch.float32 and nll.isfinite().all()


def test_merged_concepts_survive_saving(tmp_path: Path) -> None:
    model = MusicGen.toy()
    model.concepts = [Concept("zorblax", "piano", tokens=2)]
    model.save(tmp_path / "merged")
    assert MusicGen.load(tmp_path / "merged").concepts == model.concepts


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("nonsense", "unknown base 'nonsense'"),
        ("", "unknown base"),
        ("../../no/such", "unknown base"),
        ("somebody/not-there", "Hugging Face Hub"),
    ],
)
def test_unknown_bases(base: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_model(base, "cpu")


def test_unknown_device(saved: Path) -> None:
    with pytest.raises(InputError, match="unknown device tpu"):
        load_model(saved, "tpu")
    with pytest.raises(InputError, match="device cuda:99 is not there"):
        load_model(saved, "cuda:99")


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(tmp_path, "cpu")


def test_another_kind_of_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="a gpt2 model, not a MusicGen"):
        load_model(tmp_path, "cpu")
    (tmp_path / "config.json").write_text("[1, 2")
    with pytest.raises(InputError, match="not a JSON object"):
        load_model(tmp_path, "cpu")


def test_a_corrupt_safetensors(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match=f"base {copy}") as error:
        load_model(copy, "cpu")
    assert "\n" not in str(error.value)


def test_lost_weights_are_refused_rather_than_drawn_at_random(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    lost = next(name for name in weights if name.endswith("q_proj.weight"))
    del weights[lost]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"lacks 1 weights, the first {lost}"):
        load_model(copy, "cpu")


def test_a_folder_without_its_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        load_model(copy, "cpu")


def test_a_config_for_other_weights(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["decoder"]["hidden_size"] = 32
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="cannot be loaded") as error:
        load_model(copy, "cpu")
    assert "\n" not in str(error.value)


def test_pickles_are_not_read(copy: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(copy, "cpu")


def test_a_codec_that_normalises_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["audio_encoder"]["normalize"] = True
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="cuts or normalises"):
        load_model(copy, "cpu")
