"""The fused loss of the heads: equal to that of the logits, and only where heads are plain."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn.utils import parametrize

from musictune.models import musicgen
from musictune.models.base import Batch
from musictune.models.heads import plain_heads
from musictune.models.musicgen import MusicGen


def batch() -> Batch:
    codes = torch.randint(0, 64, (3, 4, 12), generator=torch.Generator().manual_seed(5))
    return Batch(codes, torch.tensor([12, 9, 1]), ("a bright piano", "slow guitar", ""))


def through_logits(model: MusicGen, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(musicgen, "plain_heads", lambda *_: None)
        return model.nll(batch())


def is_fused(model: MusicGen) -> bool:
    return plain_heads(model.backbone, musicgen._half_states) is not None


def test_loss_and_gradients_are_those_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = MusicGen.toy(), MusicGen.toy()
    weights = torch.tensor([0.5, -1.0, 2.0])
    assert is_fused(ours)
    fused, plain = ours.nll(batch()), through_logits(theirs, monkeypatch)
    assert torch.allclose(fused, plain, rtol=1e-6)
    (fused * weights).sum().backward()
    (plain * weights).sum().backward()
    other = dict(theirs.backbone.named_parameters())
    for name, weight in ours.backbone.named_parameters():
        reference = other[name].grad
        if reference is None:
            assert weight.grad is None
        else:
            assert weight.grad is not None
            assert torch.allclose(weight.grad, reference, atol=1e-6), name
    assert ours.backbone.lm_heads[0].weight.grad.abs().sum() > 0


def test_with_the_backbone_in_half_precision_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MusicGen.toy()
    model.half_backbone()
    assert is_fused(model)
    fused = model.nll(batch())
    assert fused.dtype == torch.float32
    # The logits of the other way are rounded to bfloat16.
    assert torch.allclose(fused, through_logits(model, monkeypatch), rtol=1e-3)
    fused.mean().backward()
    assert model.backbone.lm_heads[0].weight.grad.dtype == torch.bfloat16


def adapted(model: MusicGen) -> None:
    config = LoraConfig(r=2, target_modules=["lm_heads.1"], init_lora_weights=False)
    inject_adapter_in_model(config, model.backbone)


def hooked(model: MusicGen) -> None:
    model.backbone.lm_heads[2].register_forward_hook(lambda module, given, made: made * 2)


def hooked_before(model: MusicGen) -> None:
    model.backbone.register_forward_pre_hook(lambda module, given: None)


def hooked_whole(model: MusicGen) -> None:
    def soften(module: nn.Module, given: object, made: object) -> None:
        made.logits *= 0.5  # type: ignore[attr-defined]

    model.backbone.register_forward_hook(soften)


def with_bias(model: MusicGen) -> None:
    model.backbone.lm_heads[0].bias = nn.Parameter(torch.randn(64))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized(model: MusicGen) -> None:
    parametrize.register_parametrization(model.backbone.lm_heads[3], "weight", Doubled())


def replaced(model: MusicGen) -> None:
    head = model.backbone.lm_heads[0]
    forward = head.forward
    head.forward = lambda given: -forward(given)


@pytest.mark.parametrize(
    "change",
    [adapted, hooked, hooked_before, hooked_whole, with_bias, parametrized, replaced],
)
def test_what_a_head_does_besides_is_not_missed(
    change: Callable[[MusicGen], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, model = MusicGen.toy(), MusicGen.toy()
    change(model)
    assert not is_fused(model)
    with torch.no_grad():
        loss = model.nll(batch())
        assert torch.equal(loss, through_logits(model, monkeypatch))
        assert torch.allclose(loss, plain.nll(batch()), atol=1e-5) == (change is hooked_before)


def test_a_decoder_of_another_kind_is_left_alone() -> None:
    class Other(type(MusicGen.toy().backbone)):  # type: ignore[misc]
        pass

    model = MusicGen.toy()
    model.backbone.__class__ = Other
    assert not is_fused(model)
