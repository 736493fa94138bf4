"""The classifier: distributions over classes, the same with every front end that is there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.classifier import AstClassifier
from musictune.metrics.embedders.clap import ClapEmbedder


def noise(seconds: float, seed: int = 0) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    return Clip(torch.rand(1, round(seconds * 16_000), generator=generator) - 0.5, 16_000)


@pytest.fixture(scope="module")
def classifier() -> AstClassifier:
    return AstClassifier.toy()


@pytest.mark.parametrize(("seconds", "windows"), [(0.1, 1), (1.0, 1), (1.4, 1), (1.5, 2), (3.3, 5)])
def test_each_window_gives_probabilities(classifier: AstClassifier, seconds: float, windows: int):
    rows = classifier.hear(noise(seconds))
    assert rows.shape == (windows, len(classifier.labels))
    assert (rows > 0).all()
    assert rows.sum(1) == pytest.approx(1.0, abs=1e-6)


def test_they_are_the_softmax_of_the_logits(classifier: AstClassifier):
    clip = noise(1.0)
    values = classifier.extractor(clip.wave[0].numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        logits = classifier.model(values["input_values"]).logits[0].double().numpy()
    expected = np.exp(logits) / np.exp(logits).sum()
    assert classifier.hear(clip)[0] == pytest.approx(expected, abs=1e-6)


def test_saved_and_loaded_is_the_same(classifier: AstClassifier, tmp_path: Path):
    classifier.save(tmp_path / "ast")
    loaded = AstClassifier.load(tmp_path / "ast")
    assert np.allclose(loaded.hear(noise(2.0)), classifier.hear(noise(2.0)), atol=1e-6)
    assert loaded.labels == classifier.labels
    assert loaded.key != classifier.key


def test_useless_folders_are_refused_in_one_line(classifier: AstClassifier, tmp_path: Path):
    ClapEmbedder.toy().save(tmp_path / "clap")
    classifier.save(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    classifier.save(tmp_path / "headless")
    config = json.loads((tmp_path / "headless" / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (tmp_path / "headless" / "config.json").write_text(json.dumps(config))
    (tmp_path / "empty").mkdir()
    wrong = {"clap": "is no AST", "cut": "cannot be loaded", "headless": "lacks", "empty": "loaded"}
    for folder, words in wrong.items():
        with pytest.raises(InputError, match=words) as caught:
            AstClassifier.load(tmp_path / folder)
        assert str(caught.value).startswith("classifier ")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="unknown classifier"):
        AstClassifier.load(tmp_path / "nothing")
