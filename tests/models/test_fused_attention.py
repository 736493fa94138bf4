"""MusicGen under our attention is MusicGen."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor

from musictune import kernels
from musictune.errors import InputError
from musictune.kernels import runtime
from musictune.models.base import Batch
from musictune.models.fused_attention import NAME, register
from musictune.models.musicgen import MusicGen


def scored(model: MusicGen, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    loss = model.nll(batch)
    weights = [w for w in model.backbone.parameters() if w.requires_grad]
    return loss.detach(), list(torch.autograd.grad(loss.sum(), weights, allow_unused=True))


@pytest.mark.parametrize("way", ["torch", "interpreted"])
def test_losses_and_gradients_are_equal(way: str) -> None:
    if way == "interpreted" and not (runtime.has_triton() and runtime.interpreted()):
        pytest.skip("needs triton and TRITON_INTERPRET=1; pip install 'musictune[kernels]'")
    model = MusicGen.toy()
    codes = torch.randint(model.vocabulary, (3, model.codebooks, 19))
    texts = ("slow piano and violin in a minor key", "", "drums")  # masks of several lengths
    batch = Batch(codes, torch.tensor([19, 7, 12]), texts)
    plain, gradients = scored(model, batch)
    calls = []
    model.backbone.set_attn_implementation(register())
    first = model.backbone.model.decoder.layers[0].self_attn
    assert first.config._attn_implementation == NAME
    first.register_forward_hook(lambda *_: calls.append(1))
    with kernels.interpreting() if way == "interpreted" else contextlib.nullcontext():
        ours, own = scored(model, batch)
    assert calls
    assert torch.allclose(ours, plain, atol=1e-5)
    for mine, theirs in zip(own, gradients, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert torch.allclose(mine, theirs, atol=1e-5)


def test_generation_with_a_cache_is_equal() -> None:
    plain, ours = MusicGen.toy(), MusicGen.toy()
    ours.backbone.set_attn_implementation(register())
    theirs, mine = (model.rollout(["piano", ""], 0.3, seed=1)[0] for model in (plain, ours))
    assert torch.equal(mine.codes, theirs.codes)


def test_what_it_cannot_do_is_refused() -> None:
    model = MusicGen.toy()
    model.backbone.set_attn_implementation(register())
    ids = torch.zeros(2 * model.codebooks, 3, dtype=torch.int64)
    states = torch.randn(2, 4, 16)
    left = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    with pytest.raises(InputError, match="padded at their end"):
        model.backbone(input_ids=ids, encoder_hidden_states=states, encoder_attention_mask=left)
    with pytest.raises(InputError, match="takes a mask of"):
        model.backbone(input_ids=ids, attention_mask=torch.zeros(2, 1, 3, 3))
    model.backbone.train()
    model.backbone.model.decoder.layers[0].self_attn.dropout = 0.1
    with pytest.raises(InputError, match=r"dropout 0\.1"):
        model.backbone(input_ids=ids)
