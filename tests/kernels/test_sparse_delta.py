"""Every kernel against dense float64, in plain torch, in Triton's interpreter and on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from musictune import kernels
from musictune.kernels import runtime, sparse_delta

# tokens, out, in, entries: single weights, odd widths, more than one tile each way, few tokens
SHAPES = [(1, 1, 1, 1), (5, 7, 9, 63), (33, 70, 65, 200), (3, 130, 17, 40), (20, 16, 140, 1)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=["torch", "interpreted", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param != "torch" and not runtime.has_triton():
        pytest.skip("triton is not installed; pip install 'musictune[kernels]'")
    if request.param == "interpreted" and not runtime.interpreted():
        pytest.skip("TRITON_INTERPRET is off, so kernels are compiled for a GPU")
    if request.param == "gpu" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    way = kernels.interpreting() if request.param == "interpreted" else contextlib.nullcontext()
    with way:
        yield "cuda" if request.param == "gpu" else "cpu"


def some(count: int, size: int) -> Tensor:
    return torch.randperm(size)[:count].sort().values


def close(ours: Tensor, dense: Tensor, dtype: torch.dtype) -> bool:
    scale = dense.abs().max().clamp(min=1)
    return bool(((ours.double().cpu() - dense).abs().max() <= TOLERANCE[dtype] * scale).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_the_changed_product_and_its_gradients(
    device: str, dtype: torch.dtype, shape: tuple[int, int, int, int], bias: bool
) -> None:
    tokens, outs, width, entries = shape
    x, weight = torch.randn(tokens, width).to(dtype), torch.randn(outs, width).to(dtype)
    indices, values = some(entries, outs * width), torch.randn(entries)
    added = torch.randn(outs).to(dtype) if bias else None
    dy = torch.randn(tokens, outs).to(dtype)

    leaves = [a.to(device).requires_grad_() for a in (x, values, *([added] if bias else []))]
    y = kernels.linear_with_delta(
        leaves[0], weight.to(device), indices.to(device), leaves[1], *leaves[2:]
    )
    ours = [y, *torch.autograd.grad(y, leaves, dy.to(device))]

    exact = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
    dense = weight.double().flatten().index_add(0, indices, exact[1]).view_as(weight)
    expected = exact[0] @ dense.t() + (exact[2] if bias else 0)
    theirs = [expected, *torch.autograd.grad(expected, exact, dy.double())]
    assert y.dtype == dtype
    for mine, reference in zip(ours, theirs, strict=True):
        assert close(mine.detach(), reference.detach(), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES, (9, 300, 5, 1500), (9, 300, 5, 20)])
def test_the_sampled_gradient(
    device: str, dtype: torch.dtype, shape: tuple[int, int, int, int]
) -> None:
    tokens, outs, width, entries = shape
    dy, x = torch.randn(tokens, outs).to(dtype), torch.randn(tokens, width).to(dtype)
    indices = some(entries, outs * width)
    ours = kernels.sampled_gradient(dy.to(device), x.to(device), indices.to(device), width)
    expected = (dy.double().t() @ x.double()).flatten()[indices]
    assert ours.dtype == torch.float32
    assert close(ours, expected, dtype)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_one_product_per_entry_and_dense_tiles_agree(data: st.DataObject) -> None:
    tokens, outs, width = (data.draw(st.integers(1, 40)) for _ in range(3))
    entries = data.draw(st.integers(1, outs * width))
    dy, x = torch.randn(tokens, outs), torch.randn(tokens, width)
    indices = some(entries, outs * width)
    dots = sparse_delta._dot_products(dy, x, indices, width)
    tiles = sparse_delta._tiles(dy, x, indices, width)
    assert torch.allclose(dots, tiles, atol=1e-4)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_the_largest_gradients_are_those_of_the_dense_matrix(data: st.DataObject) -> None:
    outs, width = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 20))
    count = data.draw(st.integers(1, 30))
    dy, x = torch.randn(6, outs), torch.randn(6, width)
    excluded = some(data.draw(st.integers(0, outs * width)), outs * width)
    where, size = kernels.largest_gradients(dy, x, excluded, count)
    dense = (dy.t() @ x).abs().flatten()
    dense[excluded] = -1
    expected = dense.topk(min(count, outs * width - len(excluded))).values
    assert torch.allclose(size, expected, atol=1e-5)
    assert torch.allclose(dense[where], size, atol=1e-5)
    assert len(where.unique()) == len(where)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_step_is_adamw_and_writes_the_sum(device: str, dtype: torch.dtype) -> None:
    settings = {"lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}
    before = torch.randn(9, 10).to(dtype)
    indices = some(50, 90)
    weight, places = before.to(device, copy=True), indices.to(device)
    original = weight.view(-1)[places].clone()
    values, mean, square = (torch.zeros(50, device=device) for _ in range(3))
    reference = torch.nn.Parameter(torch.zeros(50))
    optimizer = torch.optim.AdamW([reference], **settings)
    for step in range(1, 6):
        gradient = torch.randn(50)
        reference.grad = gradient
        optimizer.step()
        kernels.sparse_adamw_step(
            values,
            gradient.to(device),
            mean,
            square,
            original,
            weight,
            places,
            **settings,
            step=step,
        )
    assert torch.allclose(values.cpu(), reference.detach(), atol=1e-6)
    state = optimizer.state[reference]
    assert torch.allclose(mean.cpu(), state["exp_avg"], atol=1e-6)
    assert torch.allclose(square.cpu(), state["exp_avg_sq"], atol=1e-6)
    rest = torch.ones(90, dtype=torch.bool)
    rest[indices] = False
    assert torch.equal(weight.cpu().flatten()[rest], before.flatten()[rest])
    # The interpreter rounds to bf16 towards zero: one step of that dtype.
    written = weight.cpu().flatten()[indices].float()
    step_size = 2**-7 if dtype == torch.bfloat16 else 1e-6
    assert torch.allclose(written, (original + values).cpu(), rtol=step_size, atol=1e-6)


def test_the_weight_is_neither_changed_nor_copied() -> None:
    weight = torch.randn(6, 8)
    before = weight.clone()
    values = torch.randn(3, requires_grad=True)
    y = kernels.linear_with_delta(torch.randn(2, 5, 8), weight, torch.tensor([0, 9, 47]), values)
    y.sum().backward()
    assert y.shape == (2, 5, 6)
    assert torch.equal(weight, before)


def test_interpreting_without_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"), kernels.interpreting():
        pass
    assert not kernels.use_triton(torch.zeros(1))
