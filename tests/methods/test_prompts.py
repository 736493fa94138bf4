"""Deep and shallow prompts and prefixes on audio encoders: against plain matrix products."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.methods.attention_memory import Remembering
from musictune.methods.base import TuningMethod, trained_parameters
from musictune.methods.combined import Combined
from musictune.methods.deep_prompt import DeepPrompt
from musictune.methods.linear_probe import LinearProbe
from musictune.methods.prefix import Prefix
from musictune.methods.prompt import PromptTuning
from musictune.methods.shallow_prompt import ShallowPrompt
from musictune.methods.storage import load_tensors
from musictune.models.classifier import Classifier
from tests.methods import toys
from tests.methods.encoders import KINDS, attached, base, batch, output, perturb, states, toy

METHODS: list[type[Remembering]] = [Prefix, DeepPrompt, ShallowPrompt]
WAVES = ("wav2vec2", "hubert")


def trained(kind: str, method: TuningMethod, model: Classifier | None = None) -> Classifier:
    model = attached(method, kind, model)
    perturb(model)
    return model


# --- one layer by hand ---


def _heads(rows: Tensor, count: int) -> Tensor:
    return rows.unflatten(-1, (count, -1)).transpose(-3, -2)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of ``(..., heads, steps, size)``."""
    weights = (query @ key.transpose(-1, -2)) / query.shape[-1] ** 0.5
    return weights.softmax(-1) @ value


