"""Each part of a base trains a few steps, resumes, and exports what the library loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from musictune import audio
from musictune.errors import InputError
from musictune.models.codec import SpectralCodec
from musictune.models.musicgen import MusicGen
from musictune.training.pretrain import Corpus, PretrainSettings, pretrain, read_part
from musictune.training.pretrain_clap import ClapPretraining
from musictune.training.pretrain_codec import CodecPretraining
from musictune.training.pretrain_codec_decoder import DecoderPretraining
from musictune.training.pretrain_language import LanguageModelPretraining
from musictune.training.text import fact_table, teach_facts, train_tokenizer

CODEC = {
    "window_length": 512,
    "hop_length": 160,
    "hidden_size": 16,
    "latent_size": 8,
    "codebook_size": 16,
    "encoder_layers": [1, 1],
    "decoder_layers": [1, 1],
}


def settings(steps: int) -> PretrainSettings:
    return PretrainSettings(steps=steps, warmup=2, precision="32-true", checkpoint_every=2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "audio").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(6):
        wave = torch.from_numpy(rng.normal(0, 0.1, (1, 11 * 32000)).astype(np.float32))
        audio.write(audio.Clip(wave, 32000), folder / "audio" / f"{i}.flac")
        captions = [f"a slow piano number {i}", "fast drums"]
        rows.append({"file_name": f"audio/{i}.flac", "text": captions[0], "captions": captions})
    text = "".join(json.dumps(row | {"style": "rock", "tempo": 90.0}) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def codec(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("vector_quantize_pytorch", reason="the pretrain extra is not installed")
    out = tmp_path_factory.mktemp("base") / "codec"
    part = CodecPretraining(settings(4), CODEC, batch_size=2, seconds=0.5, first_crops=8)
    pretrain(part, corpus, out)
    return out


def test_a_codec_and_a_language_model_become_a_base(
    corpus: Path, codec: Path, tmp_path: Path
) -> None:
    part = LanguageModelPretraining(
        settings(3),
        str(codec),
        vocabulary=320,
        text={"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
        decoder={
            "hidden_size": 16,
            "ffn_dim": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        batch_size=2,
        seconds=1.0,
        text_steps=2,
    )
    pretrain(part, corpus, tmp_path / "musicgen")
    model = MusicGen.load(tmp_path / "musicgen")
    assert model.max_seconds == 1.0
    _, clips = model.rollout(["slow piano"], 1.0, 0)
    assert clips[0].samples == 32000


def test_the_decoder_is_trained_further_and_the_tokens_stay(
    corpus: Path, codec: Path, tmp_path: Path
) -> None:
    part = DecoderPretraining(settings(3), str(codec), batch_size=2, seconds=0.5)
    pretrain(part, corpus, tmp_path / "codec2")
    before, after = (
        SpectralCodec.from_pretrained(folder, use_safetensors=True)
        for folder in (codec, tmp_path / "codec2")
    )
    wave = torch.randn(1, 1, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    codes = before.encode(wave).audio_codes
    assert torch.equal(codes, after.encode(wave).audio_codes)
    assert not torch.equal(before.decode(codes).audio_values, after.decode(codes).audio_values)


def test_the_codec_starts_from_principal_components(corpus: Path) -> None:
    pytest.importorskip("vector_quantize_pytorch", reason="the pretrain extra is not installed")
    part = CodecPretraining(settings(2), CODEC, batch_size=2, seconds=0.5, first_crops=8)
    part.open(Corpus.read(corpus))
    with torch.no_grad():
        spectrum = part.codec.spectrum(
            torch.from_numpy(part.crops.one(np.random.default_rng(1)))[None]
        )
        plain = part.codec.synthesise.bias.expand(len(spectrum), -1)
        kept = part.codec.reconstruct(part.codec.latents(spectrum)).flatten()
        pairs = spectrum.unflatten(1, (-1, 2)).flatten(2)
        assert (kept - spectrum.flatten()).norm() < (pairs - plain).norm()


def test_the_text_encoder_learns_the_facts(corpus: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    read = Corpus.read(corpus)
    tokenizer = train_tokenizer([c for i in range(6) for c in read.captions(i)], 320)
    torch.manual_seed(0)
    size = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    encoder = T5EncoderModel(T5Config(vocab_size=len(tokenizer), **size))
    before = encoder.shared.weight.detach().clone()
    teach_facts(encoder, tokenizer, read, 3, seed=0, batch_size=4)
    assert not torch.equal(before, encoder.shared.weight)
    table, names = fact_table(read.rows)
    assert table.shape == (6, len(names)) and "tempo 80" in names


def test_clap_exports_what_transformers_loads(corpus: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    part = ClapPretraining(
        settings(2),
        vocabulary=320,
        audio={"patch_embeds_hidden_size": 12, "hidden_size": 48, "depths": [1, 1, 1]},
        text={"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16},
        batch_size=3,
    )
    pretrain(part, corpus, tmp_path / "clap")
    model = ClapModel.from_pretrained(tmp_path / "clap", dtype=torch.float32)
    extractor = ClapFeatureExtractor.from_pretrained(tmp_path / "clap")
    wave = torch.randn(extractor.nb_max_samples) * 0.1
    features = extractor(wave.numpy(), sampling_rate=32000, return_tensors="pt")["input_features"]
    # Training computes these features in torch; what the library will feed must be the same.
    assert torch.allclose(part.mel(wave[None]), features[0].float(), atol=0.05)
    assert model.get_audio_features(features).pooler_output.shape == (1, 128)
    assert AutoTokenizer.from_pretrained(tmp_path / "clap")("Piano")["input_ids"][0] != 0


def test_resuming_ends_where_an_uninterrupted_run_ends(corpus: Path, tmp_path: Path) -> None:
    def run(out: Path, until: int, resume: bool = False) -> torch.Tensor:
        pytest.importorskip("vector_quantize_pytorch")
        part = CodecPretraining(settings(6), CODEC, batch_size=2, seconds=0.5, first_crops=8)
        pretrain(part, corpus, out, resume=resume, until=until)
        return part.codec.read.weight.detach().clone()

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "broken", 4)
    assert torch.equal(whole, run(tmp_path / "broken", 6, resume=True))


def test_a_corpus_at_another_rate_is_refused(corpus: Path) -> None:
    read = Corpus.read(corpus)
    assert read.wave(0, 32000).shape == (11 * 32000,)
    with pytest.raises(InputError, match="32000 Hz and this part needs 44100"):
        read.wave(0, 44100)


def test_recipes_and_mistakes(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "configs" / "pretrain_clap.yaml"
    assert read_part(recipe, ["part.settings.steps=7"]).settings.steps == 7
    with pytest.raises(InputError, match="nothing_like_it"):
        read_part(recipe, ["part.nothing_like_it=1"])
    with pytest.raises(InputError, match="no recipe"):
        read_part(tmp_path / "none.yaml", [])
    with pytest.raises(InputError, match=r"metadata\.jsonl"):
        pretrain(ClapPretraining(settings(1)), tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="nothing to resume"):
        pretrain(ClapPretraining(settings(1)), tmp_path, tmp_path / "out", resume=True)
