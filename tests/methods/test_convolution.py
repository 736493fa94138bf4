"""Convolution adapters against torch's own layers, and what they keep of what they heard."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.methods.convolution import Convolution, ConvolutionAdapter
from musictune.methods.storage import load_tensors, save_tensors
from tests.methods import toys
from tests.methods.encoders import attached, base, batch, output, perturb, toy


def adapter(
    features: int = 6, width: int = 3, kernel: int = 4, seed: int = 0
) -> ConvolutionAdapter:
    generator = torch.Generator().manual_seed(seed)
    made = ConvolutionAdapter(
        nn.Linear(features, features), features, width, kernel, generator, "after"
    )
    with torch.no_grad():
        for parameter in made.learned().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


def plain(made: ConvolutionAdapter, features: int, width: int, kernel: int) -> nn.ModuleDict:
    """The same network of torch's own layers."""
    parts = nn.ModuleDict(
        {
            "norm": nn.LayerNorm(features),
            "widen": nn.Linear(features, 2 * width),
            "depth": nn.Conv1d(width, width, kernel, padding="same", groups=width),
            "batch": nn.BatchNorm1d(width),
            "up": nn.Linear(width, features),
        }
    )
    names = {"norm": "norm_gain norm_shift", "widen": "widen widen_bias", "up": "up up_bias"}
    names |= {"depth": "depth depth_bias", "batch": "batch_gain batch_shift"}
    with torch.no_grad():
        for part, pair in names.items():
            weight, bias = pair.split()
            parts[part].weight.copy_(made.get_parameter(weight))  # type: ignore[operator,union-attr]
            parts[part].bias.copy_(made.get_parameter(bias))  # type: ignore[operator,union-attr]
    return parts


def run(parts: nn.ModuleDict, x: Tensor) -> Tensor:
    wide = nn.functional.glu(parts["widen"](parts["norm"](x)))
    mixed = parts["batch"](parts["depth"](wide.transpose(1, 2)))
    found: Tensor = parts["up"](nn.functional.silu(mixed).transpose(1, 2))
    return found


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.tuples(st.integers(2, 5), st.integers(1, 3), st.integers(1, 9)),
    shape=st.tuples(st.integers(1, 3), st.integers(2, 7)),
    seed=st.integers(0, 99),
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_an_adapter_is_its_formula(
    sizes: tuple[int, int, int], shape: tuple[int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    made = adapter(*sizes, seed=seed)
    parts = plain(made, *sizes)
    for mode in (True, False):  # the second pass uses what the first one kept
        made.train(mode)
        parts.train(mode)
        x = torch.randn(*shape, sizes[0])
        assert torch.allclose(made.change(x), run(parts, x), atol=1e-4, rtol=1e-4)
        assert torch.allclose(made.mean, parts["batch"].running_mean, atol=1e-5)  # type: ignore[arg-type]
        assert torch.allclose(made.variance, parts["batch"].running_var, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 1, 6), (1, 6), (2, 1, 6), (1, 3, 6), (2, 2, 3, 6)])
def test_few_tokens_are_heard_in_training_too(shape: tuple[int, ...]) -> None:
    made = adapter().train()
    found = made.change(torch.randn(shape))
    assert found.shape == shape and found.isfinite().all()
    found.sum().backward()


def test_one_value_per_channel_leaves_the_statistics_alone() -> None:
    made = adapter().train()
    made.change(torch.randn(1, 1, 6))
    assert torch.equal(made.mean, torch.zeros(3)) and torch.equal(made.variance, torch.ones(3))


def statistics(method: Convolution) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in method._kept().items() if n.endswith(("mean", "variance"))}


def test_statistics_move_in_training_only_and_never_where_it_is_switched_off() -> None:
    method = Convolution.toy()
    model = attached(method, "ast")
    start = statistics(method)
    assert len(start) == 4
    output(model, "ast")  # attached to a model that does not train, it does not either
    model.train()
    with method.disabled(model):
        model.nll(batch("ast"))
    assert all(torch.equal(statistics(method)[n], start[n]) for n in start)
    model.nll(batch("ast"))
    assert not any(torch.equal(statistics(method)[n], start[n]) for n in start)


def test_statistics_are_saved_and_loaded(tmp_path: Path) -> None:
    method = Convolution.toy()
    model = attached(method, "ast")
    perturb(model)
    model.train()
    model.nll(batch("ast"))
    model.eval()
    method.save(model, tmp_path)
    other = toy("ast")
    again = Convolution.load(other, tmp_path)
    assert torch.equal(output(other, "ast"), output(model, "ast"))
    found, expected = statistics(again), statistics(method)
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    again.detach(other)
    assert set(other.state_dict()) == set(base("ast").state_dict())


@pytest.mark.parametrize("damage", ["missing", "wrong"])
def test_damaged_statistics_are_refused(damage: str, tmp_path: Path) -> None:
    method = Convolution.toy()
    method.save(attached(method, "ast"), tmp_path)
    path = tmp_path / "convolution.safetensors"
    tensors = load_tensors(path)
    name = next(n for n in tensors if n.endswith(".mean"))
    if damage == "missing":
        del tensors[name]
    else:
        tensors[name] = torch.full_like(tensors[name], torch.nan)
    save_tensors(tensors, path)
    other = toy("ast")
    with pytest.raises(InputError, match="made for another base or is damaged"):
        Convolution.load(other, tmp_path)
    assert torch.equal(output(other, "ast"), output(base("ast"), "ast"))


def test_a_model_that_plays_from_left_to_right_is_refused() -> None:
    model = toys.toy()
    with pytest.raises(InputError, match="method convolution lets every step hear later ones"):
        Convolution().attach(model)
    assert [n for n, _ in model.named_modules()] == [n for n, _ in toys.base().named_modules()]


@pytest.mark.parametrize("value", [0, -2, 1.5, True])
def test_sizes_that_are_none_are_refused(value: int) -> None:
    with pytest.raises(InputError, match="width"):
        Convolution(width=value)
    with pytest.raises(InputError, match="kernel"):
        Convolution(kernel=value)