class ByHand:
    """One layer, pre-norm as AST's or post-norm as wav2vec 2.0's, in plain products."""

    def __init__(self, layer: Any, kind: str) -> None:
        self.ast = kind == "ast"
        self.layer, self.attention = layer, layer.attention
        self.output = self.attention.o_proj if self.ast else self.attention.out_proj

    def read(self, x: Tensor) -> Tensor:
        return self.layer.layernorm_before(x) if self.ast else x

    def project(self, x: Tensor) -> list[Tensor]:
        block = self.attention
        return [_heads(p(self.read(x)), 2) for p in (block.q_proj, block.k_proj, block.v_proj)]

    def rest(self, x: Tensor, found: Tensor) -> Tensor:
        y = x + self.output(found.transpose(-3, -2).flatten(-2))
        if self.ast:
            return y + self.layer.mlp(self.layer.layernorm_after(y))
        y = self.layer.layer_norm(y)
        return self.layer.final_layer_norm(y + self.layer.feed_forward(y))

    def deep(self, x: Tensor, prompts: Tensor, gate: Tensor) -> Tensor:
        query, key, value = self.project(x)
        _, their_key, their_value = self.project(prompts)
        heard = gate.tanh()[:, None, None] * _attend(query, their_key, their_value)
        return self.rest(x, _attend(query, key, value) + heard)

    def shallow(self, x: Tensor, prompts: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        prompts = prompts.expand(len(x), -1, -1)
        ours, theirs = self.project(x), self.project(prompts)
        key, value = (torch.cat([ours[i], theirs[i]], -2) for i in (1, 2))
        passed = self.rest(prompts, _attend(theirs[0], key, value))
        return self.deep(x, prompts, gate), passed


def _layers(model: Classifier) -> nn.ModuleList:
    backbone: Any = model.backbone
    return backbone.layers if hasattr(backbone, "layers") else backbone.encoder.layers


def _entering(model: Classifier, kind: str) -> Tensor:
    """What goes into the first layer of the base."""
    seen: list[Tensor] = []
    hook = _layers(model)[0].register_forward_pre_hook(lambda m, given: seen.append(given[0]))
    output(model, kind)
    hook.remove()
    return seen[0]


def _last(model: Classifier, x: Tensor, kind: str) -> Tensor:
    backbone: Any = model.backbone
    return backbone.layernorm(x) if kind == "ast" else x


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5, deadline=None)
@given(length=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_deep_prompt_is_its_formula(kind: str, length: int, seed: int) -> None:
    model = trained(kind, DeepPrompt(length, seed=seed))
    x = _entering(base(kind), kind)
    with torch.no_grad():
        for layer in _layers(model):
            memory = layer.attention.memories["deep_prompt"]
            assert memory.vectors.shape == (length, 16)
            x = ByHand(layer, kind).deep(x, memory.vectors, memory.gate)
    assert torch.allclose(states(model, kind), _last(model, x, kind), atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5, deadline=None)
@given(length=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_shallow_prompt_is_its_formula(kind: str, length: int, seed: int) -> None:
    model = trained(kind, ShallowPrompt(length, seed))
    x = _entering(base(kind), kind)
    with torch.no_grad():
        memories = [layer.attention.memories["shallow_prompt"] for layer in _layers(model)]
        prompts = memories[0].vectors
        assert prompts is memories[1].vectors and prompts.shape == (length, 16)
        for layer, memory in zip(_layers(model), memories, strict=True):
            x, prompts = ByHand(layer, kind).shallow(x, prompts, memory.gate)
    assert torch.allclose(states(model, kind), _last(model, x, kind), atol=2e-5)
    assert states(model, kind).shape == states(base(kind), kind).shape


def test_a_prefix_in_an_encoder_is_its_formula() -> None:
    model = trained("ast", Prefix(4))
    x = _entering(base("ast"), "ast")
    with torch.no_grad():
        for layer in _layers(model):
            hand, memory = ByHand(layer, "ast"), layer.attention.memories["prefix"]
            query, key, value = hand.project(x)
            heard = _attend(query, _heads(memory.keys, 2), _heads(memory.values, 2))
            heard = heard * memory.gate.tanh()[:, None, None]
            x = hand.rest(x, _attend(query, key, value) + heard)
    assert torch.allclose(states(model, "ast"), _last(model, x, "ast"), atol=2e-5)


def test_norms_before_attention_are_read_through_in_both_orders() -> None:
    """The wav2vec 2.0 family has large models whose norms stand before their blocks."""
    from transformers import Wav2Vec2ForSequenceClassification

    config = copy.deepcopy(base("wav2vec2").network.config)
    config.do_stable_layer_norm = True
    torch.manual_seed(0)
    network = Wav2Vec2ForSequenceClassification(config)
    model = Classifier(network, base("wav2vec2").front, "toy", 0.5)
    x = _entering(model, "wav2vec2")
    attached(DeepPrompt(3), "wav2vec2", model)
    perturb(model)
    seen: list[Tensor] = []
    layer: Any = _layers(model)[0]
    layer.attention.register_forward_hook(lambda m, given, found: seen.append(found[0]))
    output(model, "wav2vec2")
    with torch.no_grad():
        memory, hand = layer.attention.memories["deep_prompt"], ByHand(layer, "wav2vec2")
        query, key, value = hand.project(layer.layer_norm(x))
        _, ours, theirs = hand.project(layer.layer_norm(memory.vectors))
        heard = memory.gate.tanh()[:, None, None] * _attend(query, ours, theirs)
        found = (_attend(query, key, value) + heard).transpose(1, 2).flatten(2)
        assert torch.allclose(seen[0], layer.attention.out_proj(found), atol=1e-5)


# --- padding, attention functions, checkpointing, precision ---


@pytest.mark.parametrize("function", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", WAVES)
@pytest.mark.parametrize("method", METHODS)
def test_padding_is_not_heard(method: type[Remembering], kind: str, function: str) -> None:
    plain = toy(kind)
    plain.backbone.set_attn_implementation(function)
    model = trained(kind, method.toy(), plain)
    encoder: Any = model.backbone.get_submodule("encoder")
    hidden = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(4))
    heard = torch.arange(9) < torch.tensor([[9], [6]])
    with torch.no_grad():
        both = encoder(hidden.clone(), attention_mask=heard).last_hidden_state
        alone = encoder(hidden[1:, :6].clone()).last_hidden_state
    assert torch.allclose(both[1:, :6], alone, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_eager_attention_gives_the_same(method: type[Remembering], kind: str) -> None:
    model, eager, one = toy(kind), toy(kind), method.toy()
    eager.backbone.set_attn_implementation("eager")
    untouched = output(eager, kind)
    trained(kind, method.toy(), model)
    trained(kind, one, eager)
    assert torch.allclose(output(eager, kind), output(model, kind), atol=1e-5)
    one.detach(eager)
    assert torch.equal(output(eager, kind), untouched)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["ast", "wav2vec2"])
def test_gradient_checkpointing_gives_the_same_gradients(
    method: type[Remembering], kind: str
) -> None:
    found = []
    for checkpointing in (False, True):
        model = trained(kind, method.toy())
        model.train()
        if checkpointing:
            backbone: Any = model.backbone
            backbone.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        model.nll(batch(kind)).mean().backward()
        found.append([p.grad for p in trained_parameters(model).values()])
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None
        assert one.abs().sum() > 0
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["ast", "wav2vec2"])
def test_half_precision_base_with_full_precision_parts(
    method: type[Remembering], kind: str
) -> None:
    model = toy(kind)
    model.half_backbone()
    probe = LinearProbe(["one", "two", "three"])
    probe.attach(model)
    expected = output(model, kind)
    probe.detach(model)
    attached(Combined([LinearProbe(["one", "two", "three"]), method.toy()]), kind, model)
    assert torch.equal(output(model, kind), expected)
    assert {p.dtype for p in trained_parameters(model).values()} == {torch.float32}
    perturb(model)
    model.nll(batch(kind)).mean().backward()
    assert all(p.grad is not None for p in trained_parameters(model).values())
    assert output(model, kind).isfinite().all()


# --- start, gradients, and what is left behind ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_start_is_the_base_to_the_bit_with_gradients_at_the_gates(
    method: type[Remembering], kind: str
) -> None:
    model = attached(method.toy(), kind)
    assert torch.equal(output(model, kind), output(base(kind), kind))
    optimizer = torch.optim.SGD(trained_parameters(model).values(), lr=1.0)
    reached: list[set[str]] = []
    for _ in range(2):
        optimizer.zero_grad()
        model.nll(batch(kind)).mean().backward()
        with_gradient = (
            name
            for name, p in trained_parameters(model).items()
            if p.grad is not None and p.grad.abs().sum() > 0
        )
        reached.append(set(with_gradient))
        optimizer.step()
    gates = {name for name in trained_parameters(model) if name.endswith("gate")}
    assert reached[0] == gates and len(gates) == 2
    assert reached[1] == set(trained_parameters(model))


