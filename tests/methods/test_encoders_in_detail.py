"""Methods on audio encoders: the study's sizes, names of layers in every family, peft's kinds."""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from musictune.errors import InputError
from musictune.methods.base import TuningMethod, matched_modules, trained_parameters
from musictune.methods.bitfit import BitFit
from musictune.methods.budget import target_pattern
from musictune.methods.deep_prompt import DeepPrompt
from musictune.methods.full import Full
from musictune.methods.peft import Peft, kinds
from musictune.methods.pivotal import Pivotal
from musictune.methods.prefix import Prefix
from musictune.methods.scale_shift import ScaledLayer, ScaleShift
from musictune.methods.shallow_prompt import ShallowPrompt
from musictune.methods.units import Units, head_size, output_projection, place_of
from musictune.models.classifier import Classifier
from musictune.models.front import Spectrogram
from tests.methods import toys
from tests.methods.encoders import KINDS, attached, base, batch, output, perturb, toy

# --- sizes on the shape of AST-base, within 1 % of the study's table (arXiv 2312.03694) ---


@functools.cache
def ast_base() -> Classifier:
    """AST-base with random weights, each row of a matrix the same: that is drawn in no time."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    with torch.device("meta"):
        network = ASTForAudioClassification(ASTConfig(max_length=500))
    network = network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            row = torch.randn(parameter.shape[-1], generator=generator)
            parameter.copy_(0.02 * row)
    return Classifier(network, Spectrogram(ASTFeatureExtractor()), "ast-base", 5.0)


STUDY: list[tuple[TuningMethod, int, int]] = [
    (BitFit(), 102_000, 102_912),
    (ShallowPrompt(300), 230_000, 300 * 768 + 144),
    (DeepPrompt(25), 230_000, 12 * 25 * 768 + 144),
    (Prefix(12), 221_000, 12 * 24 * 768 + 144),
    (Peft("lora", {"r": 6}, "query,value"), 221_000, 12 * 2 * 6 * 2 * 768),
]


@pytest.mark.parametrize(("method", "published", "exact"), STUDY, ids=[m.name for m, *_ in STUDY])
def test_sizes_are_those_of_the_study(method: TuningMethod, published: int, exact: int) -> None:
    model = ast_base()
    method.attach(model)
    trained = sum(p.numel() for p in trained_parameters(model).values())
    assert method.describe()["trained_parameters"] == trained == exact
    assert abs(trained - published) <= 0.01 * published
    method.detach(model)


# --- what layers are called ---

CLAP = [
    "text_model.encoder.layer.0.attention.self.query",
    "text_model.encoder.layer.0.attention.self.key",
    "text_model.encoder.layer.0.attention.self.value",
    "text_model.encoder.layer.0.attention.output.dense",
    "text_model.encoder.layer.0.intermediate.dense",
    "text_model.encoder.layer.0.output.dense",
]
ROLES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
OTHERS = ["text_model.pooler.dense", "audio_projection.linear1", "lm_heads.0", "embeddings"]


def _names(kind: str) -> list[str]:
    """Six layers of the first block, in the order of ``ROLES``."""
    if kind == "clap":
        return CLAP
    if kind == "ast":
        block, feed = "layers.0.attention", ("layers.0.mlp.fc1", "layers.0.mlp.fc2")
    else:
        block, inner = "encoder.layers.0.attention", "encoder.layers.0.feed_forward"
        feed = (f"{inner}.intermediate_dense", f"{inner}.output_dense")
    last = "o_proj" if kind == "ast" else "out_proj"
    return [*(f"{block}.{part}" for part in ("q_proj", "k_proj", "v_proj", last)), *feed]


@pytest.mark.parametrize("kind", [*KINDS, "clap"])
def test_short_names_mean_the_layers_of_every_family(kind: str) -> None:
    names = _names(kind)
    if kind != "clap":
        assert set(names) <= set(matched_modules(base(kind).backbone, ".*"))

    def found(targets: str) -> list[str]:
        return [n for n in names + OTHERS if re.search(target_pattern(targets), n)]

    query, key, value, out, *feed = names
    assert found("query") == [query]
    assert found("key") == [key]
    assert found("value") == [value]
    assert found("output") == [out]
    assert found("query,value") == [query, value]
    assert found("self_attention") == names[:4]
    assert found("feed_forward") == feed
    assert found("cross_attention") == []
    assert found("all") == names


@pytest.mark.parametrize("kind", [*KINDS, "clap"])
def test_places_of_layers_are_those_of_musicgen(kind: str) -> None:
    places = [place_of(name) for name in _names(kind)]
    assert tuple(role for _, role in places) == ROLES
    assert len({parent for parent, _ in places[:4]}) == 1
    assert len({parent for parent, _ in places[4:]}) == 1
    assert place_of("lm_heads.0") == ("lm_heads", "0")


def test_a_dense_layer_at_the_top_has_a_place_too() -> None:
    assert place_of("o_proj") == ("", "out_proj")
    assert place_of("proj") == ("", "proj")


@pytest.mark.parametrize("kind", [*KINDS, "clap"])
def test_units_reach_over_the_same_layers_in_every_family(kind: str) -> None:
    names = _names(kind)
    query, key, value, out, first, last = names
    shapes = dict.fromkeys(names, (8, 8))
    heads = Units(dict.fromkeys(names[:4], (8, 8)), "head", dict.fromkeys(names[:4], 4))
    (group,) = heads._groups
    assert group.members == ((query, "rows"), (key, "rows"), (value, "rows"), (out, "columns"))
    channels = [group.members for group in Units(shapes, "channel")._groups]
    assert channels == [
        ((query, "rows"), (key, "rows")),
        ((value, "rows"), (out, "columns")),
        ((first, "rows"), (last, "columns")),
    ]
    columns = [group.members for group in Units(shapes, "column")._groups]
    assert columns[0] == ((query, "columns"), (key, "columns"), (value, "columns"))
    assert len(columns) == 4


def test_half_of_a_pair_is_refused_by_what_is_missing() -> None:
    with pytest.raises(InputError, match=r"v_proj with out_proj \(the output projection\)"):
        Pivotal(0.2, granularity="channel", targets="value").check(base("ast"))


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_found_in_encoders(kind: str) -> None:
    query, _, _, out, first, _ = _names(kind)
    backbone = base(kind).backbone
    assert head_size(backbone, query) == head_size(backbone, out) == 8
    assert head_size(backbone, first) is None
    assert output_projection(backbone, query) == output_projection(backbone, out) == out
    with pytest.raises(InputError, match="has no output projection"):
        output_projection(backbone, first)


def test_heads_are_found_in_clap() -> None:
    attention, inner = nn.Module(), nn.Module()
    inner.attention_head_size = 4
    attention.self, attention.output = inner, nn.Module()
    attention.output.dense = nn.Linear(8, 8)
    backbone, layer = nn.Module(), nn.Module()
    backbone.layer, layer.attention = layer, attention
    assert head_size(backbone, "layer.attention.self.key") == 4
    assert head_size(backbone, "layer.attention.output.dense") == 4
    found = output_projection(backbone, "layer.attention.self.query")
    assert found == "layer.attention.output.dense"


# --- pivotal, ssf, full ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("selection", "granularity", "targets"),
    [
        ("delta", "element", None),
        ("sensitivity", "row", None),
        ("gradient", "column", "all"),
        ("heads", "head", None),
        ("magnitude", "channel", "feed_forward"),
        ("random", "channel", "value,output"),
    ],
)
def test_pivotal_chooses_in_encoders(
    kind: str, selection: str, granularity: Any, targets: str | None
) -> None:
    method = Pivotal(
        0.3, rounds=1, probe_steps=2, selection=selection, granularity=granularity, targets=targets
    )
    model = attached(method, kind)
    assert torch.equal(output(model, kind), output(base(kind), kind))
    model.nll(batch(kind)).mean().backward()
    trained = trained_parameters(model)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())
    matched = sum(
        m.weight.numel()
        for m in matched_modules(
            base(kind).backbone, target_pattern(targets) if targets else model.targets
        ).values()
    )
    assert 0.2 * matched < sum(p.numel() for p in trained.values()) <= 0.3 * matched


@pytest.mark.parametrize("kind", KINDS)
def test_heads_that_matter_are_scored_alike_in_all_their_projections(kind: str) -> None:
    method = Pivotal(0.5, rounds=1, probe_steps=2, selection="heads", scope="matrix")
    attached(method, kind)
    by_layer: dict[str, set[tuple[int, ...]]] = {}
    for name, chosen in method.chosen.items():
        parent, role = place_of(name)
        assert chosen.kind == ("columns" if role == "out_proj" else "rows")
        by_layer.setdefault(parent, set()).add(tuple(chosen.indices.tolist()))
    assert len(by_layer) == 2 and all(len(found) == 1 for found in by_layer.values())


@pytest.mark.parametrize("kind", KINDS)
def test_ssf_scales_all_layers_of_blocks_and_their_norms(kind: str) -> None:
    model = attached(ScaleShift(), kind)
    perturb(model)
    scaled = {n for n, m in model.backbone.named_modules() if isinstance(m, ScaledLayer)}
    layers = {n for n in scaled if re.search(r"layers\.\d", n)}
    assert len(layers) == 2 * (6 + 2)
    assert all("norm" in name for name in scaled - layers)
    assert scaled - layers == (
        {"layernorm"} if kind == "ast" else {"encoder.layer_norm", "feature_projection.layer_norm"}
    )


def test_ssf_scales_the_same_layers_of_musicgen_as_ever() -> None:
    backbone = toys.base().backbone
    found = matched_modules(backbone, ScaleShift()._pattern, (nn.Linear, nn.LayerNorm))
    assert set(found) == set(
        matched_modules(backbone, r"\.layers\.\d+\.|layer_norm$", (nn.Linear, nn.LayerNorm))
    )
    assert len(found) == 2 * (10 + 3) + 1


def test_full_is_every_weight_of_an_encoder() -> None:
    model = attached(Full(), "ast")
    trained = set(trained_parameters(model.backbone))
    assert trained == {name for name, _ in base("ast").backbone.named_parameters()}


# --- peft ---

SMALL: dict[str, dict[str, Any]] = {
    "adamss": {}, "c3a": {"block_size": 4}, "fourierft": {"n_frequency": 10}, "miss": {"r": 2},
    "oft": {"oft_block_size": 4}, "psoft": {"r": 2}, "road": {"group_size": 4}, "shira": {"r": 2},
    "waveft": {"n_frequency": 10}, "vera": {"r": 4},
}  # fmt: skip


OFTEN = {"lora", "dora", "pissa", "ia3", "oft", "miss", "vera", "shira", "ln_tuning"}
EVERY = [k if k in OFTEN else pytest.param(k, marks=pytest.mark.slow) for k in kinds()]


@pytest.mark.parametrize("kind", EVERY)
def test_every_kind_of_peft_trains_an_ast(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = Peft(kind, SMALL.get(kind))
    model = toy("ast")
    method.check(model)
    method.attach(model)
    assert torch.allclose(output(model, "ast"), output(base("ast"), "ast"), atol=2e-6)
    optimizer = torch.optim.AdamW(trained_parameters(model).values(), lr=1e-2, weight_decay=0)
    for _ in range(2):
        optimizer.zero_grad()
        model.nll(batch("ast")).mean().backward()
        optimizer.step()
    reached = [n for n, p in trained_parameters(model).items() if p.grad is not None]
    assert reached
    changed = output(model, "ast")
    assert not torch.allclose(changed, output(base("ast"), "ast"), atol=1e-5)
    method.save(model, tmp_path)
    fresh = toy("ast")
    Peft.load(fresh, tmp_path)
    assert torch.allclose(output(fresh, "ast"), changed, atol=1e-6)
    method.merge(model)
    assert torch.allclose(output(model, "ast"), changed, atol=1e-5)


@pytest.mark.parametrize("kind", ["miss", "psoft", "shira", "road", "c3a", "fourierft"])
def test_an_encoder_too_narrow_for_a_default_is_told_so(kind: str) -> None:
    model = toy("ast")
    with pytest.raises(InputError, match=f"peft refused {kind} .*set others") as caught:
        Peft(kind).attach(model)
    assert "\n" not in str(caught.value)
    assert [n for n, _ in model.named_modules()] == [n for n, _ in base("ast").named_modules()]


# --- rates ---


def test_rates_on_encoders_are_the_studys() -> None:
    """5e-3 for LoRA and BitFit, 1e-2 for prompts, 5e-5 for all weights."""
    rates = {
        method.name: method.encoder_learning_rate
        for method in (BitFit(), Peft(), Prefix(), DeepPrompt(), ShallowPrompt(), Full())
    }
    prompts = dict.fromkeys(("prefix", "deep_prompt", "shallow_prompt"), 1e-2)
    assert rates == {"bitfit": 5e-3, "peft": 5e-3, "full": 5e-5, **prompts}


def test_a_method_prepared_on_labels_leaves_the_model_as_it_came() -> None:
    for method in (Prefix.toy(), DeepPrompt.toy(), ShallowPrompt.toy()):
        model = toy("wav2vec2")
        method.prepare(model, itertools.repeat(batch("wav2vec2")))
        assert torch.equal(output(model, "wav2vec2"), output(base("wav2vec2"), "wav2vec2"))
        assert all(not m._forward_pre_hooks for m in model.modules())
