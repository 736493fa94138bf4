"""BitFit: which biases train, and that they fold into the layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from musictune.errors import InputError
from musictune.methods.base import trained_parameters
from musictune.methods.bitfit import BitFit, ShiftedLayer
from tests.methods import toys
from tests.methods.encoders import KINDS, attached, base, output, perturb, toy

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(3, 4), (2, 5, 3)),
    "norm": (nn.LayerNorm(4), (2, 5, 4)),
    "line": (nn.Conv1d(3, 4, 3), (2, 3, 9)),
    "plane": (nn.Conv2d(3, 4, 3, stride=2), (2, 3, 9, 7)),
    "group": (nn.GroupNorm(2, 4), (2, 4, 9)),
    "batch": (nn.BatchNorm2d(4).eval(), (2, 4, 3, 3)),
}


@pytest.mark.parametrize("kind", LAYERS)
@settings(max_examples=10, deadline=None)
@given(scale=st.floats(-2, 2), seed=st.integers(0, 99))
def test_a_shift_is_a_change_of_the_bias(kind: str, scale: float, seed: int) -> None:
    import copy

    layer, shape = copy.deepcopy(LAYERS[kind][0]), LAYERS[kind][1]
    torch.manual_seed(seed)
    x = torch.randn(shape)
    shifted = ShiftedLayer(layer)
    assert torch.equal(shifted(x), layer(x))
    nn.init.normal_(shifted.shift)
    expected = copy.deepcopy(layer)
    with torch.no_grad():
        expected.bias.add_(scale * shifted.shift)  # type: ignore[operator,union-attr]
    shifted.scale = scale
    assert torch.allclose(shifted(x), expected(x), atol=1e-5)
    folded = shifted.fold(scale)
    assert folded is layer
    assert torch.equal(folded(x), expected(x))


@pytest.mark.parametrize("kind", KINDS)
def test_every_bias_of_an_encoder_trains_and_nothing_else(kind: str) -> None:
    method = BitFit()
    model = attached(method, kind)
    biases = {
        name.removesuffix(".bias"): p.numel()
        for name, p in base(kind).backbone.named_parameters()
        if name.endswith(".bias")
    }
    trained = {
        name.removesuffix(".shift"): p.numel()
        for name, p in trained_parameters(model.backbone).items()
    }
    assert trained == biases
    assert method.describe()["trained_parameters"] == sum(biases.values())


@pytest.mark.parametrize("kind", KINDS)
def test_merged_biases_differ_and_weights_do_not(kind: str, tmp_path: Path) -> None:
    method = BitFit()
    model = attached(method, kind)
    perturb(model)
    expected = output(model, kind)
    method.save(model, tmp_path)
    method.merge(model)
    assert torch.allclose(output(model, kind), expected, atol=1e-5)
    before = dict(base(kind).named_parameters())
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all(name.endswith(".bias") for name in changed)
    assert changed == {n for n in before if n.endswith(".bias") and model_part(n, kind)}
    fresh = toy(kind)
    BitFit.load(fresh, tmp_path)
    assert torch.equal(output(fresh, kind), expected)


def model_part(name: str, kind: str) -> bool:
    """Whether a parameter of the whole model lies in its backbone."""
    prefix = base(kind).network.base_model_prefix
    return name.startswith(f"network.{prefix}.")


def test_of_musicgen_only_the_norms_have_biases() -> None:
    model, method = toys.toy(), BitFit()
    method.attach(model)
    assert all("norm" in name for name in trained_parameters(model))
    assert method.describe()["matched_layers"] == 7  # three in each of two layers, and the last


@pytest.mark.parametrize("targets", ["self_attention", r"lm_heads"])
def test_layers_without_a_bias_are_refused(targets: str) -> None:
    with pytest.raises(InputError, match="matched no layer with a bias, only") as caught:
        BitFit(targets).check(toys.base())
    assert "\n" not in str(caught.value)


def test_short_names_choose_biases() -> None:
    method = BitFit("query,feed_forward")
    attached(method, "ast")
    assert method.describe()["trained_parameters"] == 2 * (16 + 32 + 16)