@pytest.mark.parametrize("kind", KINDS)
def test_shallow_prompts_begin_as_states_that_enter_the_first_layer(kind: str) -> None:
    model = attached(ShallowPrompt(5), kind)
    (vectors,) = (p for n, p in trained_parameters(model).items() if n.endswith("vectors"))
    entering = _entering(base(kind), kind).flatten(0, 1)
    apart = (vectors.detach()[:, None] - entering).abs().amax(-1)
    assert torch.equal(apart.amin(1), torch.zeros(5))


def test_shapes_of_what_is_saved(tmp_path: Path) -> None:
    shapes = {}
    for method in (Prefix(4), DeepPrompt(5), ShallowPrompt(6)):
        model = trained("ast", method)
        method.save(model, tmp_path)
        tensors = load_tensors(tmp_path / f"{method.name}.safetensors")
        shapes[method.name] = {name: tuple(t.shape) for name, t in tensors.items()}
        assert sum(t.numel() for t in tensors.values()) == method.describe()["trained_parameters"]
    gates = {f"layers.{i}.attention.gate": (2,) for i in (0, 1)}
    rows = {"keys": (4, 16), "values": (4, 16)}
    assert shapes["prefix"] == gates | {
        f"layers.{i}.attention.{part}": shape for i in (0, 1) for part, shape in rows.items()
    }
    assert shapes["deep_prompt"] == gates | {
        f"layers.{i}.attention.vectors": (5, 16) for i in (0, 1)
    }
    assert shapes["shallow_prompt"] == gates | {"layers.0.attention.vectors": (6, 16)}


