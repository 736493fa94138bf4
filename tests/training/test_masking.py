"""Mask fine-tuning hides what it says, only while training, and leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from musictune.errors import InputError
from musictune.methods.adapter import attach_adapter, save_adapter
from musictune.methods.base import TuningMethod
from musictune.methods.combined import Combined
from musictune.methods.full import Full
from musictune.methods.linear_probe import LinearProbe
from musictune.methods.peft import Peft
from musictune.models.classifier import Classifier, LabelledBatch
from musictune.training.masking import PatchMasking

KINDS = ("ast", "wav2vec2", "hubert")


def batch(model: Classifier, clips: int = 3) -> LabelledBatch:
    chance = torch.Generator().manual_seed(5)
    shape = (model.steps, model.front.bands) if model.front.bands else (model.steps,)
    heard = [torch.randn(shape, generator=chance) for _ in range(clips)]
    return model.batch(heard, torch.eye(3)[torch.arange(clips) % 3])


def positions(model: Classifier) -> list[Tensor]:
    """What the masked module lets through in each later pass; filled as they are made."""
    seen: list[Tensor] = []
    place = "embeddings.patch_embeddings" if model.front.bands else "feature_projection"

    def keep(module: object, inputs: object, found: Tensor | tuple[Tensor, ...]) -> None:
        seen.append((found[0] if isinstance(found, tuple) else found).detach().clone())

    model.backbone.get_submodule(place).register_forward_hook(keep)
    return seen


@given(share=st.floats(0, 0.99), count=st.integers(2, 300), clips=st.integers(1, 4))
def test_each_clip_loses_the_same_share(share: float, count: int, clips: int) -> None:
    drawn = PatchMasking(share).drawn(clips, count)
    wanted = min(max(round(share * count), 1), count - 1) if share else 0
    assert drawn.sum(1).tolist() == [wanted] * clips


def test_every_position_has_the_same_chance() -> None:
    rate = PatchMasking(0.25).drawn(4000, 8).float().mean(0)
    assert torch.allclose(rate, torch.full((8,), 0.25), atol=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_that_share_of_positions_is_replaced(kind: str) -> None:
    model = Classifier.toy(kind)
    given, plain = batch(model), Classifier.toy(kind)
    before = positions(plain)
    plain.nll(given)
    masking = PatchMasking(0.3).attach(model)
    seen = positions(model)
    model.train(True)
    torch.manual_seed(7)
    model.nll(given)
    torch.manual_seed(7)
    drawn = masking.drawn(*seen[0].shape[:2])
    token = getattr(model.backbone, "masked_spec_embed", torch.zeros(model.width))
    assert torch.equal(seen[0][drawn], token.detach().expand(int(drawn.sum()), -1))
    assert torch.equal(seen[0][~drawn], before[0][~drawn])
    assert drawn.sum(1).tolist() == [round(0.3 * drawn.shape[1])] * 3


def test_class_tokens_and_positions_stay() -> None:
    model = Classifier.toy()
    embeddings, given = model.backbone.embeddings, batch(model)
    with PatchMasking(0.5).during(model):
        model.train(True)
        torch.manual_seed(3)
        found = embeddings(given.inputs)
        torch.manual_seed(3)
        drawn = PatchMasking(0.5).drawn(3, found.shape[1] - 2)
    table = embeddings.position_embeddings.expand(3, -1, -1)
    tokens = torch.cat([embeddings.cls_token, embeddings.distillation_token], 1)
    assert torch.equal(found[:, :2], tokens + table[:, :2])
    assert torch.equal(found[:, 2:][drawn], table[:, 2:][drawn])


@pytest.mark.parametrize("kind", KINDS)
def test_only_training_is_masked_and_a_seed_gives_the_same(kind: str) -> None:
    model = Classifier.toy(kind)
    given = batch(model)
    plain = model.nll(given)
    masking = PatchMasking(0.3).attach(model)
    assert torch.equal(model.nll(given), plain)
    model.train(True)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model.nll(given))
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    assert (losses[0] != plain).all()
    heard = list(given.inputs)
    model.train(False)
    expected = model.probabilities(heard)
    model.train(True)
    assert torch.equal(model.probabilities(heard), expected)  # it listens in evaluation mode
    masking.detach()
    assert torch.equal(model.nll(given), plain)


@pytest.mark.parametrize(
    "method", [Full, lambda: Peft("lora", {"r": 2, "init_lora_weights": False})],
    ids=["full", "lora"],
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["ast", "wav2vec2"])
def test_it_lives_with_a_method_and_nothing_of_it_is_saved(
    kind: str, first: bool, method: type[TuningMethod], tmp_path: Path
) -> None:
    model, masking = Classifier.toy(kind), PatchMasking(0.4)
    both = Combined([LinearProbe(("one", "two", "three")), method()])
    if first:
        masking.attach(model)
    both.attach(model)
    if not first:
        masking.attach(model)
    given = batch(model)
    model.train(True)
    model.nll(given).sum().backward()
    assert any(p.grad is not None for p in model.backbone.parameters())
    names = set(model.state_dict())
    save_adapter(model, both, tmp_path / "adapter")
    expected = model.train(False).nll(given)
    masking.detach()
    assert torch.equal(model.nll(given), expected)
    assert set(model.state_dict()) == names
    other = Classifier.toy(kind)
    attach_adapter(other, tmp_path / "adapter")
    assert torch.allclose(other.nll(given), expected, atol=1e-6)


def test_the_vector_of_pre_training_is_not_trained_by_it() -> None:
    model = Classifier.toy("wav2vec2")
    with PatchMasking(0.4).during(model):
        model.train(True)
        model.nll(batch(model)).sum().backward()
    assert model.backbone.masked_spec_embed.grad is None


def test_share_0_does_nothing() -> None:
    model = Classifier.toy()
    given, plain = batch(model), model.nll(batch(model))
    with PatchMasking(0).during(model):
        model.train(True)
        assert torch.equal(model.nll(given), plain)


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0, float("nan")])
def test_other_shares_are_refused(share: float) -> None:
    with pytest.raises(InputError, match=r"share .* must be at least 0 and below 1"):
        PatchMasking(share)


def test_it_is_attached_once_and_only_where_there_are_patches() -> None:
    masking = PatchMasking(0.1).attach(Classifier.toy())
    with pytest.raises(InputError, match="detach it first"):
        masking.attach(Classifier.toy())
    masking.detach()
    masking.detach()
    model = Classifier.toy()
    del model.backbone.embeddings.patch_embeddings
    with pytest.raises(InputError, match="mask_patches 0"):
        masking.attach(model)
