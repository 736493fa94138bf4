"""Compacter: sums of Kronecker products, and factors that all layers share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from musictune.errors import InputError
from musictune.methods.compacter import Compacter, CompacterAdapter, kronecker_sum
from tests.methods import toys
from tests.methods.encoders import attached, base, output, perturb, toy


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 6),
    seed=st.integers(0, 99),
)
def test_a_kronecker_sum_is_its_formula(sizes: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    count, tall, wide, rows, columns, rank = sizes
    rules = torch.randn(count, tall, wide)
    left, right = torch.randn(count, rows, rank), torch.randn(count, rank, columns)
    expected = sum(
        torch.kron(rule, one @ other) for rule, one, other in zip(rules, left, right, strict=True)
    )
    assert torch.allclose(kronecker_sum(rules, left, right), expected, atol=1e-5)


def test_an_adapter_is_a_bottleneck_of_such_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    rules = nn.Parameter(torch.randn(2, 2, 2, generator=generator))
    made = CompacterAdapter(nn.Linear(6, 8), 8, 4, rules, 1, generator, "after")
    x = torch.randn(3, 6, generator=generator)
    assert torch.equal(made(x), made.base(x))
    for parameter in made.learned().values():
        nn.init.normal_(parameter)
    down = kronecker_sum(made.rules, made.down_left, made.down_right)
    up = kronecker_sum(made.rules, made.up_left, made.up_right)
    assert down.shape == (4, 8) and up.shape == (8, 4)
    y = made.base(x)
    narrow = nn.functional.gelu(y @ down.T + made.down_bias)
    assert torch.allclose(made(x), y + narrow @ up.T + made.up_bias, atol=1e-4)


def test_down_begins_as_large_as_that_of_a_bottleneck() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = []
    for _ in range(20):
        rules = nn.Parameter(torch.randn(4, 4, 4, generator=generator) / 2)
        made = CompacterAdapter(nn.Linear(2, 64), 64, 16, rules, 2, generator, "after")
        down = kronecker_sum(made.rules, made.down_left, made.down_right)
        sizes.append(float(down.detach().pow(2).mean()) * 64)
    assert 0.8 < sum(sizes) / len(sizes) < 1.25


@pytest.mark.parametrize("kind", ["ast", "hubert"])
def test_all_layers_share_one_set_of_rules(kind: str, tmp_path: Path) -> None:
    method = Compacter(width=4, products=2, norms=False)
    model = attached(method, kind)
    rules = {id(m.rules) for m in model.backbone.modules() if isinstance(m, CompacterAdapter)}
    assert len(rules) == 1
    matrix = 4 + 16  # left and right, n * (4 / n + 16 / n) at rank 1
    assert method.describe()["trained_parameters"] == 2**3 + 2 * (2 * matrix + 4 + 16)
    perturb(model)
    method.save(model, tmp_path)
    other = toy(kind)
    Compacter.load(other, tmp_path)
    assert torch.equal(output(other, kind), output(model, kind))
    assert len({id(m.rules) for m in other.modules() if isinstance(m, CompacterAdapter)}) == 1


def test_on_music_there_is_one_behind_each_block() -> None:
    model, method = toys.toy(), Compacter.toy()
    method.attach(model)
    assert method.describe()["matched_layers"] == 4
    assert method.options()["configuration"] == "houlsby"
    assert method.options()["position"] == "after"


def test_products_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match="products 3 must divide width 4"):
        Compacter(width=4, products=3)
    model = toy("ast")
    with pytest.raises(InputError, match=r"products 3 must divide the 16 channels of layers\.0"):
        Compacter(width=6, products=3).attach(model)
    assert torch.equal(output(model, "ast"), output(base("ast"), "ast"))
    for name in ("width", "products", "rank"):
        with pytest.raises(InputError, match=f"{name} 0 must be"):
            Compacter(**{name: 0})
