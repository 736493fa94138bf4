"""Where adapters sit: each place against its formula, on encoders and on models that make music."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.methods.base import TuningMethod, trained_parameters
from musictune.methods.bottleneck import Bottleneck, BottleneckLinear
from musictune.methods.combined import Combined
from musictune.methods.compacter import Compacter
from musictune.methods.convolution import Convolution
from musictune.methods.placement import Placement, Reader, TunedNorm
from musictune.methods.scale_shift import ScaleShift
from musictune.methods.storage import load_json, save_json, save_tensors
from musictune.models.base import Batch, MusicModel, TunableModel
from musictune.models.blocks import blocks
from musictune.models.classifier import Classifier
from tests.methods import encoders, toys

PLACES: list[dict[str, Any]] = [
    {**whole, **form}
    for whole in (
        {"configuration": "houlsby"},
        {"configuration": "pfeiffer", "block": "feed_forward"},
        {"configuration": "pfeiffer", "block": "attention"},
    )
    for form in (
        {"form": "parallel"},
        {"form": "series", "position": "after"},
        {"form": "series", "position": "before"},
    )
]
IDS = ["-".join(place.values()) for place in PLACES]


def music_output(model: MusicModel) -> Tensor:
    codes = torch.randint(0, 64, (2, 4, 10), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.nll(Batch(codes, torch.tensor([10, 7]), ("slow piano", "")))


def fresh(kind: str) -> Any:
    return toys.toy() if kind == "music" else encoders.toy(kind)


def output(model: Any, kind: str) -> Tensor:
    return music_output(model) if kind == "music" else encoders.output(model, kind)


def untouched(kind: str) -> Any:
    return toys.base() if kind == "music" else encoders.base(kind)


def perturb(model: TunableModel) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in trained_parameters(model).values():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))


# --- what is left open ---


def test_what_is_left_open_follows_from_the_model() -> None:
    music = Placement().resolved(toys.base())
    assert music == Placement("houlsby", None, "series", "after", norms=False)
    encoder = Placement().resolved(encoders.base("ast"))
    assert encoder == Placement("pfeiffer", "feed_forward", "parallel", None, norms=True)
    assert Placement(position="before").resolved(encoders.base("ast")).form == "series"
    assert Placement(block="attention").resolved(toys.base()).parts == ("attention",)
    for found in (music, encoder):
        assert found.resolved(toys.base()) == found == found.resolved(encoders.base("ast"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"configuration": "adapterfusion"}, "'adapterfusion' is unknown; choose from pfeiffer"),
        ({"block": "cross_attention"}, "choose from feed_forward, attention"),
        ({"form": "serial"}, "choose from parallel, series"),
        ({"position": "inside"}, "choose from after, before"),
        ({"norms": 1}, "norms 1 must be true or false"),
        ({"configuration": "houlsby", "block": "attention"}, "leave one of the two options out"),
        ({"form": "parallel", "position": "after"}, "leave one of the two options out"),
        ({"targets": "fc2$", "form": "parallel"}, "leave them out"),
        ({"width": 0}, "width 0 must be a whole number"),
    ],
)
def test_options_that_make_no_sense_are_one_line(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        Bottleneck(**options)
    assert "\n" not in str(caught.value)


def test_what_is_saved_is_resolved(tmp_path: Path) -> None:
    for kind, expected in (("music", (16, "houlsby", False)), ("ast", (12, "pfeiffer", True))):
        model, method = fresh(kind), Bottleneck()
        method.attach(model)
        method.save(model, tmp_path / kind)
        saved = load_json(tmp_path / kind / "bottleneck.json")["options"]
        assert (saved["width"], saved["configuration"], saved["norms"]) == expected


# --- as it always was on models that make music ---


def test_on_music_the_default_draws_and_names_are_those_of_the_first_version() -> None:
    model, method = toys.toy(), Bottleneck()
    method.attach(model)
    generator = torch.Generator().manual_seed(0)
    learned = {n: p.detach() for n, p in method._learned().items()}
    for layer in range(2):
        for place in ("self_attn.out_proj", "fc2"):
            name = f"model.decoder.layers.{layer}.{place}"
            drawn = torch.randn(16, 16, generator=generator) / math.sqrt(16)
            assert torch.equal(learned.pop(f"{name}.down"), drawn)
            for rest, shape in (("down_bias", (16,)), ("up", (16, 16)), ("up_bias", (16,))):
                assert torch.equal(learned.pop(f"{name}.{rest}"), torch.zeros(shape))
    assert not learned
    assert method.describe()["matched_layers"] == 4


def test_files_of_the_first_version_load(tmp_path: Path) -> None:
    model, method = toys.toy(), Bottleneck(width=4)
    method.attach(model)
    perturb(model)
    save_tensors(method._learned(), tmp_path / "bottleneck.safetensors")
    options = {"width": 4, "targets": None, "seed": 0}
    save_json({"options": options}, tmp_path / "bottleneck.json")
    other = toys.toy()
    Bottleneck.load(other, tmp_path)
    assert torch.equal(music_output(other), music_output(model))


# --- every place ---


@pytest.mark.parametrize("kind", ["ast", "wav2vec2", "music"])
@pytest.mark.parametrize("place", PLACES, ids=IDS)
def test_every_place_begins_as_the_base_and_goes_back_to_it(
    place: dict[str, Any], kind: str
) -> None:
    model, method = fresh(kind), Bottleneck(width=4, **place)
    expected = output(untouched(kind), kind)
    method.attach(model)
    assert torch.equal(output(model, kind), expected)
    perturb(model)
    whole = output(model, kind)
    assert not torch.allclose(whole, expected, atol=1e-4)
    with method.disabled(model):
        assert torch.equal(output(model, kind), expected)
    assert torch.equal(output(copy.deepcopy(model), kind), whole)
    method.scale = 0.5
    half = output(model, kind)
    assert not torch.allclose(half, whole, atol=1e-5)
    method.detach(model)
    assert torch.equal(output(model, kind), expected)
    names = [n for n, _ in model.backbone.named_modules()]
    assert names == [n for n, _ in untouched(kind).backbone.named_modules()]


@pytest.mark.parametrize("method", [Bottleneck(3), Compacter(4, 2), Convolution(3, 4)])
@pytest.mark.parametrize("place", PLACES, ids=IDS)
def test_gradients_reach_every_adapter(method: Any, place: dict[str, Any]) -> None:
    """After one step all of them; at once every matrix that ends an adapter."""
    model = encoders.toy("ast")
    made = type(method)(**method.options() | place)
    made.attach(model)
    given = encoders.batch("ast")
    optimizer = torch.optim.SGD(trained_parameters(model).values(), 0.1)
    for step in range(2):
        optimizer.zero_grad()
        model.nll(given).mean().backward()
        reached = {n: bool(p.grad.any()) for n, p in made._learned().items() if p.grad is not None}
        if step == 0:
            assert all(r for n, r in reached.items() if n.endswith((".up", ".up_right")))
        optimizer.step()
    assert set(reached) == set(made._learned()) and all(reached.values())


def _block_of(model: Classifier, part: str) -> tuple[Any, Any, Any]:
    """The first layer's block, the layer that reads and the layer that ends it."""
    layer = blocks(model.backbone)[0]
    get = model.backbone.get_submodule
    if part == "attention":
        return get(layer.attention), get(layer.query), get(layer.output)
    return get("layers.0.mlp"), get(layer.first), get(layer.last)


