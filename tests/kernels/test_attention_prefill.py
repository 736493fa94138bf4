"""Attention of whole sequences and its gradients, against float64 over the whole matrix."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from musictune import kernels
from musictune.kernels import attention, runtime

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

# batch, heads, queries, keys, head size, causal, lengths; a single clip has a scale of its own
CASES = [
    (1, 1, 1, 1, 8, True, None),
    (2, 2, 37, 37, 24, True, None),
    (1, 1, 70, 70, 64, True, None),
    (2, 1, 19, 45, 16, False, [45, 7]),
    (2, 1, 33, 17, 12, False, None),
    (2, 1, 20, 33, 20, True, [33, 30]),
    (2, 1, 40, 21, 16, True, [21, 0]),
    (1, 3, 3, 40, 16, True, None),
]


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


def some(case: tuple, dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """Query, key and value as projections lay them out, a gradient of the output, lengths."""
    batch, heads, queries, keys, size, _, lengths = case
    places = (queries, keys, keys)
    leaves = [torch.randn(batch, n, heads, size).to(dtype).transpose(1, 2) for n in places]
    gradient = torch.randn(batch, heads, queries, size).to(dtype)
    return leaves, gradient, None if lengths is None else torch.tensor(lengths)


def exact(leaves: list[Tensor], causal: bool, lengths: Tensor | None, scale: float) -> Tensor:
    query, key, value = leaves
    score = query @ key.transpose(2, 3) * scale
    queries, keys = score.shape[2:]
    seen = torch.ones(len(query), 1, queries, keys, dtype=torch.bool)
    if causal:
        seen &= torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    if lengths is not None:
        seen &= (torch.arange(keys) < lengths[:, None])[:, None, None]
    weights = score.masked_fill(~seen, -1e300).softmax(-1) * seen
    return weights @ value


def close(ours: Tensor, reference: Tensor, dtype: torch.dtype) -> bool:
    scale = reference.abs().max().clamp(min=1)
    return bool(((ours.double().cpu() - reference).abs().max() <= TOLERANCE[dtype] * scale).all())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_the_output_and_all_gradients(device: str, dtype: torch.dtype, case: tuple) -> None:
    values, gradient, lengths = some(case, dtype)
    causal, scale = case[5], 0.4 if case[0] == 1 else None
    leaves = [t.to(device).requires_grad_() for t in values]
    there = None if lengths is None else lengths.to(device)
    y = attention.prefill_attention(*leaves, causal, scale, there)
    ours = [y, *torch.autograd.grad(y, leaves, gradient.to(device))]

    wide = [t.double().requires_grad_() for t in values]
    expected = exact(wide, causal, lengths, scale or case[4] ** -0.5)
    theirs = [expected, *torch.autograd.grad(expected, wide, gradient.double())]
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.dtype == dtype
        assert mine.shape == reference.shape
        assert close(mine.detach(), reference.detach(), dtype)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_the_plain_way_at_any_shape(data: st.DataObject) -> None:
    batch, heads, queries, keys, size = (data.draw(st.integers(1, n)) for n in (3, 2, 12, 12, 9))
    causal = data.draw(st.booleans())
    lengths = data.draw(st.none() | st.lists(st.integers(0, keys), min_size=batch, max_size=batch))
    case = (batch, heads, queries, keys, size, causal, lengths)
    values, gradient, given_lengths = some(case, torch.float64)
    leaves = [t.requires_grad_() for t in values]
    ours = attention.prefill_attention(*leaves, causal, lengths=given_lengths)
    theirs = exact(leaves, causal, given_lengths, size**-0.5)
    assert torch.allclose(ours, theirs, atol=1e-12)
    for mine, reference in zip(
        torch.autograd.grad(ours, leaves, gradient),
        torch.autograd.grad(theirs, leaves, gradient),
        strict=True,
    ):
        assert torch.allclose(mine, reference, atol=1e-12)


def test_what_comes_later_and_what_is_not_there_changes_nothing(device: str) -> None:
    values, gradient, _ = some((2, 1, 35, 35, 16, True, None), torch.float32)
    leaves = [t.to(device).requires_grad_() for t in values]
    lengths = torch.tensor([35, 20], device=device)
    y = attention.prefill_attention(*leaves, True, lengths=lengths)
    grads = torch.autograd.grad(y, leaves, gradient.to(device))
    assert not grads[1][1, :, 20:].any()
    assert not grads[2][1, :, 20:].any()
    changed = [t.detach().clone() for t in leaves]
    for t in changed[1:]:
        t[0, :, 30:] = 1e4
        t[1, :, 20:] = 1e4
    again = attention.prefill_attention(*changed, True, lengths=lengths)
    assert torch.equal(again[0, :, :30], y[0, :, :30])
    assert torch.equal(again[1], y[1])


def test_large_scores_do_not_overflow(device: str) -> None:
    query, key, value = (torch.randn(1, 1, n, 16, device=device) * 300 for n in (5, 40, 40))
    ours = attention.prefill_attention(query, key, value)
    wide = exact([t.cpu().double() for t in (query, key, value)], False, None, 0.25)
    assert torch.allclose(ours.cpu().double(), wide, rtol=1e-4, atol=1e-2)


def test_what_is_not_a_number_comes_out_again(device: str) -> None:
    query, key, value = (torch.randn(1, 1, 20, 16) for _ in range(3))
    key[0, 0, 12, 3] = torch.nan
    out = attention.prefill_attention(*(t.to(device) for t in (query, key, value)), True).cpu()
    assert out[0, 0, :12].isfinite().all()
    assert out[0, 0, 12:].isnan().all()


def test_only_what_is_linear_in_the_length_is_kept(device: str) -> None:
    if device == "cpu" and not runtime.use_triton(torch.zeros(1)):
        pytest.skip("what torch keeps is its own affair")
    leaves = [torch.randn(1, 1, 90, 16, device=device, requires_grad=True) for _ in range(3)]
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attention.prefill_attention(*leaves, True)
    assert sum(t.numel() for t in kept) == 4 * 90 * 16 + 90  # with the output, and one sum each


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": torch.zeros(1, 2, 3, 4)}, "must both be"),
        ({"value": torch.zeros(1, 1, 4, 4)}, "must both be"),
        ({"query": torch.zeros(1, 1, 0, 4)}, "hold nothing"),
        ({"query": torch.zeros(1, 1, 3, 4).half()}, "float16, torch.float32"),
        ({"lengths": torch.tensor([1, 2])}, "lengths must be 1"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    arguments = {name: torch.zeros(1, 1, 3, 4) for name in ("query", "key", "value")}
    with pytest.raises(ValueError, match=message):
        attention.prefill_attention(**(arguments | change))
