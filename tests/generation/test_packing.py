"""Packed products against the plain ones, and which layers are packed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from musictune.errors import InputError
from musictune.generation import Engine
from musictune.generation.packing import Live, Packer, Plain, dense, product
from musictune.generation.precision import PRECISIONS, find_precision
from musictune.methods.bottleneck import BottleneckLinear
from musictune.methods.placement import Reader
from musictune.models.musicgen import MusicGen

# Norm of the error over the norm of the result.
ERRORS = {"float32": 1e-6, "float16": 6e-4, "bfloat16": 8e-3, "int8": 2.5e-2}


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(PRECISIONS), st.integers(1, 20), st.integers(1, 70), st.integers(1, 70),
    st.booleans(), st.integers(0, 9),
)  # fmt: skip
def test_products_are_close_and_rows_alone_are_the_same_to_the_bit(
    precision: str, rows: int, inputs: int, outputs: int, biased: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    bias = torch.randn(outputs, generator=generator) if biased else None
    x = torch.randn(rows, inputs, generator=generator)
    multiply = product(weight, bias, precision)  # type: ignore[arg-type]
    made, exact = multiply(x).float(), x @ weight.t() + (0 if bias is None else bias)
    bound = ERRORS[precision] * (
        x.norm(dim=1) * weight.norm() + (0 if bias is None else bias.norm())
    )
    assert ((made - exact).norm(dim=1) <= bound).all()
    for row in range(rows):
        assert torch.equal(multiply(x[row : row + 1].contiguous()).float()[0], made[row])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_zeros_stay_zeros_and_no_number_stays_none(precision: str) -> None:
    multiply = product(torch.randn(6, 8), None, precision)  # type: ignore[arg-type]
    assert not multiply(torch.zeros(2, 8)).any()
    broken = torch.randn(6, 8)
    broken[2, 3] = float("nan")
    made = product(broken, None, precision)(torch.ones(2, 8))  # type: ignore[arg-type]
    assert made[:, 2].isnan().all() and made[:, [0, 1, 3, 4, 5]].isfinite().all()


def test_weights_beyond_fp16_are_kept_in_fp32() -> None:
    weight = torch.randn(6, 8) * 1e6
    x = torch.randn(2, 8)
    assert torch.allclose(product(weight, None, "float16")(x), x @ weight.t(), rtol=1e-5)


def test_a_layer_that_bends_is_called_as_it_is() -> None:
    wrapped = BottleneckLinear(nn.Linear(8, 8, bias=False), 4, torch.Generator().manual_seed(0))
    assert dense(wrapped) is not None  # as it starts it adds nothing
    nn.init.normal_(wrapped.up)
    assert dense(wrapped) is None and Packer("float32").pack([wrapped]) is None


def test_a_layer_that_hears_another_is_called_as_it_is() -> None:
    """Packed, it would not be called, and the other would hear what was said long ago."""
    generator = torch.Generator().manual_seed(0)
    adapted = BottleneckLinear(nn.Linear(8, 8), 4, generator, "parallel")
    assert dense(adapted) is None and dense(Reader(nn.Linear(8, 8), adapted)) is None


def test_a_base_in_half_precision_is_called_in_it() -> None:
    layer = nn.Linear(8, 8).to(torch.bfloat16)
    wrapped = BottleneckLinear(layer, 4, torch.Generator().manual_seed(0))
    x = torch.randn(2, 8)
    assert dense(wrapped) is not None
    assert torch.equal(Live(wrapped, torch.float32)(x), layer(x.bfloat16()).float())


def test_what_did_not_change_is_not_packed_again() -> None:
    model = MusicGen.toy()
    engine = Engine(model)
    first = engine.decoder()
    same = engine.decoder()
    assert same.layers[0].up is first.layers[0].up and same._heads is first._heads
    with torch.no_grad():
        model.backbone.model.decoder.layers[0].fc1.weight.data[3, 5] += 1e-3
    changed = engine.decoder()
    assert changed.layers[0].up is not first.layers[0].up
    assert changed.layers[1].up is first.layers[1].up
    with torch.no_grad():  # the same numbers in another order
        weight = model.backbone.model.decoder.layers[1].fc1.weight.data
        weight.copy_(weight.flip(0))
    assert engine.decoder().layers[1].up is not first.layers[1].up


def test_unknown_precisions_are_refused() -> None:
    cpu = torch.device("cpu")
    assert find_precision("auto", cpu) in PRECISIONS and find_precision("auto", cpu) != "int8"
    with pytest.raises(InputError, match="unknown precision fp8; use auto, float32"):
        find_precision("fp8", cpu)
    with pytest.raises(InputError, match="int8 is for CPUs"):
        find_precision("int8", torch.device("cuda"))


@pytest.mark.parametrize("tiles", [False, True])
def test_keys_and_values_are_bf16_only_where_the_cpu_has_tiles(
    monkeypatch: pytest.MonkeyPatch, tiles: bool
) -> None:
    monkeypatch.setattr("musictune.generation.decoder.has_amx", lambda: tiles)
    decoder = Engine(MusicGen.toy(), "bfloat16").decoder()
    wanted = torch.bfloat16 if tiles else torch.float32
    assert decoder.kept == wanted == decoder.cache(2, 8).keys[0].dtype


def test_without_fbgemm_music_is_made_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    from musictune.generation import precision

    monkeypatch.setattr(precision, "has_fbgemm", lambda: False)
    monkeypatch.setattr(precision, "has_amx", lambda: False)
    cpu = torch.device("cpu")
    assert find_precision("auto", cpu) == "float32"
    with pytest.raises(InputError, match="needs a CPU with AVX2"):
        find_precision("int8", cpu)
    weight, x = torch.randn(6, 8), torch.randn(2, 8)
    assert torch.equal(Plain(weight, None)(x), nn.functional.linear(x, weight))
