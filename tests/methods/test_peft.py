"""What peft does to the base, and that nothing of it is left: PiSSA, folders, bad options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from musictune.errors import InputError
from musictune.methods import attach_adapter, load_adapter, save_adapter
from musictune.methods.base import trained_parameters
from musictune.methods.peft import Peft, kinds
from musictune.methods.principal import START_FILE
from musictune.methods.storage import load_json, load_tensors, save_json, save_tensors
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen
from tests.methods.toys import base, toy


def batch() -> Batch:
    codes = torch.randint(0, 64, (2, 4, 10), generator=torch.Generator().manual_seed(1))
    return Batch(codes, torch.full((2,), 10), ("slow piano", "bright guitar"))


def output(model: MusicGen) -> torch.Tensor:
    with torch.no_grad():
        return model.nll(batch())


def trained(kind: str, options: dict[str, Any] | None = None) -> tuple[MusicGen, Peft]:
    model, method = toy(), Peft(kind, options or {"r": 2})
    torch.manual_seed(0)
    method.attach(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in trained_parameters(model).values():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model, method


STARTS: list[tuple[str, dict[str, Any]]] = [
    ("pissa", {"r": 2}),
    ("pissa", {"r": 3, "lora_alpha": 5, "use_rslora": True}),
    ("pissa", {"r": 2, "init_lora_weights": "pissa_niter_4"}),
    ("pissa", {"r": 2, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 3}}),
    ("lora", {"r": 2, "init_lora_weights": "olora"}),
]


@pytest.mark.parametrize(("kind", "options"), STARTS)
def test_plain_peft_loads_a_converted_pissa_on_the_untouched_base(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    from peft import PeftModel

    model, method = trained(kind, options)
    method.save(model, tmp_path)
    plain = toy()
    plain.network.decoder = PeftModel.from_pretrained(plain.network.decoder, str(tmp_path)).eval()
    assert not torch.allclose(output(model), output(base()), atol=1e-3)
    assert torch.allclose(output(plain), output(model), atol=1e-5)


@pytest.mark.parametrize(("kind", "options"), STARTS)
def test_a_start_out_of_the_base_goes_on_and_goes_back_to_the_bit(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model, method = trained(kind, options)
    with method.disabled(model):
        assert torch.equal(output(model), output(base()))
    save_adapter(model, method, tmp_path / "one")
    fresh = toy()
    again = attach_adapter(fresh, tmp_path / "one")
    ours, theirs = trained_parameters(model), trained_parameters(fresh)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(output(fresh), output(model))
    assert again.describe()["trained_parameters"] == method.describe()["trained_parameters"]
    # What was loaded saves the same bytes.
    save_adapter(fresh, again, tmp_path / "two")
    for file in ("adapter_model.safetensors", "adapter_config.json", START_FILE):
        one, two = (tmp_path / folder / "peft" / file for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes(), file
    again.detach(fresh)
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.parameters(), base().parameters(), strict=True)
    )


def test_pissa_begins_with_the_largest_singular_values() -> None:
    model = toy()
    Peft("pissa", {"r": 2}).attach(model)
    layer = model.backbone.get_submodule("model.decoder.layers.0.self_attn.q_proj")
    weight = base().backbone.get_parameter("model.decoder.layers.0.self_attn.q_proj.weight")
    taken = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    u, s, v = torch.linalg.svd(weight)
    assert torch.allclose(taken, u[:, :2] @ s[:2].diag() @ v[:2], atol=1e-5)
    assert layer.scaling["default"] == 1


def test_bf16_weights_come_back_after_pissa() -> None:
    model = toy()
    model.backbone.to(torch.bfloat16)
    before = {n: p.clone() for n, p in model.backbone.named_parameters()}
    method = Peft("pissa", {"r": 2})
    method.attach(model)
    method.detach(model)
    assert all(torch.equal(p, before[n]) for n, p in model.backbone.named_parameters())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "eva"}, "eva"),
        ({"init_lora_weights": "pissa", "use_dora": True}, "use_dora"),
        ({"init_lora_weights": "no_such_start"}, "no_such_start"),
    ],
)
def test_a_start_that_cannot_be_given_is_refused(options: dict[str, Any], says: str) -> None:
    model = toy()
    with pytest.raises(InputError, match=says) as caught:
        Peft("lora", {"r": 2, **options}).attach(model)
    assert "\n" not in str(caught.value)
    assert torch.equal(output(model), output(base()))


def test_what_peft_refuses_leaves_plain_layers() -> None:
    """peft gives up at the second block, when the first is wrapped already."""
    model = toy()
    model.backbone.model.decoder.layers[1].self_attn.q_proj = torch.nn.Linear(16, 6, bias=False)
    with pytest.raises(InputError, match="peft refused shira"):
        Peft("shira", {"r": 5}).attach(model)
    assert not [m for m in model.backbone.modules() if "peft" in type(m).__module__]


def test_a_folder_for_a_changed_base_is_refused(tmp_path: Path) -> None:
    model, method = trained("lora")
    method.save(model, tmp_path)
    config = load_json(tmp_path / "adapter_config.json")
    save_json(config | {"init_lora_weights": "pissa"}, tmp_path / "adapter_config.json")
    with pytest.raises(InputError, match="convert it to a plain LoRA"):
        Peft.load(toy(), tmp_path)


def _odd(folder: Path) -> None:
    tensors = load_tensors(folder / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_A" in name)
    save_tensors(tensors | {name: tensors[name][:-1]}, folder / "adapter_model.safetensors")


def _lacking(folder: Path) -> None:
    tensors = load_tensors(folder / "adapter_model.safetensors")
    del tensors[next(name for name in tensors if "lora_A" in name)]
    save_tensors(tensors, folder / "adapter_model.safetensors")


def _other_rank(folder: Path) -> None:
    save_json(load_json(folder / START_FILE) | {"r": 3}, folder / START_FILE)


def _no_rank(folder: Path) -> None:
    save_json({"init_lora_weights": "pissa"}, folder / START_FILE)


@pytest.mark.parametrize("damage", [_odd, _lacking, _other_rank, _no_rank])
def test_a_damaged_pissa_is_one_line_and_leaves_the_base(damage: Any, tmp_path: Path) -> None:
    model, method = trained("pissa")
    method.save(model, tmp_path)
    damage(tmp_path)
    fresh = toy()
    with pytest.raises(InputError) as caught:
        Peft.load(fresh, tmp_path)
    assert "\n" not in str(caught.value)
    assert [n for n, _ in fresh.named_modules()] == [n for n, _ in base().named_modules()]
    assert torch.equal(output(fresh), output(base()))


def test_half_of_pissa_is_half_of_its_change(tmp_path: Path) -> None:
    model, method = trained("pissa")
    save_adapter(model, method, tmp_path)
    merged = {}
    for weight in (0.5, 1.0):
        fresh = toy()
        load_adapter(fresh, tmp_path, weight)
        merged[weight] = dict(fresh.backbone.named_parameters())
    for name, plain in base().backbone.named_parameters():
        middle = (plain + merged[1.0][name]) / 2
        assert torch.allclose(merged[0.5][name], middle, atol=1e-6), name


@pytest.mark.parametrize(("kind", "scaling"), [("rslora", 2.0), ("lora", 2.0), ("pissa", 1.0)])
def test_default_scalings(kind: str, scaling: float) -> None:
    model = toy()
    Peft(kind, {"r": 16}).attach(model)
    layer = model.backbone.get_submodule("model.decoder.layers.0.self_attn.q_proj")
    assert layer.scaling["default"] == scaling


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("c3a", {"block_size": 4}),
        ("fourierft", {"n_frequency": 10}),
        ("road", {"group_size": 4}),
        ("waveft", {"n_frequency": 10}),
    ],
)
def test_kinds_whose_start_peft_would_draw_begin_at_the_base(
    kind: str, options: dict[str, Any]
) -> None:
    model = toy()
    Peft(kind, options).attach(model)
    assert torch.allclose(output(model), output(base()), atol=1e-6)


def test_a_folder_is_called_what_people_call_it(tmp_path: Path) -> None:
    for kind in ("lora", "dora", "rslora", "pissa", "miss"):
        model, method = trained(kind)
        method.save(model, tmp_path / kind)
        assert Peft.load(toy(), tmp_path / kind).describe()["method"] == f"peft:{kind}"
    assert {"rslora", "pissa", "miss", "oft", "vera", "shira"} <= set(kinds())
    assert not {"beft", "pvera"} & set(kinds())


def test_vera_loads_without_its_random_numbers(tmp_path: Path) -> None:
    """The projections are drawn; they come from the file, or from the seed in it."""
    for stored in (True, False):
        model, method = trained("vera", {"r": 4, "save_projection": stored})
        folder = tmp_path / str(stored)
        method.save(model, folder)
        torch.manual_seed(99)
        fresh = toy()
        Peft.load(fresh, folder)
        assert torch.equal(output(fresh), output(model))
        names = json.dumps(list(load_tensors(folder / "adapter_model.safetensors")))
        assert ("vera_A" in names) == stored


@pytest.mark.parametrize(
    ("targets", "layers"), [("self_attn", 8), ("value", 2), ("value,feed_forward", 6), (None, 8)]
)
def test_targets_by_part_of_a_name_or_short(targets: str | None, layers: int) -> None:
    """A part of a name matches blocks too, which peft would try to adapt."""
    model, method = toy(), Peft("lora", {"r": 2}, targets)
    method.attach(model)
    assert method.describe()["matched_layers"] == layers
    assert sum(n.endswith("lora_A.default.weight") for n in trained_parameters(model)) == layers


def test_a_long_refusal_of_peft_is_one_line() -> None:
    options = {"r": 2, "target_modules": ["self_attn"]}
    with pytest.raises(InputError, match="refused ia3") as caught:
        Peft("ia3", {"target_modules": ["self_attn"]}).attach(toy())
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="refused lora") as caught:
        Peft("lora", options).attach(toy())
    assert "\n" not in str(caught.value)


def test_a_rate_that_suits_the_kind() -> None:
    assert Peft("lora").learning_rate == Peft.learning_rate == 1e-3
    assert Peft("IA3").learning_rate == Peft("vera").learning_rate == 3e-2


def test_what_trains_parts_of_the_base_keeps_it_in_full_precision() -> None:
    own = [Peft("pissa"), Peft("lora", {"init_lora_weights": "olora"}), Peft("ln_tuning")]
    assert not any(method.frozen_base for method in own)
    assert all(Peft(kind).frozen_base for kind in ("lora", "dora", "shira"))