def _run(block: Any, x: Tensor) -> Tensor:
    found = block(x)
    return found[0] if isinstance(found, tuple) else found


def _written_out(adapter: BottleneckLinear, x: Tensor) -> Tensor:
    narrow = nn.functional.gelu(x @ adapter.down.T + adapter.down_bias)
    return narrow @ adapter.up.T + adapter.up_bias


@torch.no_grad()
@pytest.mark.parametrize("part", ["attention", "feed_forward"])
@pytest.mark.parametrize("place", ["parallel", "after", "before"])
def test_a_place_is_its_formula(part: str, place: str) -> None:
    form = {"form": "parallel"} if place == "parallel" else {"form": "series", "position": place}
    model, x = encoders.toy("ast"), torch.randn(2, 5, 16)
    Bottleneck(width=4, block=part, norms=False, **form).attach(model)
    perturb(model)
    plain, _, _ = _block_of(encoders.base("ast"), part)
    block, reads, ends = _block_of(model, part)
    adapter = reads if place == "before" else ends
    assert isinstance(adapter, BottleneckLinear)
    if place == "parallel":
        expected = _run(plain, x) + _written_out(adapter, x)
    elif place == "after":
        expected = _run(plain, x) + _written_out(adapter, _run(plain, x))
    else:
        expected = _run(plain, x + _written_out(adapter, x))
    assert torch.allclose(_run(block, x), expected, atol=1e-5)


