"""An audio encoder answers as transformers' own pieces do, whatever folder it came from."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ASTModel,
    BertConfig,
    BertModel,
    Data2VecAudioConfig,
    Data2VecAudioForSequenceClassification,
    HubertConfig,
    HubertForSequenceClassification,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    WavLMConfig,
    WavLMForSequenceClassification,
)

from musictune.audio import Clip
from musictune.console import quiet_transformers
from musictune.errors import InputError
from musictune.models.classifier import Classifier, MeanHead, mean_tokens
from musictune.models.encoders import set_frames
from musictune.models.front import Spectrogram

COMMON: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "num_labels": 3, "initializer_range": 0.3,
}  # fmt: skip
PATCHES: dict[str, Any] = {
    "num_mel_bins": 16, "max_length": 48, "patch_size": 8, "frequency_stride": 8, "time_stride": 8,
}  # fmt: skip
WAVES: dict[str, Any] = {
    "conv_dim": [8, 8, 8], "conv_stride": [5, 4, 4], "conv_kernel": [10, 8, 8],
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16,
}  # fmt: skip
LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
MAKERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "ast": (ASTForAudioClassification, ASTConfig, PATCHES),
    "wav2vec2": (Wav2Vec2ForSequenceClassification, Wav2Vec2Config, WAVES),
    "wav2vec2-layer": (Wav2Vec2ForSequenceClassification, Wav2Vec2Config, WAVES | LAYER),
    "hubert": (HubertForSequenceClassification, HubertConfig, WAVES),
    "hubert-layer": (HubertForSequenceClassification, HubertConfig, WAVES | LAYER),
    "wavlm": (WavLMForSequenceClassification, WavLMConfig, WAVES),
    "data2vec": (Data2VecAudioForSequenceClassification, Data2VecAudioConfig, WAVES),
}
MERT = {"model_type": "mert_model", "architectures": ["MERTModel"], "attention_relax": 32.0,
        "auto_map": {"AutoConfig": "configuration_MERT.MERTConfig"}}  # fmt: skip


def extractor(kind: str) -> Any:
    if kind.startswith("ast"):
        return ASTFeatureExtractor(num_mel_bins=16, max_length=48)
    return Wav2Vec2FeatureExtractor(
        sampling_rate=16_000, do_normalize=True, return_attention_mask="layer" in kind
    )


def saved(network: Any, kind: str, folder: Path) -> Path:
    with quiet_transformers():
        network.save_pretrained(folder)
        extractor(kind).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random network of each kind, as transformers saves it."""
    root, found = tmp_path_factory.mktemp("bases"), {}
    for number, (kind, (maker, config, options)) in enumerate(MAKERS.items()):
        torch.manual_seed(number)
        found[kind] = saved(maker(config(**COMMON, **options)), kind, root / kind)
    torch.manual_seed(99)
    found["ast-body"] = saved(ASTModel(ASTConfig(**COMMON, **PATCHES)), "ast", root / "ast-body")
    body = HubertModel(HubertConfig(**COMMON, **WAVES))
    found["hubert-body"] = saved(body, "hubert", root / "hubert-body")
    found["mert"] = root / "mert"
    shutil.copytree(found["hubert-body"], found["mert"])
    rewrite(found["mert"], "config.json", MERT)
    return found


def rewrite(folder: Path, name: str, changes: dict[str, Any]) -> None:
    kept = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(kept | changes))


def noise(samples: int, seed: int = 0) -> Clip:
    chance = torch.Generator().manual_seed(seed)
    return Clip(0.2 * torch.randn(1, samples, generator=chance).clamp(-4, 4), 16_000)


def heard_by(kind: str, clips: list[Clip]) -> dict[str, Tensor]:
    """What transformers' extractor makes of clips."""
    waves = [clip.wave[0].numpy() for clip in clips]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = extractor(kind)(waves, sampling_rate=16_000, return_tensors="pt", padding=True)
    return dict(found)


# --- parity with transformers ---


@pytest.mark.parametrize("kind", MAKERS)
def test_logits_are_those_of_transformers_own_pieces(kind: str, folders: dict[str, Path]) -> None:
    model = Classifier.load(folders[kind])
    clips = [noise(6000), noise(6000, 1)]
    network = MAKERS[kind][0].from_pretrained(folders[kind]).eval()
    with torch.no_grad():
        expected = network(**heard_by(kind, clips)).logits
        found = model.batch([model.front.hear(clip) for clip in clips], torch.eye(3)[:2])
        ours = model.logits(found.inputs, found.lengths)
    assert torch.allclose(ours, expected, atol=1e-5)
    assert model.named
    assert model.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    nll = F.cross_entropy(expected, torch.tensor([0, 1]), reduction="none")
    assert torch.allclose(model.nll(found), nll, atol=1e-5)


