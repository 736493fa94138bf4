"""A layer with a few trained weights against dense arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from musictune.errors import InputError
from musictune.methods.sparse import Chosen, Kind, SelectedLinear

OUT, IN = 6, 8
CHOICES: dict[Kind, list[int]] = {"elements": [0, 5, 9, 30, 47], "rows": [1, 4], "columns": [2, 7]}


@pytest.fixture(params=list(CHOICES))
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


def layer(
    kind: Kind, dtype: torch.dtype = torch.float32, bias: bool = True, **options: Any
) -> SelectedLinear:
    base = nn.Linear(IN, OUT, bias=bias).to(dtype)
    made = SelectedLinear(base, Chosen(kind, torch.tensor(CHOICES[kind])), **options)
    with torch.no_grad():
        made.values.normal_()
    return made


def dense(made: SelectedLinear) -> Tensor:
    """The weight with the change, from the parts."""
    made.enabled = False
    base = made.base.weight.detach().float().clone()
    made.enabled = True
    return base + made.change()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(IN,), (3, IN), (2, 5, IN)])
def test_output_and_gradients_are_those_of_the_dense_change(
    kind: Kind, bias: bool, shape: tuple[int, ...]
) -> None:
    made = layer(kind, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    weight = dense(made).requires_grad_()
    expected = F.linear(x, weight, made.base.bias)
    dy = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [x, weight], dy)
    y = made(x)
    y.backward(dy)
    assert torch.allclose(y, expected, atol=1e-6)
    assert x.grad is not None and torch.allclose(x.grad, wanted[0], atol=1e-5)
    assert made.values.grad is not None and made.values.grad.dtype == torch.float32
    gradient = wanted[1].flatten()[made.chosen.flat((OUT, IN))]
    assert torch.allclose(made.values.grad.flatten(), gradient, atol=1e-5)
    assert made.base.weight.grad is None


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_is_near(kind: Kind, autocast: bool) -> None:
    made = layer(kind, torch.float32 if autocast else torch.bfloat16)
    x = torch.randn(4, IN, requires_grad=True)
    weight = dense(made).requires_grad_()
    expected = F.linear(x, weight, made.base.bias.float())
    wanted = torch.autograd.grad(expected.sum(), [x, weight])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = made(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert made.values.grad is not None and made.values.dtype == torch.float32
    assert torch.allclose(y.float(), expected, atol=0.1)
    assert torch.allclose(x.grad, wanted[0], atol=0.1)
    gradient = wanted[1].flatten()[made.chosen.flat((OUT, IN))]
    assert torch.allclose(made.values.grad.flatten(), gradient, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_comes_back_to_the_bit(kind: Kind, dtype: torch.dtype) -> None:
    base = nn.Linear(IN, OUT).to(dtype)
    before = base.weight.detach().clone()
    made = SelectedLinear(base, Chosen(kind, torch.tensor(CHOICES[kind])))
    x = torch.randn(3, IN).to(dtype)
    with torch.no_grad():
        plain = base(x)
        made.values.normal_()
        changed = made(x)
        made.enabled = False
        assert torch.equal(base.weight, before) and torch.equal(made(x), plain)
        made.enabled = True
        assert not torch.equal(base.weight, before) and torch.equal(made(x), changed)
    assert made.restored() is base
    assert torch.equal(base.weight, before)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
        lambda p: torch.optim.AdamW(p, lr=0.1, foreach=False),
        lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.1),
    ],
    ids=["foreach", "loop", "fused", "sgd"],
)
def test_every_step_of_an_optimiser_is_seen(kind: Kind, make: Callable[..., Any]) -> None:
    made = layer(kind)
    optimizer = make([made.values])
    x = torch.randn(5, IN)
    for _ in range(3):
        before = made(x).detach()
        made(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        after = made(x).detach()
        assert not torch.equal(before, after)
        assert torch.allclose(after, F.linear(x, dense(made), made.base.bias), atol=1e-6)


def test_a_load_is_seen(kind: Kind) -> None:
    made, other = layer(kind), layer(kind)
    x = torch.randn(5, IN)
    made(x)
    made.load_state_dict(other.state_dict())
    assert torch.equal(made(x), other(x))


def test_a_copy_is_whole_and_apart(kind: Kind) -> None:
    made = layer(kind)
    x = torch.randn(5, IN)
    expected = made(x).detach()
    twin = copy.deepcopy(made)
    with torch.no_grad():
        made.values.zero_()
    made(x)
    assert torch.equal(twin(x), expected)
    twin.enabled = False
    assert torch.allclose(twin(x), made(x), atol=1e-6)


def test_gradients_accumulate(kind: Kind) -> None:
    made = layer(kind)
    a, b = torch.randn(3, IN), torch.randn(4, IN)
    made(torch.cat([a, b])).square().sum().backward()
    assert made.values.grad is not None
    whole = made.values.grad.clone()
    made.values.grad = None
    for part in (a, b):
        made(part).square().sum().backward()
    assert torch.allclose(made.values.grad, whole, atol=1e-4)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_checkpointing_changes_nothing(kind: Kind, reentrant: bool, dropout: float) -> None:
    """Not even which entries and outputs are left out: the layer is followed by a dropout."""
    made = layer(kind, dropout=dropout)
    net = nn.Sequential(made, nn.Dropout(0.5))
    x = torch.randn(5, IN, requires_grad=True)
    torch.manual_seed(3)
    net(x).square().sum().backward()
    first = (x.grad, made.values.grad)
    x.grad = made.values.grad = None
    with torch.no_grad():
        made.values.mul_(1)  # a new step
    torch.manual_seed(3)
    checkpoint(net, x, use_reentrant=reentrant).square().sum().backward()
    for mine, before in zip((x.grad, made.values.grad), first, strict=True):
        assert mine is not None and before is not None and torch.equal(mine, before)


def test_a_look_at_the_base_between_forward_and_backward(kind: Kind) -> None:
    """A reference policy does that."""
    made = layer(kind)
    x = torch.randn(5, IN, requires_grad=True)
    expected = torch.autograd.grad(made(x).square().sum(), [x, made.values])
    loss = made(x).square().sum()
    made.enabled = False
    with torch.no_grad():
        made(x)
    made.enabled = True
    assert all(map(torch.equal, torch.autograd.grad(loss, [x, made.values]), expected))
    loss = made(x).square().sum()
    made.enabled = False
    assert all(map(torch.equal, torch.autograd.grad(loss, [x, made.values]), expected))
    plain = made(x)
    before = made.base.weight.detach().clone()
    made.enabled = True
    (dx,) = torch.autograd.grad(plain.sum(), [x])
    assert torch.allclose(dx, before.sum(0).expand_as(dx), atol=1e-6)


def test_backward_after_values_moved_is_of_what_forward_saw_or_an_error(kind: Kind) -> None:
    made = layer(kind)
    x = torch.randn(5, IN, requires_grad=True)
    (expected,) = torch.autograd.grad(made(x).sum(), [x])
    first, second = made(x).sum(), made(x).sum()
    with torch.no_grad():
        made.values.add_(1)
    assert torch.equal(torch.autograd.grad(first, [x])[0], expected)
    made(x)
    with pytest.raises(RuntimeError, match="used again before an earlier backward"):
        second.backward()


def test_a_resting_layer_gets_no_gradient_and_keeps_no_input(kind: Kind) -> None:
    made = layer(kind)
    made.active = False
    assert not made(torch.randn(5, IN)).requires_grad
    x = torch.randn(5, IN, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        made(x).sum().backward()
    assert made.values.grad is None and x.grad is not None and not kept


def test_no_gradient_is_kept_where_none_is_asked(kind: Kind) -> None:
    made = layer(kind)
    x = torch.randn(5, IN)
    with torch.no_grad():
        assert made(x).grad_fn is None
    with torch.inference_mode():
        assert torch.equal(made(x), made(x))


# --- entries left out ---


def test_entries_left_out_stay_for_a_step_and_only_in_training(kind: Kind) -> None:
    made = layer(kind, dropout=0.5)
    x = torch.randn(5, IN)
    made.eval()
    whole = made(x)
    made.train()
    first = made(x)
    assert torch.equal(made(x), first)
    assert not torch.equal(first, whole)
    made.eval()
    assert torch.equal(made(x), whole)
    made.train()
    assert torch.equal(made(x), first)
    outputs = []
    for _ in range(8):
        with torch.no_grad():
            made.values.mul_(1)
        outputs.append(made(x))
    assert any(not torch.equal(outputs[0], other) for other in outputs[1:])


def test_the_gradient_is_left_out_alike(kind: Kind) -> None:
    made = layer(kind, dropout=0.5)
    x = torch.randn(5, IN, requires_grad=True)
    made(x).square().sum().backward()
    used = made.base.weight.detach().clone()
    made.enabled = False
    share = ((used - made.base.weight) * (made.change() != 0)) / made.change().where(
        made.change() != 0, torch.ones(())
    )
    share = share.detach().round()  # 0 or 2
    assert set(share.unique().tolist()) <= {0.0, 2.0}
    weight = used.requires_grad_()
    expected = torch.autograd.grad(F.linear(x, weight, made.base.bias).square().sum(), [x, weight])
    assert x.grad is not None and torch.allclose(x.grad, expected[0], atol=1e-4)
    wanted = (expected[1] * share).flatten()[made.chosen.flat((OUT, IN))]
    assert made.values.grad is not None
    assert torch.allclose(made.values.grad.flatten(), wanted, atol=1e-4)


def test_the_change_is_right_on_average() -> None:
    base = nn.Linear(40, 50, bias=False)
    made = SelectedLinear(base, Chosen("columns", torch.arange(0, 40, 2)), dropout=0.3)
    with torch.no_grad():
        made.values.fill_(1.0)
        made(torch.zeros(1, 40))
        used = made.base.weight.clone()
        made.enabled = False
        change = (used - made.base.weight)[:, ::2]
    assert change.mean().item() == pytest.approx(1, abs=0.1)
    assert (change.abs() < 1e-6).float().mean().item() == pytest.approx(0.3, abs=0.05)


# --- growing ---


def test_candidates_are_the_largest_gradients_elsewhere() -> None:
    made = layer("elements")
    x = torch.randn(5, IN)
    weight = dense(made).requires_grad_()
    (gradient,) = torch.autograd.grad(F.linear(x, weight, made.base.bias).square().sum(), [weight])
    made.watch(4)
    made(x).square().sum().backward()
    assert made.candidates is not None and made.values.grad is not None
    where, size = made.candidates
    outside = gradient.abs().flatten().detach()
    outside[made.indices] = -1
    assert torch.allclose(size, outside.topk(4).values, atol=1e-4)
    assert not torch.isin(where, made.indices).any()
    made(x).sum().backward()
    assert torch.equal(made.candidates[0], where), "only the next backward looks"


def test_a_resting_layer_can_be_watched() -> None:
    made = layer("elements")
    made.active = False
    made.watch(2)
    made(torch.randn(5, IN)).sum().backward()
    assert made.candidates is not None and len(made.candidates[0]) == 2
    assert made.values.grad is None


def test_replaced_elements_are_trained_and_the_old_ones_are_the_base() -> None:
    made = layer("elements")
    made.enabled = False
    before = made.base.weight.detach().clone()
    made.enabled = True
    parameter = made.values
    made.replace(torch.tensor([1, 5, 10, 20, 40]), torch.arange(5.0))
    assert made.values is parameter
    x = torch.randn(3, IN)
    expected = before.flatten().index_add(0, made.indices, torch.arange(5.0)).view(OUT, IN)
    assert torch.allclose(made(x), F.linear(x, expected, made.base.bias), atol=1e-6)
    assert torch.equal(made.restored().weight, before)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_merged_is_the_base_with_a_share_of_the_change(kind: Kind, weight: float) -> None:
    made = layer(kind)
    x = torch.randn(3, IN)
    live = made(x)
    change = made.change()
    made.enabled = False
    before = made.base.weight.detach().clone()
    made.enabled = True
    base = made.merged(weight)
    assert type(base) is nn.Linear
    assert torch.allclose(base.weight, before + weight * change, atol=1e-6)
    if weight == 1:
        assert torch.equal(base(x), live)
    if weight == 0:
        assert torch.equal(base.weight, before)


def test_dropout_of_a_layer_that_rests_is_drawn_anew_when_asked() -> None:
    made, x = layer("elements", dropout=0.5).train(), torch.randn(3, IN)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        made(x)
        return made.base.weight.detach().clone()

    first = drawn(0)
    assert all(torch.equal(drawn(seed), first) for seed in range(1, 9))
    seen = []
    for seed in range(1, 9):
        made.redraw()
        seen.append(drawn(seed))
    assert not all(torch.equal(one, first) for one in seen)
    made.redraw()
    assert torch.equal(drawn(0), first)


def test_what_only_elements_can_do_is_refused() -> None:
    with pytest.raises(InputError, match="trains rows"):
        layer("rows").watch(1)
    with pytest.raises(InputError, match="trains columns"):
        layer("columns").replace(torch.tensor([1, 2]), torch.zeros(2))
    with pytest.raises(InputError, match="at least 1"):
        layer("elements").watch(0)
    with pytest.raises(InputError, match="5 elements cannot be replaced by 2"):
        layer("elements").replace(torch.tensor([1, 2]), torch.zeros(2))
    with pytest.raises(InputError, match="below 1"):
        layer("rows", dropout=1.0)
