"""Changes added to products, against dense matrices in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from musictune.generation import deltas as module
from musictune.generation.deltas import Columns, Elements, LowRank, Part, Rows, deltas, together
from musictune.methods.sparse import Chosen
from musictune.methods.sparse_change import SparseChange

CPU = torch.device("cpu")
KINDS = ["elements", "rows", "columns", "factors"]


def drawn(
    kind: str, shape: tuple[int, int], generator: torch.Generator, rank: int = 3
) -> tuple[SparseChange | tuple[Tensor, Tensor], Tensor]:
    """A change and the dense matrix that it is, float64."""
    out, width = shape
    dense = torch.zeros(shape)
    if kind == "factors":
        a = torch.randn(rank, width, generator=generator)
        b = torch.randn(out, rank, generator=generator)
        return (a, b), b.double() @ a.double()
    total = {"elements": out * width, "rows": out, "columns": width}[kind]
    count = int(torch.randint(1, total + 1, (1,), generator=generator))
    indices = torch.randperm(total, generator=generator)[:count].sort().values
    size = {"elements": (count,), "rows": (count, width), "columns": (out, count)}[kind]
    values = torch.randn(size, generator=generator)
    if kind == "elements":
        dense.view(-1)[indices] = values
    elif kind == "rows":
        dense[indices] = values
    else:
        dense[:, indices] = values
    return SparseChange(shape, Chosen(kind, indices), values), dense.double()  # type: ignore[arg-type]


@contextmanager
def smallness(limit: int) -> Iterator[None]:
    before, module._SMALL = module._SMALL, limit
    try:
        yield
    finally:
        module._SMALL = before


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([*KINDS, None]), min_size=1, max_size=3).filter(any),
    st.integers(1, 19),
    st.integers(1, 23),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([0, 2**18]),
    st.integers(0, 2**31),
)
def test_a_product_gets_what_its_layers_change(
    kinds: list[str | None], out: int, width: int, clips: int, rows: int, small: int, seed: int
) -> None:
    """Any mixture of kinds in one product, layers without a change among them."""
    generator = torch.Generator().manual_seed(seed)
    parts, whole = [], torch.zeros(len(kinds) * out, width, dtype=torch.float64)
    for index, kind in enumerate(kinds):
        if kind is not None:
            change, dense = drawn(kind, (out, width), generator)
            scale = 0.5 + index
            parts.append(Part(index * out, (out, width), change, scale))
            whole[index * out : (index + 1) * out] = scale * dense
    x = torch.randn(clips, rows, width, generator=generator)
    made = torch.randn(clips, rows, len(whole), generator=generator)
    expected = made.double() + x.double() @ whole.t()
    with smallness(small):
        for delta in deltas(parts[::-1], len(whole), CPU):
            delta.add(x, made)
    assert torch.allclose(made.double(), expected, atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["elements", "factors"]),
    st.integers(1, 40),
    st.integers(1, 60),
    st.integers(1, 9),
    st.integers(2, 5),
    st.integers(1, 2),
    st.integers(0, 2**31),
)
def test_together_gives_each_clip_the_same_bits(
    kind: str, out: int, width: int, rank: int, clips: int, rows: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    each = []
    for _ in range(clips):
        change, _ = drawn(kind, (out, width), generator, rank)
        each += deltas([Part(0, (out, width), change)], out, CPU)
    one = together(each)
    assert one is not None
    x = torch.randn(clips, rows, width, generator=generator)
    made = torch.randn(clips, rows, out, generator=generator)
    alone = made.clone()
    one.add(x, made)
    for index, delta in enumerate(each):
        delta.add(x[index : index + 1], alone[index : index + 1])
    assert torch.equal(made, alone)


def test_only_what_fits_goes_together() -> None:
    generator = torch.Generator().manual_seed(0)

    def single(kind: str, rank: int = 2) -> module.Delta:
        change, _ = drawn(kind, (8, 8), generator, rank)
        (delta,) = deltas([Part(0, (8, 8), change)], 8, CPU)
        return delta

    assert together([single("factors", 2), single("factors", 3)]) is None
    assert together([single("factors"), single("elements")]) is None
    pair = [single("elements"), single("columns")]
    assert isinstance(together(pair), Elements)
    with smallness(0):
        assert together(pair) is None
        assert [type(single(kind)) for kind in KINDS] == [Elements, Rows, Columns, LowRank]


@pytest.mark.gpu
@pytest.mark.parametrize("small", [0, 2**18])
def test_on_a_gpu_as_on_a_cpu(small: int) -> None:
    generator = torch.Generator().manual_seed(0)
    cuda = torch.device("cuda")
    x = torch.randn(3, 2, 33, generator=generator)
    with smallness(small):
        for kind in KINDS:
            change, dense = drawn(kind, (17, 33), generator)
            made = torch.zeros(3, 2, 17, device=cuda)
            for delta in deltas([Part(0, (17, 33), change)], 17, cuda):
                delta.add(x.to(cuda), made)
            assert torch.allclose(made.cpu().double(), x.double() @ dense.t(), atol=1e-3)