@settings(deadline=None, max_examples=12)
@given(st.integers(400, 16_000))
def test_a_spectrogram_is_the_extractors_own_to_the_bit(samples: int) -> None:
    front, clip = Spectrogram(extractor("ast")), noise(samples)
    heard = front.hear(clip)
    inputs, lengths = front.inputs([heard], 48)
    assert torch.equal(inputs, heard_by("ast", [clip])["input_values"])
    assert int(lengths) == min(1 + (samples - 400) // 160, 48)


@pytest.mark.parametrize("frames", [47, 48, 49])
def test_shorter_equal_and_longer_than_what_it_reads(frames: int) -> None:
    front, clip = Spectrogram(extractor("ast")), noise(400 + 160 * (frames - 1))
    inputs, lengths = front.inputs([front.hear(clip)], 48)
    assert torch.equal(inputs, heard_by("ast", [clip])["input_values"])
    assert int(lengths) == min(frames, 48)


@pytest.mark.parametrize("kind", ["wav2vec2-layer", "hubert-layer"])
def test_padding_changes_nothing_where_there_is_a_mask(kind: str, folders: dict[str, Path]) -> None:
    model = Classifier.load(folders[kind])
    clips = [model.front.hear(noise(n, n)) for n in (3000, 7000)]
    alone = torch.cat([model.probabilities([clip]) for clip in clips])
    assert torch.allclose(model.probabilities(clips), alone, atol=1e-5)
    model.head = MeanHead(16, ["a", "b"], seed=1)
    alone = torch.cat([model.probabilities([clip]) for clip in clips])
    assert torch.allclose(model.probabilities(clips), alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "data2vec"])
def test_without_a_mask_only_equal_lengths_are_heard_together(
    kind: str, folders: dict[str, Path]
) -> None:
    model = Classifier.load(folders[kind])
    clips = [model.front.hear(noise(n, n)) for n in (3000, 7000, 7000, 3000)]
    alone = torch.cat([model.probabilities([clip]) for clip in clips])
    assert torch.allclose(model.probabilities(clips), alone, atol=1e-6)


# --- positions ---


@pytest.mark.parametrize(("frames", "kept"), [(48, range(6)), (32, range(1, 5)), (16, range(2, 4))])
def test_fewer_frames_keep_the_middle_of_the_table(
    frames: int, kept: range, folders: dict[str, Path]
) -> None:
    plain = Classifier.load(folders["ast"]).backbone.embeddings.position_embeddings[0]
    model = Classifier.load(folders["ast"], seconds=frames / 100)
    table = model.backbone.embeddings.position_embeddings[0]
    assert torch.equal(table[:2], plain[:2])
    assert torch.equal(
        table[2:].unflatten(0, (2, -1)), plain[2:].unflatten(0, (2, 6))[:, list(kept)]
    )
    assert model.steps == frames
    assert model.classify(noise(16_000)).shape[1] == 3


