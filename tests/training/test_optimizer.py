"""AdamW over trained elements goes on from AdamW, and back."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn

from musictune import kernels
from musictune.kernels import runtime
from musictune.methods.pivotal import Pivotal
from musictune.methods.sparse import Chosen, SelectedLinear
from musictune.models.musicgen import MusicGen
from musictune.training import optimizer as module_under_test
from musictune.training.optimizer import SparseAdamW
from musictune.training.settings import TrainingSettings
from musictune.training.tuning import Tuning


@pytest.fixture(params=[False, True], ids=["torch", "interpreted"])
def way(request: pytest.FixtureRequest) -> contextlib.AbstractContextManager[None]:
    if not request.param:
        return contextlib.nullcontext()
    if not (runtime.has_triton() and runtime.interpreted()):
        pytest.skip("triton is not installed; pip install 'musictune[kernels]'")
    return kernels.interpreting()


def net(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    elements = Chosen("elements", torch.tensor([0, 3, 11, 12, 30]))
    return nn.Sequential(
        SelectedLinear(nn.Linear(6, 8), elements, dropout),
        nn.Tanh(),
        SelectedLinear(nn.Linear(8, 4), Chosen("rows", torch.tensor([2]))),
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        x = torch.randn(5, 6)

        def closure(x: torch.Tensor = x) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            return loss

        assert optimizer.step(closure) > 0


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_it_moves_as_adamw_does_and_each_goes_on_from_the_other(
    way: contextlib.AbstractContextManager[None], dropout: float
) -> None:
    options = {"lr": 0.05, "weight_decay": 0.1}
    plain, ours = net(dropout), net(dropout)
    first = torch.optim.AdamW(trained(plain), **options)
    second = SparseAdamW(trained(ours), ours, **options)
    with way:
        train(plain, first, 3)
        train(ours, second, 3)
        handed = copy.deepcopy(second.state_dict())
        assert handed["state"].keys() == first.state_dict()["state"].keys()
        third = torch.optim.AdamW(trained(ours), **options)
        third.load_state_dict(handed)
        train(ours, third, 2)
        fourth = SparseAdamW(trained(ours), ours, **options)
        fourth.load_state_dict(third.state_dict())
        train(ours, fourth, 2)
        train(plain, first, 2)
        train(plain, first, 2)
    x = torch.randn(3, 6)
    for mine, theirs in zip(trained(ours), trained(plain), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    for model in (plain, ours):
        model.eval()
    assert torch.allclose(ours(x), plain(x), atol=1e-4)


def test_the_weight_holds_what_the_kernel_wrote(
    way: contextlib.AbstractContextManager[None],
) -> None:
    model = net()
    with way:
        train(model, SparseAdamW(trained(model), model, lr=0.05), 2)
    layer = model[0]
    assert isinstance(layer, SelectedLinear)
    used = layer.weight.detach().clone()
    change = layer.change()
    layer.enabled = False
    assert torch.allclose(used, layer.weight + change, atol=1e-6)
    assert change.abs().sum() > 0


def test_a_run_moves_each_layer_of_elements_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    model, method = MusicGen.toy(), Pivotal(fraction=0.1, selection="random")
    method.prepare(model, iter(()))
    method.attach(model)
    optimizer = Tuning(model, method, TrainingSettings()).configure_optimizers()
    for layer in method.layers.values():
        layer.values.grad = torch.ones_like(layer.values)
    moved: list[int] = []

    def step(values: torch.Tensor, *_: object, **__: object) -> None:
        moved.append(values.data_ptr())

    monkeypatch.setattr(module_under_test, "use_triton", lambda *_: True)
    monkeypatch.setattr(module_under_test, "sparse_adamw_step", step)
    optimizer.step()
    assert sorted(moved) == sorted(e.values.data_ptr() for e in method.layers.values())
