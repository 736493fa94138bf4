"""What backward of a few trained weights keeps, allocates and leaves undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from musictune.kernels import sparse_delta
from musictune.methods import sparse_product
from musictune.methods.sparse import Chosen, Kind, SelectedLinear
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen

WIDE, TOKENS = 512, 8


def largest(step: Callable[[], object]) -> int:
    """Elements of fp32 in the largest piece of memory that ``step`` allocates."""
    step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]") // 4


def wide(kind: Kind, count: int) -> SelectedLinear:
    size = WIDE * WIDE if kind == "elements" else WIDE
    chosen = Chosen(kind, torch.randperm(size)[:count].sort().values)
    return SelectedLinear(nn.Linear(WIDE, WIDE, bias=False), chosen)


@pytest.mark.parametrize(
    ("kind", "count"),
    [("elements", 200), ("elements", WIDE * WIDE // 8), ("rows", 5), ("columns", 5)],
)
@pytest.mark.parametrize("tiled", [True, False])
def test_no_tensor_of_the_size_of_the_matrix_is_made(
    kind: Kind, count: int, tiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tiled:
        monkeypatch.setattr(sparse_delta, "_SPARSE_BELOW", {})
    layer = wide(kind, count)
    x = torch.randn(TOKENS, WIDE, requires_grad=True)
    most = largest(lambda: layer(x).square().sum().backward())
    assert layer.values.grad is not None and x.grad is not None
    assert TOKENS * WIDE <= most <= WIDE * WIDE // 4


def test_watching_makes_tiles_only() -> None:
    layer = wide("elements", 200)
    x = torch.randn(TOKENS, WIDE, requires_grad=True)

    def step() -> None:
        layer.watch(50)
        layer(x).square().sum().backward()

    assert largest(step) <= WIDE * WIDE // 4
    assert layer.candidates is not None


def test_the_probe_would_see_a_dense_gradient() -> None:
    dense = nn.Linear(WIDE, WIDE)
    x = torch.randn(TOKENS, WIDE)
    assert largest(lambda: dense(x).square().sum().backward()) == WIDE * WIDE


@pytest.fixture
def kept() -> Iterator[list[Tensor]]:
    """What autograd keeps for backward inside."""
    seen: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
        yield seen


def test_columns_keep_their_part_of_the_input_once(kept: list[Tensor]) -> None:
    """Query, key and value projections read one tensor."""
    chosen = Chosen("columns", torch.tensor([3, 70, 71]))
    layers = [SelectedLinear(nn.Linear(WIDE, 16), chosen) for _ in range(3)]
    other = SelectedLinear(nn.Linear(WIDE, 16), Chosen("columns", torch.tensor([1, 2])))
    x = torch.randn(TOKENS, WIDE)
    outputs = [layer(x) for layer in (*layers, other)]
    assert [list(t.shape) for t in kept] == [[TOKENS, 3]] * 3 + [[TOKENS, 2]]
    assert len({t.data_ptr() for t in kept[:3]}) == 1
    sum(y.sum() for y in outputs).backward()
    for layer in (*layers, other):
        assert layer.values.grad is not None
        assert torch.allclose(layer.values.grad, x[:, layer.indices].sum(0).expand(16, -1))


def test_an_input_changed_in_place_is_not_taken_for_the_last_one() -> None:
    chosen = Chosen("columns", torch.tensor([0, 1]))
    a, b = (SelectedLinear(nn.Linear(4, 3), chosen) for _ in range(2))
    x = torch.ones(2, 4)
    first = a(x)
    x.mul_(3)
    (first.sum() + b(x).sum()).backward()
    assert a.values.grad is not None and torch.equal(a.values.grad, torch.full((3, 2), 2.0))
    assert b.values.grad is not None and torch.equal(b.values.grad, torch.full((3, 2), 6.0))


def test_nothing_outlives_its_input() -> None:
    layer = SelectedLinear(nn.Linear(4, 3), Chosen("columns", torch.tensor([0, 1])))
    x = torch.ones(2, 4)
    y = layer(x)
    assert sparse_product._last is not None
    del x, y
    assert sparse_product._last is None


# --- in a model ---


def batch() -> Batch:
    codes = torch.randint(0, 64, (2, 4, 12))
    return Batch(codes, torch.tensor([12, 9]), ("a bright piano", "slow guitar"))


def select(model: MusicGen, name: str, kind: Kind) -> SelectedLinear:
    linear = model.backbone.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    layer = SelectedLinear(linear, Chosen(kind, torch.arange(0, 8, 2)))
    model.backbone.set_submodule(name, layer)
    return layer


@pytest.mark.parametrize("kind", ["elements", "rows", "columns"])
def test_backward_stops_below_the_lowest_live_layer(kind: Kind) -> None:
    model = MusicGen.toy()
    model.requires_grad_(False)
    live = select(model, "model.decoder.layers.1.self_attn.v_proj", kind)
    resting = select(model, "model.decoder.layers.0.self_attn.v_proj", kind)
    resting.active = False
    flowed: dict[str, bool] = {}
    watched = {
        "text": model.text_encoder,
        "below": model.backbone.get_submodule("model.decoder.layers.0"),
        "input": model.backbone.get_submodule("model.decoder.layers.1.self_attn_layer_norm"),
        "beside": model.backbone.get_submodule("model.decoder.layers.1.self_attn.q_proj"),
        "above": model.backbone.get_submodule("model.decoder.layers.1.fc1"),
        "crossed": model.backbone.get_submodule("model.decoder.layers.1.encoder_attn.k_proj"),
    }

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
            flowed[name] = any(t.requires_grad for t in tensors)

        return hook

    for name, module in watched.items():
        module.register_forward_hook(note(name))
    model.nll(batch()).mean().backward()
    assert flowed == {
        "text": False,
        "below": False,
        "input": False,
        "beside": False,
        "above": True,
        "crossed": False,
    }
    assert live.values.grad is not None and live.values.grad.abs().sum() > 0
    assert resting.values.grad is None
    others = [p for p in model.parameters() if p is not live.values]
    assert all(p.grad is None for p in others)
