"""Bottleneck, ssf, prefix and prompt tuning: each against its formula, and bad input."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.methods import attach_adapter, load_adapter, save_adapter
from musictune.methods.attention_memory import Remembering
from musictune.methods.base import trained_parameters
from musictune.methods.bottleneck import Bottleneck, BottleneckLinear
from musictune.methods.inserted import Inserted
from musictune.methods.prefix import Prefix
from musictune.methods.prompt import PromptTuning
from musictune.methods.scale_shift import ScaledLayer, ScaleShift
from musictune.methods.storage import load_json, load_tensors, save_json, save_tensors
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen
from tests.methods.toys import base, toy

KINDS: list[type[Inserted]] = [Bottleneck, ScaleShift, Prefix, PromptTuning]
MEMORIES: list[type[Remembering]] = [Prefix, PromptTuning]


def batch(*texts: str) -> Batch:
    codes = torch.randint(0, 64, (len(texts), 4, 10), generator=torch.Generator().manual_seed(1))
    return Batch(codes, torch.full((len(texts),), 10), texts)


def output(model: MusicGen, *texts: str) -> Tensor:
    with torch.no_grad():
        return model.nll(batch(*(texts or ("slow piano", "bright guitar"))))


def perturb(model: MusicGen) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in trained_parameters(model).values():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))


def trained(kind: type[Inserted], model: MusicGen | None = None) -> tuple[MusicGen, Inserted]:
    model, method = model or toy(), kind.toy()
    method.prepare(model, itertools.repeat(batch("slow piano", "bright guitar")))
    method.attach(model)
    perturb(model)
    return model, method


# --- formulas ---


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 5),
    scale=st.floats(0, 2),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 99),
)
def test_a_bottleneck_is_its_formula(
    width: int, scale: float, shape: tuple[int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(*shape, bias=False)
    adapted = BottleneckLinear(layer, width, torch.Generator().manual_seed(seed))
    x = torch.randn(3, shape[0])
    assert torch.equal(adapted(x), layer(x))
    for parameter in adapted.learned().values():
        nn.init.normal_(parameter)
    adapted.scale = scale
    y = layer(x).double()
    narrow = F.gelu(y @ adapted.down.double().T + adapted.down_bias.double())
    expected = y + scale * (narrow @ adapted.up.double().T + adapted.up_bias.double())
    assert torch.allclose(adapted(x).double(), expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    norm=st.booleans(),
    scale=st.floats(-1, 2),
    channels=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_scaled_layers_fold_into_their_weights(
    norm: bool, scale: float, channels: int, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = nn.LayerNorm(channels) if norm else nn.Linear(3, channels, bias=bool(seed % 2))
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    scaled = ScaledLayer(layer)
    for parameter in scaled.learned().values():
        nn.init.normal_(parameter)
    x = torch.randn(4, channels if norm else 3)
    y = layer(x)
    shift = 0 if scaled.shift is None else scaled.shift
    expected = y * (1 + scale * scaled.gain) + scale * shift
    scaled.scale = scale
    assert torch.allclose(scaled(x), expected, atol=1e-5)
    assert torch.allclose(scaled.fold(scale)(x), expected, atol=1e-4)
    assert (scaled.shift is None) == (layer.bias is None)


def _softmax_attention(query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    return (query @ keys.transpose(-1, -2) * scaling).softmax(-1) @ values


@pytest.mark.parametrize("kind", MEMORIES)
def test_a_memory_adds_a_gated_softmax_of_its_own(kind: type[Remembering]) -> None:
    """The block's output against plain matrix products, through its own projections."""
    model, method = trained(kind)
    block = model.backbone.get_submodule(next(iter(method._attached())))
    seen: dict[str, Tensor] = {}
    block.register_forward_hook(lambda m, a, k, out: seen.update(out=out[0]), with_kwargs=True)
    block.q_proj.register_forward_hook(lambda m, a, out: seen.update(query=out))
    text = "slow piano"
    output(model, text)
    changed, query = seen["out"], seen["query"]
    with method.disabled(model):
        output(model, text)
    heads = (block.num_heads, -1)
    memory = block.memories[method.name]
    if isinstance(method, Prefix):
        rows = memory.keys, memory.values
    else:
        rows = block.k_proj(memory.vectors), block.v_proj(memory.vectors)
    keys, values = (part.unflatten(-1, heads).transpose(0, 1) for part in rows)
    found = _softmax_attention(
        query.unflatten(-1, heads).transpose(1, 2), keys, values, block.scaling
    )
    found = (found * memory.gate.tanh()[:, None, None]).transpose(1, 2).flatten(2)
    # The first block's input is the same in both passes; later ones hear the difference.
    assert torch.allclose(changed - seen["out"], block.out_proj(found), atol=1e-5)


