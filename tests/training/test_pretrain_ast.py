"""The bundled audio encoder: it trains, resumes, exports and loads, and refuses what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from musictune import audio
from musictune.audio import Clip
from musictune.errors import InputError
from musictune.models.classifier import Classifier
from musictune.training import pretrain_ast
from musictune.training.pretrain import Corpus, PretrainSettings, pretrain, read_part
from musictune.training.pretrain_ast import AstPretraining, label_table, made_worse

SHAPE: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_length": 64, "num_mel_bins": 32,
}  # fmt: skip
RECIPE = Path(__file__).parents[2] / "configs" / "pretrain_ast.yaml"
LABELS = ("drums", "flute", "jig", "waltz")


def small(steps: int = 4, held_out: int = 4, **more: Any) -> AstPretraining:
    settings = PretrainSettings(
        steps=steps, warmup=2, learning_rate=1e-2, precision="32-true", checkpoint_every=2,
        device="cpu",
    )  # fmt: skip
    return AstPretraining(settings, SHAPE, batch_size=8, held_out=held_out, workers=1, **more)


def clip(drums: bool, pitch: int, rng: np.random.Generator, seconds: float = 1.5) -> Clip:
    """Noise, or a few partials over a MIDI pitch."""
    time = torch.arange(round(seconds * 32000)) / 32000
    if drums:
        return Clip(torch.from_numpy(rng.normal(0, 0.1, (1, len(time))).astype(np.float32)), 32000)
    hertz = 440 * 2 ** ((pitch - 69) / 12)
    partials = [torch.sin(2 * torch.pi * hertz * k * time) / k for k in range(1, 5)]
    return Clip(0.2 * torch.stack(partials).sum(0)[None], 32000)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flutes that are tones and play waltzes, drums that are noise and play jigs."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(16):
        drums = i % 2 == 0
        audio.write(clip(drums, 58 + i, rng), folder / f"{i}.wav")
        rows.append(
            {"file_name": f"{i}.wav", "text": "", "seconds": 1.5, "has_drums": drums}
            | {"families": [] if drums else ["flute"], "style": "jig" if drums else "waltz"}
        )
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_it_learns_tones_from_noise_and_the_export_is_a_classifier(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(small(steps=25), corpus, tmp_path / "ast")
    said = capsys.readouterr().out
    assert "families of clips never trained on, mean average precision: 1.000" in said
    assert "styles of clips never trained on" in said
    model = Classifier.load(tmp_path / "ast")
    assert model.labels == LABELS
    assert model.multi_label and model.seconds == 0.64
    rng = np.random.default_rng(9)
    noise = model.classify(clip(True, 0, rng)).mean(0)
    tone = model.classify(clip(False, 63, rng)).mean(0)
    assert noise[0] > 0.5 > noise[1] and noise[2] > 0.5 > noise[3]
    assert tone[1] > 0.5 > tone[0] and tone[3] > 0.5 > tone[2]


def test_a_run_goes_on_where_it_stopped(corpus: Path, tmp_path: Path) -> None:
    def weights(out: Path, until: int, resume: bool = False) -> dict[str, torch.Tensor]:
        pretrain(small(4, mix=0.5), corpus, out, resume=resume, until=until)
        return load_file(out / "model.safetensors")

    whole = weights(tmp_path / "whole", 4)
    weights(tmp_path / "parts", 2)
    parts = weights(tmp_path / "parts", 4, resume=True)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_clips_that_are_held_out_are_never_drawn(corpus: Path) -> None:
    part = small(mix=1.0)
    part.open(Corpus.read(corpus))
    part.progress = 1.0
    part.heard[12:] = torch.nan
    for step in range(20):
        inputs, labels, facts = part.batch(np.random.default_rng(step))
        assert torch.isfinite(inputs).all()
        assert inputs.shape == (8, 64, 32)
        assert labels.shape == (8, 4) and facts.shape[0] == 8


def test_mixed_clips_have_the_truth_of_both(corpus: Path) -> None:
    part = small(mix=1.0)
    part.open(Corpus.read(corpus))
    part.progress = 1.0
    counts = torch.cat([part.batch(np.random.default_rng(i))[1] for i in range(8)]).sum(1)
    assert set(counts.tolist()) == {2.0, 4.0}  # of a kind, or one of each
    part.progress = 0.0
    assert set(part.batch(np.random.default_rng(0))[1].sum(1).tolist()) == {2.0}


def test_first_tokens_are_patches_at_unit_variance(corpus: Path) -> None:
    part = small()
    part.open(Corpus.read(corpus))
    rng = np.random.default_rng((part.settings.seed, 1))
    heard = part._cropped(rng.integers(part.count, size=200), rng)
    inputs, _ = part.front.inputs(list(heard), 64)
    with torch.inference_mode():
        embeddings = part.network.base_model.embeddings
        tokens = embeddings.patch_embeddings(inputs).flatten(0, 1)
    spread = torch.cov(tokens.T)
    assert tokens.mean(0).abs().max() < 0.01
    assert (spread - spread.diag().diag()).abs().max() < 0.05
    assert 0.5 < spread.diag().min() <= spread.diag().max() < 1.01


def test_patches_are_left_out_in_training_only_and_fewer_to_the_end(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = small(steps=4, patchout=0.5)
    part.open(Corpus.read(corpus))
    inputs = part.batch(np.random.default_rng(0))[0]

    def tokens() -> int:
        return int(part.network.base_model(inputs).last_hidden_state.shape[1])

    assert tokens() == 2 + 4  # of 8 patches
    monkeypatch.setattr(AstPretraining, "global_step", 2)
    assert tokens() == 2 + 6
    part.eval()
    assert tokens() == 2 + 8


@given(st.integers(0, 2**32 - 1))
def test_what_is_made_worse_stays_finite_and_over_the_floor(seed: int) -> None:
    rng = np.random.default_rng(seed)
    heard = torch.from_numpy(rng.uniform(-15.9424, 5, (3, 40, 32)).astype(np.float32))
    before = heard.clone()
    found = made_worse(heard.clone(), rng)
    assert found.shape == before.shape
    assert torch.isfinite(found).all()
    assert found.min() >= pretrain_ast._FLOOR
    assert found.max() <= before.max() + 12  # nepers of power: gain and equaliser


def test_labels_are_families_then_styles(corpus: Path) -> None:
    labels, styles, truth = label_table(Corpus.read(corpus))
    assert (labels, styles) == (LABELS, 2)
    assert truth[0].tolist() == [1, 0, 1, 0]
    assert truth[1].tolist() == [0, 1, 0, 1]


def test_a_corpus_that_does_not_fit_is_refused(corpus: Path) -> None:
    found = Corpus.read(corpus)

    def changed(**more: Any) -> Corpus:
        return Corpus(corpus, [found.rows[0] | more, *found.rows[1:]])

    with pytest.raises(InputError, match="lacks families or a style"):
        small().open(changed(style=""))
    with pytest.raises(InputError, match="lacks families or a style"):
        small().open(changed(has_drums=False))
    with pytest.raises(InputError, match="'flute' is a family and a style"):
        small().open(changed(style="flute"))
    with pytest.raises(InputError, match="9 are held out; a batch needs 8"):
        small(held_out=9).open(found)
    longer = AstPretraining(PretrainSettings(), SHAPE | {"max_length": 512}, 8, 4, workers=1)
    with pytest.raises(InputError, match=r"clips of 1\.48 s and the network hears 5\.12 s"):
        longer.open(found)


def test_clips_of_different_lengths_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, seconds in (("a", 1.0), ("b", 1.2)):
        audio.write(clip(False, 60, rng, seconds), tmp_path / f"{name}.wav")
    row = {"families": ["flute"], "style": "jig"}
    rows = [{"file_name": f"{name}.wav", **row} for name in "ab"]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    part = AstPretraining(PretrainSettings(), SHAPE, batch_size=1, held_out=0, workers=1)
    with pytest.raises(InputError, match="different lengths"):
        part.open(Corpus.read(tmp_path))
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.slow
def test_processes_hear_what_one_process_hears(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Corpus.read(corpus)
    alone = list(pretrain_ast._spectrograms(found, 32, 1))
    monkeypatch.setattr(pretrain_ast, "_POOL_FROM", 1)
    together = list(pretrain_ast._spectrograms(found, 32, 2))
    assert len(alone) == 16
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_the_recipe_is_of_this_part() -> None:
    part = read_part(RECIPE, ["part.settings.steps=5"])
    assert isinstance(part, AstPretraining)
    assert part.settings.steps == 5