def test_what_stands_before_attention_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though queries, keys and values all read it; a running mean would move three times."""
    model = encoders.toy("ast")
    Convolution(2, 3, block="attention", position="before").attach(model)
    readers = [m for m in model.backbone.modules() if isinstance(m, Reader)]
    assert len(readers) == 4  # keys and values of two layers
    adapter = readers[0]._adapted[0]
    calls = itertools.count()
    plain = adapter.change
    monkeypatch.setattr(adapter, "change", lambda x: (next(calls), plain(x))[1])
    for _ in range(2):
        encoders.output(model, "ast")
    assert next(calls) == 2
    assert adapter._made is None


@pytest.mark.parametrize("place", PLACES[:3], ids=IDS[:3])
def test_gradient_checkpointing_changes_nothing(place: dict[str, Any]) -> None:
    found = []
    for again in (False, True):
        model = encoders.toy("ast")
        Bottleneck(3, **place).attach(model)
        perturb(model)
        model.train()
        if again:
            model.network.activation_checkpointing_enable({"use_reentrant": False})
            assert model.network.is_activation_checkpointing
        model.nll(encoders.batch("ast")).mean().backward()
        found.append({n: p.grad for n, p in trained_parameters(model).items()})
        copy.deepcopy(model)  # nothing of the pass is left in it
    plain, recomputed = found
    assert all(torch.allclose(plain[n], recomputed[n], atol=1e-6) for n in plain)


# --- norms ---


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(-1, 2), channels=st.integers(2, 6), seed=st.integers(0, 99))
def test_a_tuned_norm_is_a_norm_with_other_weights(scale: float, channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    norm = nn.LayerNorm(channels, eps=0.01)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    tuned = TunedNorm(norm)
    x = torch.randn(4, channels)
    assert torch.equal(tuned(x), norm(x))
    for parameter in tuned.learned().values():
        nn.init.normal_(parameter)
    tuned.scale = scale
    other = copy.deepcopy(norm)
    with torch.no_grad():
        other.weight += scale * tuned.gain
        other.bias += scale * tuned.shift
    assert torch.allclose(tuned(x), other(x), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "options", "names"),
    [
        ("ast", {}, ["layers.0.layernorm_after", "layers.1.layernorm_after", "layernorm"]),
        ("ast", {"block": "attention"},
         ["layers.0.layernorm_before", "layers.1.layernorm_before", "layernorm"]),
        ("hubert", {}, ["encoder.layers.0.final_layer_norm", "encoder.layers.1.final_layer_norm",
                        "encoder.layer_norm"]),
        ("music", {"norms": True, "block": "attention"},
         ["model.decoder.layers.0.self_attn_layer_norm",
          "model.decoder.layers.1.self_attn_layer_norm", "model.decoder.layer_norm"]),
        ("ast", {"norms": False}, []),
    ],
)  # fmt: skip
def test_which_norms_train(kind: str, options: dict[str, Any], names: list[str]) -> None:
    model, method = fresh(kind), Bottleneck(2, **options)
    method.attach(model)
    assert [n for n, m in method._attached().items() if isinstance(m, TunedNorm)] == names


# --- several on one model, and half precision ---


def test_methods_stand_on_each_other_and_leave_one_by_one() -> None:
    model = encoders.toy("ast")
    stack: list[TuningMethod] = [
        ScaleShift(targets="feed_forward"),
        Bottleneck(3),
        Convolution(2, 3, position="before"),
    ]
    outputs = [encoders.output(model, "ast")]
    for method in stack:
        method.attach(model)
        perturb(model)
        outputs.append(encoders.output(model, "ast"))
    assert not any(torch.allclose(a, b, atol=1e-4) for a, b in itertools.pairwise(outputs))
    for method, expected in zip(reversed(stack), reversed(outputs[:-1]), strict=True):
        with method.disabled(model):
            assert torch.equal(encoders.output(model, "ast"), expected)
        method.detach(model)
        assert torch.equal(encoders.output(model, "ast"), expected)


def test_two_kinds_train_together() -> None:
    model, method = encoders.toy("ast"), Combined([Bottleneck(2), Compacter(4, 2)])
    method.attach(model)
    model.nll(encoders.batch("ast")).mean().backward()
    named = trained_parameters(model)
    assert sum(p.numel() for p in named.values()) == method.describe()["trained_parameters"]
    with method.disabled(model):
        assert torch.equal(
            encoders.output(model, "ast"), encoders.output(encoders.base("ast"), "ast")
        )


@pytest.mark.parametrize("kind", [Bottleneck, Compacter, Convolution])
def test_half_precision_encoder_with_full_precision_adapters(kind: type[Any]) -> None:
    model = encoders.toy("ast")
    model.half_backbone()
    given = encoders.batch("ast").inputs.bfloat16()
    expected = model.backbone(input_values=given).last_hidden_state
    kind.toy().attach(model)
    assert torch.equal(model.backbone(input_values=given).last_hidden_state, expected)
    assert {p.dtype for p in trained_parameters(model).values()} == {torch.float32}
    perturb(model)
    found = model.backbone(input_values=given).last_hidden_state
    assert found.dtype == torch.bfloat16 and found.isfinite().all()
    found.float().pow(2).mean().backward()
    assert all(p.grad is not None for p in trained_parameters(model).values())
