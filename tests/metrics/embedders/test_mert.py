"""MERT: read as HuBERT, from files as they are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.embedders.loading import load_embedder
from musictune.metrics.embedders.mert import TOY, MertEmbedder

OLD_NAMES = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


def hubert(**changes: Any) -> HubertModel:
    torch.manual_seed(0)
    return HubertModel(HubertConfig(**(TOY | changes))).eval()


def weights_of(model: HubertModel, old: bool) -> dict[str, torch.Tensor]:
    found = {}
    for key, tensor in model.state_dict().items():
        for new, name in OLD_NAMES.items():
            key = key.replace(new, name) if old else key
        found[key] = tensor
    return found


def publish(folder: Path, model: HubertModel, *, old: bool = True, **settings: Any) -> Path:
    """A folder as m-a-p's: a config of their own type, and a PyTorch file unless not old."""
    folder.mkdir()
    config = model.config.to_dict() | {
        "model_type": "mert_model",
        "architectures": ["MERTModel"],
        "auto_map": {"AutoModel": "modeling_MERT.MERTModel"},
        "attention_relax": 32.0,
        "deepnorm": False,
        "feature_extractor_cqt": False,
        "feature_extractor_cqt_bins": 336,
    }
    (folder / "config.json").write_text(json.dumps(config | settings))
    (folder / "modeling_MERT.py").write_text("raise SystemExit('this code was run')")
    Wav2Vec2FeatureExtractor(sampling_rate=8000, do_normalize=True).save_pretrained(folder)
    if old:
        torch.save(weights_of(model, old), folder / "pytorch_model.bin")
    else:
        save_file(weights_of(model, old), folder / "model.safetensors")
    return folder


def noise(samples: int, seed: int = 0) -> np.ndarray:
    wave = np.random.default_rng(seed).uniform(-0.5, 0.5, samples)
    return wave.astype(np.float32)


@pytest.mark.parametrize("old", [True, False], ids=["old names, .bin", "new names, safetensors"])
@pytest.mark.parametrize("stable", [False, True])
def test_published_weights_answer_as_hubert_does(tmp_path: Path, old: bool, stable: bool):
    norm = {"do_stable_layer_norm": stable, "feat_extract_norm": "layer" if stable else "group"}
    model = hubert(**norm)
    embedder = load_embedder(publish(tmp_path / "mert", model, old=old))
    wave = noise(8000)
    normal = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
    with torch.inference_mode():
        expected = model(torch.from_numpy(normal)[None]).last_hidden_state[0]
    assert isinstance(embedder, MertEmbedder)
    assert torch.allclose(embedder.frames(wave), expected, atol=1e-4)
    assert torch.allclose(embedder.embed([wave])[0], expected.mean(0), atol=1e-4)
    assert len(embedder.hash) == 64


def test_the_relaxed_softmax_of_mert_is_the_softmax():
    """Why the option can be ignored."""
    logits = torch.randn(4, 9, 9, dtype=torch.float64) * 20
    relaxed = logits / 32.0
    relaxed = (relaxed - relaxed.amax(-1, keepdim=True)) * 32.0
    assert torch.allclose(relaxed.softmax(-1), logits.softmax(-1), atol=1e-14)


def test_the_preprocessor_decides_about_loudness(tmp_path: Path):
    folder = publish(tmp_path / "mert", hubert())
    wave = noise(8000)
    faint = wave / 300
    normalised = load_embedder(folder)
    assert torch.allclose(normalised.embed([wave]), normalised.embed([faint]), atol=1e-3)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"do_normalize": False}))
    plain = load_embedder(folder)
    assert not torch.allclose(plain.embed([wave]), plain.embed([faint]), atol=1e-2)
    assert plain.key != normalised.key


@pytest.mark.parametrize(("seconds", "windows"), [(0.3, 1), (1.0, 1), (1.4, 1), (1.5, 2), (3.3, 5)])
def test_a_point_for_each_whole_window(seconds: float, windows: int):
    embedder = MertEmbedder.toy()
    clip = Clip(torch.from_numpy(noise(round(seconds * 8000)))[None], 8000)
    assert embedder.hear(clip).shape == (windows, embedder.dim)


@pytest.mark.parametrize("option", ["deepnorm", "feature_extractor_cqt"])
def test_what_hubert_has_not_is_refused(tmp_path: Path, option: str):
    folder = publish(tmp_path / "mert", hubert(), **{option: True})
    with pytest.raises(InputError, match=option):
        load_embedder(folder)


@pytest.mark.parametrize("fault", ["lacking", "shape", "cut", "none", "preprocessor", "type"])
def test_damaged_folders_are_refused_in_one_line(tmp_path: Path, fault: str):
    folder = publish(tmp_path / "mert", hubert())
    weights = folder / "pytorch_model.bin"
    tensors = torch.load(weights, weights_only=True)
    if fault == "lacking":
        del tensors["encoder.layers.0.attention.q_proj.weight"]
        torch.save(tensors, weights)
    elif fault == "shape":
        tensors["encoder.layers.0.attention.q_proj.weight"] = torch.zeros(3, 3)
        torch.save(tensors, weights)
    elif fault == "cut":
        weights.write_bytes(weights.read_bytes()[:500])
    elif fault == "none":
        weights.unlink()
    elif fault == "preprocessor":
        (folder / "preprocessor_config.json").unlink()
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "t5"}))
    with pytest.raises(InputError) as caught:
        MertEmbedder.load(folder)
    assert "\n" not in str(caught.value)
    assert "mert" in str(caught.value)