@pytest.mark.parametrize("kind", KINDS)
def test_several_live_side_by_side_and_leave_one_by_one(kind: str) -> None:
    model, heard = toy(kind), [output(base(kind), kind)]
    living: list[TuningMethod] = [DeepPrompt.toy(), Prefix.toy(), ShallowPrompt.toy()]
    for method in living:
        trained(kind, method, model)
        heard.append(output(model, kind))
        assert not torch.allclose(heard[-1], heard[-2], atol=1e-5)
    for expected, method in zip(reversed(heard[:-1]), reversed(living), strict=True):
        method.detach(model)
        assert torch.equal(output(model, kind), expected)
    assert model.network.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(layer) for layer in _layers(model))


def test_no_state_of_a_pass_stays_behind() -> None:
    """A model that holds tensors with a graph could not be copied."""
    model = trained("wav2vec2", ShallowPrompt.toy())
    model.nll(batch("wav2vec2")).mean()
    expected = output(model, "wav2vec2")
    other = copy.deepcopy(model)
    assert torch.equal(output(other, "wav2vec2"), expected)
    perturb(other)
    assert not torch.allclose(output(other, "wav2vec2"), expected, atol=1e-5)
    assert torch.equal(output(model, "wav2vec2"), expected)
    layer: Any = _layers(model)[1]
    norm, layer.final_layer_norm = layer.final_layer_norm, nn.LayerNorm(7)
    with pytest.raises(RuntimeError):
        model.nll(batch("wav2vec2"))
    layer.final_layer_norm = norm
    copy.deepcopy(model)
    assert torch.equal(output(model, "wav2vec2"), expected)


# --- what they do not fit ---


def _wavlm() -> Classifier:
    from transformers import WavLMConfig, WavLMForSequenceClassification

    plain = base("wav2vec2").network.config.to_dict()
    same = (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "conv_dim", "conv_stride", "conv_kernel", "num_conv_pos_embeddings",
        "num_conv_pos_embedding_groups", "classifier_proj_size",
    )  # fmt: skip
    config = WavLMConfig(num_labels=3, **{name: plain[name] for name in same})
    return Classifier(WavLMForSequenceClassification(config), base("wav2vec2").front, "toy", 0.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_computes_attention_by_itself_is_refused(method: type[Remembering]) -> None:
    """It would call no memory, and training would change nothing."""
    model = _wavlm()
    with pytest.raises(InputError, match=r"does not fit WavLMModel, .* use an AST, wav2vec 2\.0"):
        method.toy().check(model)


def test_refusals_are_one_line_that_names_what_fits() -> None:
    music = toys.base()
    cases: list[tuple[TuningMethod, Any, str]] = [
        (ShallowPrompt.toy(), music, "is for audio encoders, such as an AST"),
        (PromptTuning.toy(), base("ast"), "listens to none; choose shallow_prompt, deep_prompt"),
        (DeepPrompt(targets=r"encoder_attn$"), music, "which is no layer's self-attention"),
        (DeepPrompt(targets=r"mlp$"), base("ast"), "matched no attention block"),
    ]
    for method, model, says in cases:
        for act in (method.check, method.attach):
            with pytest.raises(InputError) as caught:
                act(model)
            assert "\n" not in str(caught.value)
            if act == method.check:
                assert says in str(caught.value)
    with pytest.raises(InputError, match="length 0"):
        ShallowPrompt(0)


def test_deep_prompts_fit_music_models_too() -> None:
    from musictune.models.base import Batch

    codes = torch.randint(0, 64, (2, 4, 10), generator=torch.Generator().manual_seed(1))
    heard = Batch(codes, torch.tensor([10, 8]), ("slow piano", ""))
    model, method = toys.toy(), DeepPrompt.toy()
    method.prepare(model, itertools.repeat(heard))
    method.attach(model)
    assert method.describe()["trained_parameters"] == 2 * (3 * 16 + 2)
    with torch.no_grad():
        expected = toys.base().nll(heard)
        assert torch.equal(model.nll(heard), expected)
        for p in trained_parameters(model).values():
            p.add_(0.3)
        assert not torch.allclose(model.nll(heard), expected, atol=1e-4)
