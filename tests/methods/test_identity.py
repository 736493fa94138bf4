"""An adapter knows its base by names, shapes and weights."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from musictune.errors import InputError
from musictune.methods import attach_adapter, load_adapter, save_adapter
from musictune.methods import identity as identities
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.full import Full
from musictune.methods.identity import identity_behind, identity_of
from musictune.methods.peft import Peft
from musictune.methods.pivotal import Pivotal
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen
from tests.methods.toys import base, toy


def batch() -> Batch:
    codes = torch.randint(0, 64, (1, 4, 10), generator=torch.Generator().manual_seed(1))
    return Batch(codes, torch.tensor([10]), ("piano",))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model, method = toy(), Pivotal.toy()
    method.prepare(model, itertools.repeat(batch()))
    method.attach(model)
    save_adapter(model, method, folder)
    return folder


def swap_layers(model: MusicGen) -> None:
    layers = model.backbone.model.decoder.layers
    one, two = (copy.deepcopy(layer.state_dict()) for layer in layers)
    layers[0].load_state_dict(two)
    layers[1].load_state_dict(one)


def other_shape(model: MusicGen) -> None:
    model.backbone.model.decoder.layers[1].fc1 = torch.nn.Linear(16, 40, bias=False)


def one_weight(model: MusicGen) -> None:
    with torch.no_grad():
        model.backbone.model.decoder.layers[1].self_attn.v_proj.weight[3, 5] += 0.1


def text_encoder(model: MusicGen) -> None:
    with torch.no_grad():
        model.text_encoder.encoder.block[0].layer[0].SelfAttention.q.weight[0] += 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (swap_layers, r"weights differ from model\.decoder\.layers\.0 on"),
        (other_shape, r"shapes differ from model\.decoder\.layers\.1 on"),
        (one_weight, r"weights differ from model\.decoder\.layers\.1 on"),
        (text_encoder, r"weights differ from text encoder on"),
    ],
)
def test_another_base_is_refused_by_its_first_difference(
    change: Callable[[MusicGen], None], says: str, adapter: Path
) -> None:
    model = toy()
    change(model)
    with pytest.raises(InputError, match=says) as caught:
        attach_adapter(model, adapter)
    assert "made for base 'toy' (" in str(caught.value) and "\n" not in str(caught.value)
    assert not any("base" in name for name, _ in model.backbone.named_modules())


def test_missing_and_surplus_layers_are_named(adapter: Path) -> None:
    fewer, more = toy(), toy()
    del fewer.backbone.model.decoder.layers[1]
    with pytest.raises(InputError, match=r"this base has no model\.decoder\.layers\.1"):
        attach_adapter(fewer, adapter)
    layers = more.backbone.model.decoder.layers
    layers.append(copy.deepcopy(layers[1]))
    with pytest.raises(InputError, match=r"that base has no model\.decoder\.layers\.2"):
        attach_adapter(more, adapter)


def test_an_adapter_of_before_loads_by_its_old_hash(adapter: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(adapter, tmp_path / "old")
    path = tmp_path / "old" / "adapter.json"
    content = json.loads(path.read_text())
    del content["identity"]
    path.write_text(json.dumps(content))
    attach_adapter(toy(), tmp_path / "old")
    path.write_text(json.dumps(content | {"fingerprint": "0" * 32}))
    with pytest.raises(InputError, match="made for base 'toy'"):
        attach_adapter(toy(), tmp_path / "old")


@pytest.mark.parametrize("identity", [{}, {"parts": []}, {"parts": {"codec": 3}}])
def test_a_damaged_identity_is_refused(identity: dict, adapter: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(adapter, tmp_path / "damaged")
    path = tmp_path / "damaged" / "adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"identity": identity}))
    with pytest.raises(InputError, match="made for base 'toy'"):
        attach_adapter(toy(), tmp_path / "damaged")


@pytest.mark.parametrize(
    "method", [Pivotal.toy(), Full(), Peft.toy(), Peft("dora", {"r": 2}), ConceptTokens.toy()]
)
def test_the_base_is_seen_behind_a_method(method: Pivotal | Full | Peft | ConceptTokens) -> None:
    model = toy()
    method.prepare(model, itertools.repeat(batch()))
    method.attach(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert identity_behind(model, method) == identity_of(base())
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_a_model_with_an_adapter_in_it_is_still_its_base(adapter: Path, tmp_path: Path) -> None:
    model = toy()
    load_adapter(model, adapter)
    with torch.no_grad():
        model.backbone.get_parameter("model.decoder.layers.0.fc1.weight").add_(1)
    second = ConceptTokens.toy()
    second.attach(model)
    save_adapter(model, second, tmp_path)
    assert json.loads((tmp_path / "adapter.json").read_text())["identity"] == (
        identity_of(base()).plain()
    )
    fresh = toy()
    assert isinstance(attach_adapter(fresh, tmp_path), ConceptTokens)
    assert fresh.concepts == second.concepts


def test_half_precision_is_the_same_base_and_names_count() -> None:
    half = toy()
    half.network.decoder.to(torch.bfloat16)
    assert identity_of(half) == identity_of(base())
    renamed = toy()
    renamed.backbone.model.decoder.layers[0].fc3 = renamed.backbone.model.decoder.layers[0].fc1
    del renamed.backbone.model.decoder.layers[0].fc1
    assert identity_of(renamed).difference(identity_of(base()).plain()) == (
        "shapes differ from model.decoder.layers.0 on"
    )


def test_a_sample_tells_large_bases_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large base a part of each tensor is hashed; here every tensor is a large one."""
    monkeypatch.setattr(identities, "_WHOLE", 0)
    monkeypatch.setattr(identities, "_SAMPLE", 7)
    one, same, swapped, scaled = toy(), toy(), toy(), toy()
    swap_layers(swapped)
    with torch.no_grad():
        scaled.backbone.model.decoder.layers[1].fc2.weight.mul_(1.1)
    assert identity_of(one) == identity_of(same) != identity_of(swapped)
    assert "layers.1" in str(identity_of(one).difference(identity_of(scaled).plain()))