def test_more_frames_stretch_it_and_a_saved_folder_keeps_them(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = Classifier.load(folders["ast"])
    embeddings = model.backbone.embeddings
    with torch.no_grad():  # a slope stays a slope
        grid = torch.arange(6.0).expand(2, 6).reshape(12, 1).expand(12, 16)
        embeddings.position_embeddings[0, 2:] = grid
    set_frames(model.network, model.front.extractor, 96)
    rows = embeddings.position_embeddings[0, 2:].unflatten(0, (2, 12))[..., 0]
    assert (rows.diff(dim=1) >= 0).all()
    assert torch.allclose(rows.mean(1), torch.tensor([2.5, 2.5]))
    model.seconds = 0.96
    model.save(tmp_path / "longer")
    again = Classifier.load(tmp_path / "longer")
    assert again.seconds == 0.96
    assert torch.allclose(again.classify(noise(16_000)), model.classify(noise(16_000)))


# --- other folders ---


def test_a_mert_is_a_hubert_and_none_of_its_code_runs(folders: dict[str, Path]) -> None:
    (folders["mert"] / "configuration_MERT.py").write_text("raise SystemExit('ran')\n")
    model, plain = Classifier.load(folders["mert"]), Classifier.load(folders["hubert-body"])
    inputs, lengths = torch.randn(2, 4000), torch.tensor([4000, 4000])
    assert torch.allclose(
        model.states(inputs, lengths)[0], plain.states(inputs, lengths)[0], atol=1e-6
    )
    assert hasattr(model.backbone, "masked_spec_embed")
    assert not model.named


def test_a_mert_of_old_files(folders: dict[str, Path], tmp_path: Path) -> None:
    """PyTorch's format, weight norm under its old names, no vector for what is masked."""
    folder = shutil.copytree(folders["mert"], tmp_path / "old")
    tensors = load_file(folder / "model.safetensors")
    old = {"parametrizations.weight.original0": "weight_g",
           "parametrizations.weight.original1": "weight_v"}  # fmt: skip
    renamed = {}
    for name, tensor in tensors.items():
        for new, before in old.items():
            name = name.replace(new, before)
        renamed[name] = tensor
    del renamed["masked_spec_embed"]
    torch.save(renamed, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    model, plain = Classifier.load(folder), Classifier.load(folders["mert"])
    inputs, lengths = torch.randn(1, 4000), torch.tensor([4000])
    assert torch.equal(model.states(inputs, lengths)[0], plain.states(inputs, lengths)[0])
    del renamed["feature_projection.projection.bias"]
    torch.save(renamed, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"lacks 1 weights.*hubert\.feature_projection"):
        Classifier.load(folder)
    rewrite(folder, "config.json", {"deepnorm": True})
    with pytest.raises(InputError, match="uses deepnorm"):
        Classifier.load(folder)


@pytest.mark.parametrize("kind", ["ast-body", "hubert-body"])
def test_an_encoder_without_a_head_names_nothing_until_it_is_taught(
    kind: str, folders: dict[str, Path]
) -> None:
    model, again = Classifier.load(folders[kind]), Classifier.load(folders[kind])
    with pytest.raises(InputError, match="knows no labels"):
        model.classify(noise(8000))
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)  # its random head is always the same
    model.head = MeanHead(16, ["a", "b"])
    assert model.classify(noise(8000)).shape[1] == 2


def test_loading_draws_nothing_from_the_callers_chance(folders: dict[str, Path]) -> None:
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    for kind in ("ast-body", "mert"):
        Classifier.load(folders[kind])
    assert torch.equal(torch.rand(1), expected)


def damage(folder: Path, how: str) -> str:
    """What is then said."""
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    query = next(name for name in tensors if name.endswith("query.weight"))
    if how == "missing weights":
        kept = {n: t for n, t in tensors.items() if "layer.1." not in n}
        save_file(kept, weights, {"format": "pt"})
        return r"lacks 16 weights, the first .*layers\.1\."
    if how == "other shapes":
        save_file(tensors | {query: tensors[query][:8].clone()}, weights, {"format": "pt"})
        return "other shapes than its config.json says"
    if how == "no numbers":
        save_file(tensors | {query: tensors[query] * torch.nan}, weights, {"format": "pt"})
        return "weights that are no numbers"
    if how == "cut short":
        weights.write_bytes(weights.read_bytes()[:3000])
        return "corrupt safetensors"
    if how == "pickled only":
        torch.save(tensors, folder / "pytorch_model.bin")
        weights.unlink()
        return "no file named model.safetensors"
    if how == "no extractor":
        (folder / "preprocessor_config.json").unlink()
        return "no usable preprocessor_config.json"
    if how == "another extractor":
        extractor("wav2vec2").save_pretrained(folder)
        return "makes a wave, and its config.json wants a spectrogram of 16 bands"
    if how == "other bands":
        rewrite(folder, "preprocessor_config.json", {"num_mel_bins": 32})
        return "makes a spectrogram of 32 bands"
    if how == "broken JSON":
        (folder / "config.json").write_text("{")
        return "not a valid JSON"
    (folder / "config.json").unlink()
    return "no config.json"


@pytest.mark.parametrize(
    "how",
    ["missing weights", "other shapes", "no numbers", "cut short", "pickled only", "no extractor",
     "another extractor", "other bands", "broken JSON", "no config"],
)  # fmt: skip
def test_a_damaged_folder_is_refused_in_one_line(
    how: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["ast"], tmp_path / "damaged")
    with quiet_transformers():
        said = damage(folder, how)
    with pytest.raises(InputError, match=said) as caught:
        Classifier.load(folder)
    assert "\n" not in str(caught.value)


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    with quiet_transformers():
        BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="is a bert model, not an audio encoder"):
        Classifier.load(tmp_path / "bert")
    with pytest.raises(InputError, match="unknown base"):
        Classifier.load(tmp_path / "nothing")


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e9])
@pytest.mark.parametrize("kind", ["ast", "wav2vec2"])
def test_seconds_must_be_seconds(kind: str, seconds: float, folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="must be above 0 and at most 600"):
        Classifier.load(folders[kind], seconds=seconds)


@pytest.mark.parametrize(("kind", "least"), [("ast", 0.08), ("wav2vec2", 0.0116)])
def test_too_few_seconds_say_how_many_are_enough(
    kind: str, least: float, folders: dict[str, Path]
) -> None:
    with pytest.raises(InputError, match=f"at least {least}"):
        Classifier.load(folders[kind], seconds=0.01)
    model = Classifier.load(folders[kind], seconds=least)
    assert model.classify(noise(4000)).isfinite().all()


@pytest.mark.parametrize("kind", ["ast", "wav2vec2", "wav2vec2-layer"])
@pytest.mark.parametrize("samples", [1, 100])
def test_a_blink_of_sound_is_heard(kind: str, samples: int, folders: dict[str, Path]) -> None:
    answer = Classifier.load(folders[kind]).classify(noise(samples))
    assert torch.allclose(answer.sum(1), torch.ones(1))


def test_the_mean_leaves_padding_out() -> None:
    states, heard = torch.randn(2, 5, 3), torch.tensor([[1, 1, 1, 0, 0], [1] * 5]).bool()
    expected = torch.stack([states[0, :3].mean(0), states[1].mean(0)])
    assert torch.allclose(mean_tokens(states, heard), expected)
    assert torch.allclose(mean_tokens(states), states.mean(1))