def test_prompt_tuning_leaves_the_unconditional_model_alone() -> None:
    model, _ = trained(PromptTuning)
    changed, plain = (output(m, "slow piano", "") for m in (model, base()))
    assert torch.equal(changed[1], plain[1])
    assert not torch.allclose(changed[0], plain[0], atol=1e-4)


def test_a_prefix_acts_without_a_text_too() -> None:
    model, _ = trained(Prefix)
    assert not torch.allclose(output(model, ""), output(base(), ""), atol=1e-4)


@pytest.mark.parametrize("kind", MEMORIES)
def test_memories_begin_as_what_the_base_hears(kind: type[Remembering]) -> None:
    """Not the random start of a method that never looked; the same each time."""
    starts = []
    for looks in (True, True, False):
        model, method = toy(), kind.toy()
        if looks:
            method.prepare(model, itertools.repeat(batch("slow piano", "bright guitar")))
        method.attach(model)
        starts.append({n: p.detach().clone() for n, p in trained_parameters(model).items()})
    one, two, unseen = starts
    assert all(torch.equal(one[name], two[name]) for name in one)
    differ = [n for n in one if not torch.equal(one[n], unseen[n])]
    assert differ == [n for n in one if not n.endswith("gate")]


def test_prompt_vectors_are_states_of_the_captions() -> None:
    model, method = toy(), PromptTuning(length=5)
    method.prepare(model, itertools.repeat(batch("slow piano", "bright guitar")))
    method.attach(model)
    states, heard = base().condition(["slow piano", "bright guitar"])
    said = states[heard.bool()].detach()
    (vectors,) = (p for n, p in trained_parameters(model).items() if n.endswith("vectors"))
    nearest = torch.cdist(vectors.detach(), said).amin(1)
    assert nearest.amax() < 1e-4


def test_prompts_are_one_set_of_vectors_for_all_blocks() -> None:
    model, method = trained(PromptTuning)
    width, heads, blocks = 16, 2, 2
    assert method.describe()["trained_parameters"] == 3 * width + blocks * heads
    vectors = {id(m.vectors) for m in model.backbone.modules() if hasattr(m, "vectors")}
    assert len(vectors) == 1


def test_two_memories_live_side_by_side_and_leave_one_by_one() -> None:
    model, prefix = trained(Prefix)
    alone = output(model)
    _, prompt = trained(PromptTuning, model)
    assert not torch.allclose(output(model), alone, atol=1e-5)
    prompt.detach(model)
    assert torch.equal(output(model), alone)
    prefix.detach(model)
    assert torch.equal(output(model), output(base()))
    assert model.backbone.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", MEMORIES)
def test_eager_attention_gives_the_same(kind: type[Remembering]) -> None:
    eager = toy()
    eager.backbone.set_attn_implementation("eager")
    texts = ("slow piano", "", "bright guitar and drums")
    model, _ = trained(kind)
    other, method = trained(kind, eager)
    assert torch.allclose(output(other, *texts), output(model, *texts), atol=1e-5)
    method.detach(other)
    assert eager.backbone.config._attn_implementation == "eager"


def test_an_attention_that_cannot_hold_a_memory_is_refused() -> None:
    model = toy()
    model.backbone.config._attn_implementation = "flex_attention"
    with pytest.raises(InputError, match="sdpa or eager, not with flex_attention"):
        Prefix.toy().check(model)


# --- in half precision, live and scaled ---


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_base_with_full_precision_parts(kind: type[Inserted]) -> None:
    model = toy()
    model.network.to(torch.bfloat16)
    expected = output(model)
    method = kind.toy()
    method.prepare(model, itertools.repeat(batch("slow piano", "bright guitar")))
    method.attach(model)
    assert torch.equal(output(model), expected)
    assert {p.dtype for p in trained_parameters(model).values()} == {torch.float32}
    perturb(model)
    model.nll(batch("slow piano")).mean().backward()
    assert all(p.grad is not None for p in trained_parameters(model).values())
    assert output(model).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_trains_all_parts(kind: type[Inserted]) -> None:
    model, _ = trained(kind)
    with torch.autocast("cpu", torch.bfloat16):
        model.nll(batch("slow piano")).mean().backward()
    assert all(p.grad is not None for p in trained_parameters(model).values())


