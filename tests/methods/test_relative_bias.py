"""Relative bias: its formula, caches and masks of transformers, other methods beside it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from musictune.errors import InputError
from musictune.generation import Engine
from musictune.generation.sampling import Sampling
from musictune.kernels.relative_attention import t5_buckets
from musictune.methods import attach_adapter, save_adapter
from musictune.methods import relative_bias as module
from musictune.methods.attention_function import follow
from musictune.methods.base import trained_parameters
from musictune.methods.prefix import Prefix
from musictune.methods.relative_bias import RelativeBias, RelativeTerm
from musictune.methods.storage import load_tensors, save_tensors
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen, _spied
from tests.methods.toys import base, toy

LENGTH = 14
KINDS = ["music_transformer", "t5"]


def build(kind: str) -> RelativeBias:
    """Distances that music of ``LENGTH`` frames goes beyond."""
    return RelativeBias(kind, distances=6, buckets=8)


def trained(kind: str, model: MusicGen | None = None) -> tuple[MusicGen, RelativeBias]:
    model, method = model or toy(), build(kind)
    method.attach(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in trained_parameters(model).values():
            p.add_(torch.randn(p.shape, generator=generator))
    return model, method


def batch(*texts: str) -> Batch:
    codes = torch.randint(
        0, 64, (len(texts), 4, LENGTH), generator=torch.Generator().manual_seed(1)
    )
    return Batch(codes, torch.full((len(texts),), LENGTH), texts)


def output(model: MusicGen) -> Tensor:
    with torch.no_grad():
        return model.nll(batch("slow piano", "bright guitar"))


def term(model: MusicGen, layer: int = 0) -> tuple[Any, RelativeTerm]:
    block = model.backbone.model.decoder.layers[layer].self_attn
    return block, block.relative["relative_bias"]


def scores(model: MusicGen, ids: Tensor, **options: Any) -> Tensor:
    states, heard = model.condition(["slow piano", "bright guitar"])
    with torch.no_grad():
        return model.backbone(
            input_ids=ids, encoder_hidden_states=states, encoder_attention_mask=heard, **options
        ).logits


def columns() -> Tensor:
    return torch.randint(0, 64, (8, LENGTH), generator=torch.Generator().manual_seed(2))


# --- formulas ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_its_formula(kind: str) -> None:
    """Against a plain product of all queries with all keys."""
    model, _ = trained(kind)
    block, added = term(model)
    seen: dict[str, Tensor] = {}
    block.register_forward_hook(lambda m, a, k, out: seen.update(out=out[0]), with_kwargs=True)
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(block, name).register_forward_hook(
            lambda m, a, out, name=name: seen.update({name: out})
        )
    output(model)
    query, key, value = (
        seen[name].unflatten(-1, (block.num_heads, -1)).transpose(1, 2)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    places = torch.arange(query.shape[2])
    apart = places[:, None] - places
    logits = query @ key.transpose(2, 3) * block.scaling
    if added.embeddings is not None:
        rows = added.embeddings[:, apart.clamp(0, 5)]
        logits = logits + torch.einsum("bhid,hijd->bhij", query, rows) * block.scaling
    else:
        assert added.buckets is not None
        logits = logits + added.buckets[:, t5_buckets(apart, 8, 6)]
    found = logits.masked_fill(apart < 0, -torch.inf).softmax(-1) @ value
    expected = block.out_proj(found.transpose(1, 2).flatten(2))
    assert torch.allclose(seen["out"], expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bias_of_a_column_is_its_row_of_the_whole(kind: str) -> None:
    model, _ = trained(kind)
    _, added = term(model)
    added.scale = 0.5
    query = torch.randn(3, 2, 9, 8)
    whole = added.bias(query, torch.arange(9).expand(3, -1), 9)
    positions = torch.tensor([4, 0, 8])
    at = query[torch.arange(3), :, positions][:, :, None]
    column = added.bias(at, positions, 9)
    assert column.shape == (3, 2, 1, 9)
    for row, position in enumerate(positions.tolist()):
        ours, theirs = column[row, :, 0], whole[row, :, position]
        assert torch.allclose(ours[:, : position + 1], theirs[:, : position + 1], atol=1e-6)


def test_whole_sequences_go_through_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = trained("t5")
    calls: list[dict[str, Any]] = []
    real = module.relative_attention

    def counted(*tensors: Tensor, **options: Any) -> Tensor:
        calls.append(options)
        return real(*tensors, **options)

    monkeypatch.setattr(module, "relative_attention", counted)
    output(model)
    assert [sorted(call) for call in calls] == [["bias", "max_distance", "scale"]] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_with_dropout_a_bias_is_made_for_the_block_s_own_attention(kind: str) -> None:
    model, _ = trained(kind)
    plain = output(model)
    for layer in model.backbone.model.decoder.layers:
        layer.self_attn.train().dropout = 1e-12  # asks for the other way, and drops nothing
    assert torch.allclose(output(model), plain, atol=1e-5)
    term(model)[0].dropout = 0.5
    assert not torch.allclose(output(model), plain, atol=1e-3)


# --- caches and masks ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("steps", [[1] * LENGTH, [5, 1, 4, 4], [1, 13]])
def test_a_cache_gives_what_the_whole_gives(kind: str, static: bool, steps: list[int]) -> None:
    model, _ = trained(kind)
    ids = columns()
    whole = scores(model, ids, use_cache=False)
    own = StaticCache(config=model.backbone.config, max_cache_len=20) if static else DynamicCache()
    cache = EncoderDecoderCache(own, DynamicCache())
    ends = list(itertools.accumulate(steps))
    parts = [
        scores(model, ids[:, end - count : end], past_key_values=cache, use_cache=True)
        for end, count in zip(ends, steps, strict=True)
    ]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_before_the_music_changes_no_distance(kind: str) -> None:
    """Absolute positions are shifted with it, so they are silenced here."""
    model, _ = trained(kind)
    model.backbone.model.decoder.embed_positions.weights.zero_()
    ids = columns()
    mask = torch.ones(2, LENGTH + 3, dtype=torch.long)
    mask[:, :3] = 0
    padded = scores(model, torch.nn.functional.pad(ids, (3, 0)), attention_mask=mask)
    assert torch.allclose(padded[:, 3:], scores(model, ids), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_eager_attention_gives_the_same(kind: str) -> None:
    eager = toy()
    eager.backbone.set_attn_implementation("eager")
    other, method = trained(kind, eager)
    assert torch.allclose(output(other), output(trained(kind)[0]), atol=1e-5)
    method.detach(other)
    assert eager.backbone.config._attn_implementation == "eager"


@pytest.mark.parametrize("kind", KINDS)
def test_music_is_that_of_transformers(kind: str) -> None:
    model, _ = trained(kind)
    prompts, frames = ["slow piano", "bright guitar and drums"], LENGTH
    ids, mask = model.tokens(prompts)
    with torch.no_grad(), _spied(model.network.audio_encoder) as decoded:
        model.network.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            guidance_scale=3.0,
            max_new_tokens=frames + 3,
        )
    theirs = torch.stack(decoded, 2).flatten(1, 2)
    sampling = Sampling(top_k=1, guidance=3.0)
    ours, _ = Engine(model, "float32").rollout(prompts, frames / model.frame_rate, 0, sampling)
    assert torch.equal(ours.codes, theirs)


# --- as a method ---


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_the_base_and_every_table_has_a_gradient(kind: str) -> None:
    model, method = toy(), build(kind)
    method.attach(model)
    assert torch.allclose(output(model), output(base()), atol=1e-6)
    model.nll(batch("slow piano")).sum().backward()
    for parameter in trained_parameters(model).values():
        assert parameter.grad is not None and bool(parameter.grad.any())
    with method.disabled(model):
        assert torch.equal(output(model), output(base()))


def test_what_is_trained_is_what_the_paper_s_tables_are() -> None:
    heads, size, blocks = 2, 8, 2
    for kind, count in (("music_transformer", heads * 6 * size), ("t5", heads * 8)):
        _, method = trained(kind)
        assert method.describe()["trained_parameters"] == blocks * count


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_equal(kind: str, tmp_path: Path) -> None:
    model, method = trained(kind)
    save_adapter(model, method, tmp_path)
    fresh = toy()
    loaded = attach_adapter(fresh, tmp_path)
    assert isinstance(loaded, RelativeBias) and loaded.options() == method.options()
    assert torch.equal(output(fresh), output(model))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_and_autocast_train_full_precision_tables(kind: str) -> None:
    half = toy()
    half.network.to(torch.bfloat16)
    method = build(kind)
    method.attach(half)
    half.nll(batch("slow piano")).sum().backward()
    model, _ = trained(kind)
    with torch.autocast("cpu", torch.bfloat16):
        model.nll(batch("slow piano")).sum().backward()
    for one in (half, model):
        for parameter in trained_parameters(one).values():
            assert parameter.dtype == torch.float32
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all())


def test_a_prefix_and_a_relative_bias_leave_one_by_one() -> None:
    model, relative = trained("music_transformer")
    alone = output(model)
    prefix = Prefix.toy()
    prefix.prepare(model, itertools.repeat(batch("slow piano")))
    prefix.attach(model)
    with torch.no_grad():
        for name, parameter in trained_parameters(model).items():
            if name.endswith("gate"):
                parameter.fill_(1.0)
    both = output(model)
    assert not torch.allclose(both, alone, atol=1e-5)
    with relative.disabled(model):
        assert not torch.allclose(output(model), both, atol=1e-5)
    prefix.detach(model)
    assert torch.equal(output(model), alone)
    relative.detach(model)
    assert torch.equal(output(model), output(base()))
    assert model.backbone.config._attn_implementation == "sdpa"
    follow(model.backbone)
    assert model.backbone.config._attn_implementation == "sdpa"


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "alibi"}, "kind 'alibi' is unknown; choose music_transformer or t5"),
        ({"distances": 0}, "distances 0 must be"),
        ({"distances": 2.5}, "distances 2.5 must be"),
        ({"buckets": -1}, "buckets -1 must be"),
        ({"kind": "t5", "buckets": 1}, "1 buckets cannot be used"),
        ({"kind": "t5", "buckets": 32, "distances": 16}, "max_distance 16 must be more than 16"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RelativeBias(**options)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("no_such_layer$", "matched no layer"),
        ("fc1$", "matched no attention block"),
        ("encoder_attn$", "keys are no earlier positions"),
    ],
)
def test_blocks_without_earlier_positions_are_refused(targets: str, message: str) -> None:
    model = toy()
    with pytest.raises(InputError, match=message):
        RelativeBias(targets=targets).check(model)
    with pytest.raises(InputError, match=message):
        RelativeBias(targets=targets).attach(model)
    assert torch.equal(output(model), output(base()))


def test_a_second_one_on_the_same_block_is_refused() -> None:
    model, _ = trained("t5")
    changed = output(model)
    with pytest.raises(InputError, match="has a term of relative position already"):
        build("music_transformer").attach(model)
    assert torch.equal(output(model), changed)


def test_tables_of_another_shape_or_that_are_no_numbers_leave_the_base(tmp_path: Path) -> None:
    model, method = trained("music_transformer")
    method.save(model, tmp_path)
    path = tmp_path / "relative_bias.safetensors"
    tensors = load_tensors(path)
    name = next(iter(tensors))
    for damaged in (tensors[name][:, :2].clone(), tensors[name] * torch.nan):
        save_tensors(tensors | {name: damaged}, path)
        fresh = toy()
        with pytest.raises(InputError, match="made for another base or is damaged"):
            RelativeBias.load(fresh, tmp_path)
        assert torch.equal(output(fresh), output(base()))
