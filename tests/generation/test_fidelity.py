"""What rounding does to a model is measured, and too much of it refused."""

from __future__ import annotations

import pytest
import torch

from musictune.errors import CheckFailed
from musictune.generation import Engine
from musictune.generation.fidelity import measure_fidelity
from musictune.models.melody import MusicGenMelody
from musictune.models.musicgen import MusicGen


@pytest.mark.parametrize("model", [MusicGen.toy(), MusicGen.toy(2), MusicGenMelody.toy()])
def test_fp32_is_itself_and_others_come_after_it_in_order(model: MusicGen) -> None:
    found = [measure_fidelity(Engine(model, p), 0.4) for p in ("float32", "float16", "int8")]
    assert found[0].divergence == found[0].loss == found[0].error == 0 and found[0].agreement == 1
    assert 0 < found[1].error < found[2].error < 0.1
    for each in found:
        each.require("int8")


def test_the_scores_are_those_of_the_loss() -> None:
    """Unguided, the mean log-probability of music is the model's own loss."""
    from musictune.generation.fidelity import _scores
    from musictune.generation.request import Request
    from musictune.generation.sampling import Sampling
    from musictune.models.base import Batch

    model = MusicGen.toy()
    engine = Engine(model, "float32")
    codes = torch.randint(64, (1, 4, 20), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([20])
    inputs, targets, mask = model.delay(codes, lengths, model.pad)
    request = Request("slow piano", 0.4, sampling=Sampling(guidance=1.0))
    logs = _scores(engine, engine.decoder(), request, inputs[0]).log_softmax(-1)
    each = logs.gather(-1, targets[0].t().clamp(max=63)[..., None])[..., 0][mask[0].t()]
    loss = model.nll(Batch(codes, lengths, ("slow piano",)))
    assert -each.mean() == pytest.approx(float(loss.detach()), abs=1e-5)


def test_weights_that_eight_bits_cannot_hold_are_refused() -> None:
    """The same function in fp32, but a few inputs of a layer are a thousand times the others."""
    model = MusicGen.toy()
    with torch.no_grad():
        for layer in model.backbone.model.decoder.layers:
            layer.final_layer_norm.weight[:3] /= 1000
            layer.final_layer_norm.bias[:3] /= 1000
            layer.fc1.weight[:, :3] *= 1000
            layer.self_attn_layer_norm.weight[:3] /= 1000
            layer.self_attn_layer_norm.bias[:3] /= 1000
            for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                part.weight[:, :3] *= 1000
    measure_fidelity(Engine(model, "float16"), 0.4).require("float16")
    with pytest.raises(CheckFailed, match="precision int8 changes this model too much"):
        measure_fidelity(Engine(model, "int8"), 0.4).require("int8")
