"""A CLAP that can be tuned: what it hears, what its loss is, what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.embedders import ClapEmbedder
from musictune.models.blocks import blocks
from musictune.models.contrastive import CaptionedBatch, Contrastive


@pytest.fixture(scope="module")
def toy() -> Contrastive:
    return Contrastive.toy()


def clip(seconds: float, rate: int = 8000, seed: int = 0) -> Clip:
    wave = torch.randn(1, int(seconds * rate), generator=torch.Generator().manual_seed(seed))
    return Clip(0.1 * wave, rate)


def batch(
    toy: Contrastive, texts: tuple[str, ...], meanings: tuple[str, ...] = ()
) -> CaptionedBatch:
    features = torch.stack([toy.hear(clip(1.0, seed=i)) for i in range(3)])
    return CaptionedBatch(features, texts, meanings)


def expected(toy: Contrastive, given: CaptionedBatch, same: Tensor) -> Tensor:
    """InfoNCE row by row, with equal shares for all that is right."""
    heard, read = toy.place(given.features), toy.read(given.texts)
    logits = heard @ read.T * toy.network.logit_scale_a.exp()
    count = len(given)
    losses = []
    for row in range(count):
        said = -logits[row].log_softmax(0)[same[row]].mean()
        found = -logits[:, row].log_softmax(0)[same[:, row]].mean()
        losses.append((said + found) / 2)
    return torch.stack(losses)


def test_the_loss_is_both_directions_of_infonce(toy: Contrastive) -> None:
    given = batch(toy, ("a hum", "a tone", "noise"))
    same = torch.eye(3, dtype=torch.bool)
    assert torch.allclose(toy.nll(given), expected(toy, given, same), atol=1e-5)


@pytest.mark.parametrize(
    ("texts", "meanings"),
    [(("hum", "hum", "noise"), ()), (("hum", "a hum", "noise"), ("hum", "hum", "noise"))],
)
def test_texts_of_one_meaning_are_equally_right(
    texts: tuple[str, ...], meanings: tuple[str, ...], toy: Contrastive
) -> None:
    given = batch(toy, texts, meanings)
    same = torch.eye(3, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    assert torch.allclose(toy.nll(given), expected(toy, given, same), atol=1e-5)


def test_wrong_texts_stand_among_the_answers_to_clips_only(toy: Contrastive) -> None:
    plain = toy.nll(batch(toy, ("hum", "tone", "noise")))
    harder = toy.nll(batch(toy, ("hum", "tone", "noise", "silence", "hum then tone")))
    assert (harder > plain).all()
    # One that says what a clip's own text does is right, not wrong.
    given = batch(toy, ("hum", "tone", "noise", "noise again"), ("h", "t", "n", "n"))
    heard, read = toy.place(given.features), toy.read(given.texts)
    logits = heard @ read.T * toy.network.logit_scale_a.exp()
    said = -logits[2].log_softmax(0)[2:].mean()
    found = -logits[:, 2].log_softmax(0)[2]
    assert toy.nll(given)[2].item() == pytest.approx(((said + found) / 2).item(), abs=1e-5)


def test_one_meaning_for_all_is_the_entropy_at_best(toy: Contrastive) -> None:
    assert (toy.nll(batch(toy, ("hum", "hum", "hum"))) >= math.log(3) - 1e-4).all()


def test_texts_that_do_not_fit_the_clips_are_refused(toy: Contrastive) -> None:
    with pytest.raises(InputError, match="do not fit"):
        toy.nll(batch(toy, ("hum",)))
    with pytest.raises(InputError, match="do not fit"):
        toy.nll(batch(toy, ("hum", "tone", "noise"), ("hum",)))


def test_batch_norm_keeps_the_statistics_of_the_base() -> None:
    model = Contrastive.toy()
    model.train()
    assert model.training
    kept = {n: b.clone() for n, b in model.named_buffers()}
    model.nll(batch(model, ("hum", "tone", "noise")))
    assert all(torch.equal(b, kept[n]) for n, b in model.named_buffers())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)


def test_the_bundled_clap_hears_and_reads_as_the_embedder_does() -> None:
    model, embedder = Contrastive.load(), ClapEmbedder.load()
    heard = clip(10.0, 32_000)
    mine = model.audio_points([model.hear(heard)])[0].numpy()
    assert np.allclose(embedder.hear(heard)[0], mine, atol=1e-5)
    texts = ["a slow piano", "fast heavy rock drums with a guitar"]
    assert torch.allclose(model.text_points(texts), embedder.text(texts), atol=1e-5)
    assert model.most_tokens == embedder.most_tokens


def test_windows_are_consecutive_and_never_drawn(toy: Contrastive) -> None:
    lengths = [w.samples for w in toy.windows(clip(2.6))]
    assert lengths == [8000, 8000, 4800]
    assert [w.samples for w in toy.windows(clip(2.4))] == [8000, 8000]
    assert [w.samples for w in toy.windows(clip(0.3))] == [2400]
    assert all(torch.equal(toy.hear(clip(0.3)), toy.hear(clip(0.3))) for _ in range(3))
    assert toy.hear(clip(1.0)).shape == (toy.frames, 16)


@pytest.mark.parametrize(("tower", "inside"), [("audio", "audio_encoder"), ("text", "encoder")])
def test_a_tower_alone_is_the_backbone(tower: str, inside: str) -> None:
    model = Contrastive.toy()
    model.tower = tower  # type: ignore[assignment]
    assert all(inside in block.name for block in blocks(model.backbone))
    assert len(blocks(model.backbone)) < len(blocks(Contrastive.toy().backbone))


def test_a_saved_one_is_the_same(toy: Contrastive, tmp_path: Path) -> None:
    toy.save(tmp_path / "clap")
    again = Contrastive.load(tmp_path / "clap")
    features = [toy.hear(clip(0.7))]
    assert torch.equal(again.audio_points(features), toy.audio_points(features))


def test_bases_that_cannot_be(tmp_path: Path, toy: Contrastive) -> None:
    with pytest.raises(InputError, match="unknown base"):
        Contrastive.load("no such base")
    with pytest.raises(InputError, match="no usable config"):
        Contrastive.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="bert model, not a CLAP"):
        Contrastive.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        Contrastive.load(tmp_path / "file")
    toy.save(tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be loaded"):
        Contrastive.load(tmp_path / "broken")
    with pytest.raises(InputError, match="tower"):
        Contrastive.load(tower="bell")  # type: ignore[arg-type]