@pytest.mark.parametrize("kind", KINDS)
def test_scale_is_read_and_set_and_disabled_keeps_it(kind: type[Inserted]) -> None:
    model, method = trained(kind)
    whole = output(model)
    method.scale = 0.5
    half = output(model)
    assert not torch.allclose(half, whole, atol=1e-6)
    with method.disabled(model):
        assert torch.equal(output(model), output(base()))
    assert method.scale == 0.5
    assert torch.equal(output(model), half)


# --- bad input ---


@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_counts_that_are_none_are_refused(value: int) -> None:
    with pytest.raises(InputError, match="width"):
        Bottleneck(width=value)
    with pytest.raises(InputError, match="length"):
        Prefix(length=value)
    with pytest.raises(InputError, match="length"):
        PromptTuning(length=value)


@pytest.mark.parametrize("kind", [Bottleneck, Prefix, PromptTuning])
@pytest.mark.parametrize("seed", [-1, 10**30])
def test_seeds_that_nothing_begins_with_are_refused(kind: type, seed: int) -> None:
    with pytest.raises(InputError, match=f"seed {seed} must be"):
        kind(seed=seed)


@pytest.mark.parametrize(("targets", "layers"), [("value", 2), ("feed_forward", 4), ("all", 20)])
def test_short_names_of_targets(targets: str, layers: int) -> None:
    for method in (ScaleShift(targets), Bottleneck(2, targets)):
        model = toy()
        method.attach(model)
        assert method.describe()["matched_layers"] == layers


def test_targets_that_are_no_attention_block_are_refused() -> None:
    with pytest.raises(InputError, match="matched no attention block"):
        Prefix(targets=r"fc1$").check(toy())
    with pytest.raises(InputError, match="no regular expression"):
        ScaleShift(targets="(").check(toy())


@pytest.mark.parametrize("kind", KINDS)
def test_a_method_that_is_not_attached_says_so(kind: type[Inserted], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not attached"):
        kind.toy().save(toy(), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(InputError, match="not attached"):
        kind.toy().detach(toy())


def _missing(tensors: dict[str, Tensor]) -> None:
    del tensors[next(iter(tensors))]


def _extra(tensors: dict[str, Tensor]) -> None:
    tensors["model.decoder.layers.9.fc2.up"] = torch.zeros(2)


def _shape(tensors: dict[str, Tensor]) -> None:
    name = next(iter(tensors))
    tensors[name] = torch.zeros(7, *tensors[name].shape)


def _nan(tensors: dict[str, Tensor]) -> None:
    next(iter(tensors.values())).view(-1)[0] = float("nan")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", [_missing, _extra, _shape, _nan])
def test_damaged_files_are_one_line_and_leave_the_base(
    kind: type[Inserted], damage: object, tmp_path: Path
) -> None:
    model, method = trained(kind)
    method.save(model, tmp_path)
    path = tmp_path / f"{kind.name}.safetensors"
    tensors = load_tensors(path)
    damage(tensors)  # type: ignore[operator]
    save_tensors(tensors, path)
    fresh = toy()
    with pytest.raises(InputError, match="made for another base or is damaged") as caught:
        kind.load(fresh, tmp_path)
    assert "\n" not in str(caught.value)
    assert [n for n, _ in fresh.named_modules()] == [n for n, _ in base().named_modules()]
    assert torch.equal(output(fresh), output(base()))


@pytest.mark.parametrize("kind", KINDS)
def test_options_of_a_newer_version_are_refused(kind: type[Inserted], tmp_path: Path) -> None:
    model, method = trained(kind)
    method.save(model, tmp_path)
    path = tmp_path / f"{kind.name}.json"
    config = load_json(path)
    save_json({"options": config["options"] | {"new_option": 1}}, path)
    with pytest.raises(InputError, match="newer musictune"):
        kind.load(toy(), tmp_path)


def test_a_live_adapter_and_a_merged_one_together(tmp_path: Path) -> None:
    """What is merged first is part of what the live one stands on."""
    for kind in (ScaleShift, Bottleneck):
        save_adapter(*trained(kind), tmp_path / kind.name)
    model = toy()
    load_adapter(model, tmp_path / "ssf")
    merged = output(model)
    load_adapter(model, tmp_path / "bottleneck", 0.5)
    assert not torch.allclose(output(model), merged, atol=1e-5)
    fresh = toy()
    load_adapter(fresh, tmp_path / "ssf")
    live = attach_adapter(fresh, tmp_path / "bottleneck")
    assert isinstance(live, Bottleneck)
    live.scale = 0.5
    assert torch.equal(output(fresh), output(model))
