"""Several adapters on one model: weights, depth, words."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from musictune.data.concepts import Concept
from musictune.errors import InputError
from musictune.methods import load_adapter, methods, save_adapter
from musictune.methods.base import TuningMethod, trained_parameters
from musictune.methods.combined import Combined
from musictune.methods.composition import Addition, Depth, check_together, layer_of, scales
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.full import Full
from musictune.methods.peft import Peft
from musictune.methods.pivotal import Pivotal
from musictune.methods.storage import load_json, save_json
from musictune.models.base import Batch
from tests.methods.toys import LIVE, base, toy


def batch(text: str = "piano") -> Batch:
    codes = torch.randint(0, 64, (1, 4, 10), generator=torch.Generator().manual_seed(1))
    return Batch(codes, torch.tensor([10]), (text,))


def saved(method: TuningMethod, folder: Path) -> Path:
    model = toy()
    method.prepare(model, itertools.repeat(batch()))
    method.attach(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in trained_parameters(model).values():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    save_adapter(model, method, folder)
    return folder


def weights(*loads: tuple) -> dict[str, torch.Tensor]:
    model = toy()
    for folder, *rest in loads:
        load_adapter(model, folder, *rest)
    return {n: p.detach() for n, p in model.backbone.named_parameters()}


@given(st.floats(-2, 2), st.floats(-2, 2), st.integers(2, 48))
def test_depth_is_a_straight_line(first: float, last: float, layers: int) -> None:
    depth = Depth(first, last)
    values = [depth.at(layer, layers) for layer in range(layers)]
    assert values[0] == first and values[-1] == pytest.approx(last, abs=1e-9)
    steps = [b - a for a, b in itertools.pairwise(values)]
    assert max(steps) - min(steps) < 1e-9


def test_depth_is_read_and_nonsense_refused() -> None:
    assert Depth.read("0.3:1") == Depth(0.3, 1.0)
    assert Depth(1, 3).at(0, 1) == 3
    for bad in ("", "0.3", "a:1", "0.3:", "nan:1", "0:inf", "1:2:3"):
        with pytest.raises(InputError, match="FIRST:LAST"):
            Depth.read(bad)


@pytest.mark.parametrize("method", [Pivotal.toy(), Peft("dora", {"r": 2}), Full()])
def test_each_layer_keeps_its_share_of_any_method(method: TuningMethod, tmp_path: Path) -> None:
    saved(method, tmp_path)
    plain = dict(base().backbone.named_parameters())
    whole, scaled = weights((tmp_path,)), weights((tmp_path, 0.5, Depth(0.2, 1.0)))
    for name in plain:
        layer = layer_of(name)
        share = {0: 0.2, 1: 1.0, None: 0.2 if "embed" in name else 1.0}[layer]
        expected = plain[name] + 0.5 * share * (whole[name] - plain[name])
        assert torch.allclose(scaled[name], expected, atol=1e-6), name


def test_words_have_no_depth(tmp_path: Path) -> None:
    saved(Combined([ConceptTokens.toy(), Pivotal.toy()]), tmp_path)
    one, other = toy(), toy()
    load_adapter(one, tmp_path, 0.5)
    load_adapter(other, tmp_path, 0.5, Depth(0.1, 0.9))
    tables = [m.text_encoder.get_input_embeddings().weight for m in (one, other)]
    assert torch.equal(*tables)
    assert not torch.equal(one.nll(batch()), other.nll(batch()))


def test_layers_are_found_in_names() -> None:
    assert layer_of("model.decoder.layers.11.self_attn.q_proj.weight") == 11
    assert layer_of("lm_heads.3.weight") is None
    names = ["model.decoder.embed_tokens.0.weight", "a.layers.0.x", "a.layers.1.x", "norm.weight"]
    assert list(scales(names, Depth(0, 1)).values()) == [0, 0, 1, 1]


def test_two_adapters_of_one_name_are_one_clear_line(tmp_path: Path) -> None:
    for name in ("one", "two"):
        saved(ConceptTokens([Concept("zorblax", "piano")]), tmp_path / name)
    folders = [tmp_path / "one", tmp_path / "two"]
    expected = rf"adapters {folders[0]} and {folders[1]} both teach <zorblax>; load one"
    with pytest.raises(InputError, match=expected):
        check_together(folders)
    model = toy()
    load_adapter(model, folders[0])
    before = model.text_encoder.get_input_embeddings().weight.clone()
    with pytest.raises(InputError, match=expected):
        load_adapter(model, folders[1])
    assert torch.equal(model.text_encoder.get_input_embeddings().weight, before)
    with pytest.raises(InputError, match="given twice"):
        check_together([folders[0], folders[0]])


@pytest.mark.parametrize("concepts", [7, None, [3], [{"class_word": "piano"}], [{"name": {}}]])
def test_concepts_that_are_none_are_damage(concepts: object, tmp_path: Path) -> None:
    folder = saved(ConceptTokens.toy(), tmp_path / "run")
    content = load_json(folder / "adapter.json")
    save_json(content | {"concepts": concepts}, folder / "adapter.json")
    with pytest.raises(InputError, match=r"damaged: adapter.json has bad concepts") as caught:
        check_together([folder])
    assert "\n" not in str(caught.value)


def test_additions_are_read(tmp_path: Path) -> None:
    folder = saved(ConceptTokens.toy(), tmp_path / "run")
    assert Addition.read(str(folder)) == Addition(folder, 1.0)
    assert Addition.read(f"{folder}=-0.5") == Addition(folder, -0.5)
    for bad in ("x", "nan", ""):
        with pytest.raises(InputError, match="weight"):
            Addition.read(f"{folder}={bad}")
    with pytest.raises(InputError, match="does not exist"):
        Addition.read(str(tmp_path / "none"))


@pytest.mark.parametrize("name", LIVE)
def test_what_cannot_be_merged_stays_attached_with_its_weight(name: str, tmp_path: Path) -> None:
    saved(methods()[name].toy(), tmp_path)
    outputs = {}
    for weight in (0.0, 0.5, 1.0):
        model = toy()
        load_adapter(model, tmp_path, weight)
        assert not trained_parameters(model)
        with torch.no_grad():
            outputs[weight] = model.nll(batch())
    with torch.no_grad():  # with gradients the loss is summed in another order
        assert torch.equal(outputs[0.0], base().nll(batch()))
    assert not torch.equal(outputs[1.0], outputs[0.5]) and not torch.equal(outputs[0.5], outputs[0])
    with pytest.raises(InputError, match=f"cannot be scaled by depth: {name}"):
        load_adapter(toy(), tmp_path, 1.0, Depth(0, 1))
