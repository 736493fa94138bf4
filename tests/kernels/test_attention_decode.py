"""Attention of one new position against float64, in plain torch, in the interpreter, on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from musictune import kernels
from musictune.kernels import attention, runtime

TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 3e-2}

# rows, heads, head size, capacity, longest, positions: one place, odd head sizes, rows that hold
# nothing, places on both sides of a tile and of a share, several tiles in a share
CASES = [
    (1, 1, 8, 1, None, [0]),
    (2, 3, 20, 45, 33, [0, 32]),
    (3, 2, 16, 70, None, [-1, 15, 16]),
    (5, 1, 24, 300, 290, [127, 128, 289, 3, 64]),
    (2, 1, 72, 300, None, [299, 95]),
    (18, 1, 8, 9, None, [i % 9 for i in range(18)]),
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


class Layer:
    """Random weights and caches of one case."""

    def __init__(self, case: tuple, dtype: torch.dtype, bias: bool = False) -> None:
        self.rows, self.heads, self.size, self.capacity, self.longest, places = case
        width = self.heads * self.size
        # A mean far from zero: the moments of the layer norm must not cancel.
        self.x = (torch.randn(self.rows, width) + 5).to(dtype)
        self.norm = [torch.randn(width).to(dtype), torch.randn(width).to(dtype)]
        self.weight = (torch.randn(3 * width, width) * width**-0.5).to(dtype)
        self.bias = torch.randn(3 * width).to(dtype) if bias else None
        shape = (self.rows, self.heads, self.capacity, self.size)
        self.keys, self.values = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
        self.positions = torch.tensor(places)

    def expected(self) -> tuple[Tensor, Tensor, Tensor]:
        """Output and caches, in float64."""
        wide = [None if t is None else t.double() for t in (*self.norm, self.weight, self.bias)]
        y = F.linear(F.layer_norm(self.x.double(), self.x.shape[1:], *wide[:2]), *wide[2:])
        query, key, value = y.view(self.rows, 3, self.heads, self.size).unbind(1)
        keys, values = self.keys.double(), self.values.double()
        for row, place in enumerate(self.positions.tolist()):
            if place >= 0:
                keys[row, :, place], values[row, :, place] = key[row], value[row]
        return exact(query, keys, values, self.positions).flatten(1), keys, values


def exact(query: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    out = torch.zeros_like(query, dtype=torch.float64)
    for row, place in enumerate(positions.tolist()):
        k, v = keys[row, :, : place + 1].double(), values[row, :, : place + 1].double()
        score = torch.einsum("hd,hnd->hn", query[row].double(), k) * query.shape[-1] ** -0.5
        out[row] = torch.einsum("hn,hnd->hd", score.softmax(-1), v)
    return out


def close(ours: Tensor, reference: Tensor, dtype: torch.dtype) -> bool:
    scale = reference.abs().max().clamp(min=1)
    off = (ours.double().cpu() - reference).abs().max()
    return bool(off <= TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_fused_step_is_norm_projection_append_and_softmax(
    device: str, dtype: torch.dtype, case: tuple
) -> None:
    layer = Layer(case, dtype, bias=case[0] % 2 == 0)
    expected, keys, values = layer.expected()
    held = [t.to(device, copy=True) for t in (layer.keys, layer.values)]
    ours = attention.decode_attention(
        layer.x.to(device),
        *(t.to(device) for t in layer.norm),
        layer.weight.to(device),
        None if layer.bias is None else layer.bias.to(device),
        *held,
        layer.positions.to(device),
        layer.heads,
        longest=layer.longest,
    )
    assert ours.dtype == dtype
    assert ours.shape == layer.x.shape
    assert close(ours, expected, dtype)
    new = torch.zeros(layer.rows, layer.capacity, dtype=torch.bool)
    for row, place in enumerate(case[-1]):
        new[row, place] = place >= 0
    for mine, before, reference in zip(
        held, (layer.keys, layer.values), (keys, values), strict=True
    ):
        assert close(mine, reference, dtype)
        old = ~new[:, None, :, None].expand_as(before)
        assert torch.equal(mine.cpu()[old], before[old])


def test_step_by_step_is_causal_attention(device: str) -> None:
    rows, heads, size, steps = 2, 2, 8, 5
    layer = Layer((rows, heads, size, 16, None, [0, 0]), torch.float32)
    x = torch.randn(rows, steps, heads * size)
    keys, values = layer.keys.to(device), layer.values.to(device)
    ours = [
        attention.decode_attention(
            x[:, i].to(device),
            *(t.to(device) for t in layer.norm),
            layer.weight.to(device),
            None,
            keys,
            values,
            torch.full((rows,), i, device=device, dtype=torch.int32),
            heads,
            longest=8,
        ).cpu()
        for i in range(steps)
    ]
    qkv = F.linear(F.layer_norm(x, x.shape[2:], *layer.norm), layer.weight)
    split = qkv.view(rows, steps, 3, heads, size).permute(2, 0, 3, 1, 4)
    whole = F.scaled_dot_product_attention(*split, is_causal=True).transpose(1, 2).flatten(2)
    assert torch.allclose(torch.stack(ours, 1), whole, atol=3e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_query_attends_to_texts_of_several_lengths(device: str, dtype: torch.dtype) -> None:
    lengths = torch.tensor([0, 1, 17, 19])
    query = torch.randn(4, 2, 12).to(dtype)
    # Keys as a projection lays them out: heads inside places.
    keys, values = (torch.randn(4, 19, 2, 12).to(dtype).transpose(1, 2) for _ in range(2))
    before = keys.clone(), values.clone()
    ours = attention.attend(*(t.to(device) for t in (query, keys, values, lengths - 1)))
    assert close(ours, exact(query, keys, values, lengths - 1), dtype)
    assert not ours[0].any()
    assert torch.equal(keys, before[0])
    assert torch.equal(values, before[1])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float16])
def test_an_int8_cache_is_read_and_written_as_its_codes_say(
    device: str, dtype: torch.dtype, scale_dtype: torch.dtype
) -> None:
    rows, heads, size, capacity, longest, places = 3, 2, 20, 200, 190, [-1, 130, 189]
    positions = torch.tensor(places)
    states = [torch.randn(rows, heads, capacity, size) for _ in range(2)]
    (keys, key_scales), (values, value_scales) = (
        attention.quantize(state, scale_dtype) for state in states
    )
    query, *new = (torch.randn(rows, heads, size).to(dtype) for _ in range(3))
    codes, scales = zip(*(attention.quantize(state, scale_dtype) for state in new), strict=True)
    wide = [
        keys.double() * key_scales.double()[..., None],
        values.double() * value_scales.double()[..., None],
    ]
    for row, place in enumerate(places):
        for whole, code, scale in zip(wide, codes, scales, strict=True):
            if place >= 0:
                whole[row, :, place] = code[row].double() * scale[row].double()[..., None]
    held = [t.to(device) for t in (keys, values, key_scales, value_scales)]
    ours = attention.attend(
        query.to(device),
        held[0],
        held[1],
        positions.to(device),
        longest=longest,
        key_scales=held[2],
        value_scales=held[3],
        new=(new[0].to(device), new[1].to(device)),
    )
    assert close(ours, exact(query, *wide, positions), dtype)
    for row, place in enumerate(places):
        if place >= 0:
            assert torch.equal(held[0][row, :, place].cpu(), codes[0][row])
            assert torch.equal(held[1][row, :, place].cpu(), codes[1][row])
            assert torch.equal(held[2][row, :, place].cpu(), scales[0][row])
            assert torch.equal(held[3][row, :, place].cpu(), scales[1][row])


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_eight_bits_stay_within_the_stated_bound(data: st.DataObject) -> None:
    size, places = data.draw(st.integers(1, 16)), data.draw(st.integers(1, 20))
    loud = data.draw(st.sampled_from([1e-3, 1.0, 30.0]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
    query, keys, values = (
        torch.randn(*shape, generator=generator) * loud
        for shape in ((1, 1, size), (1, 1, places, size), (1, 1, places, size))
    )
    last = torch.tensor([places - 1])
    (key_codes, key_scales), (value_codes, value_scales) = map(attention.quantize, (keys, values))
    for states, codes, scales in (
        (keys, key_codes, key_scales),
        (values, value_codes, value_scales),
    ):
        error = (states - codes * scales[..., None]).abs()
        assert (error <= scales[..., None] / 2 * (1 + 1e-4)).all()
    ours = attention.attend(
        query,
        key_codes,
        value_codes,
        last,
        key_scales=key_scales,
        value_scales=value_scales,
    )
    difference = (ours.double() - exact(query, keys, values, last)).abs().amax()
    moved = key_scales.max().double() / 2 * query.double().abs().sum() * size**-0.5
    spread = (values.amax(2) - values.amin(2)).max()
    bound = (moved / 2).tanh() * spread + value_scales.max() / 2
    assert difference <= bound * (1 + 1e-4) + 1e-5 * loud


@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 64))
@settings(max_examples=25, deadline=None)
def test_the_norm_and_product_are_those_of_torch(width: int, rows: int, outs: int) -> None:
    x, weight, bias = torch.randn(rows, width), torch.randn(outs, width), torch.randn(outs)
    norm = torch.randn(width), torch.randn(width)
    ours = attention.norm_linear(x, *norm, weight, bias, 1e-3)
    wide = F.layer_norm(x.double(), (width,), *(t.double() for t in norm), 1e-3)
    assert torch.allclose(ours.double(), F.linear(wide, weight.double(), bias.double()), atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 37, 21), (17, 33, 50), (70, 130, 40)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_norm_and_product_at_odd_shapes(
    device: str, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    rows, width, outs = shape
    x, weight = (torch.randn(rows, width) + 3).to(dtype), torch.randn(outs, width).to(dtype)
    norm = [torch.randn(width).to(dtype) for _ in range(2)]
    ours = attention.norm_linear(*(t.to(device) for t in (x, *norm, weight)))
    wide = F.layer_norm(x.double(), (width,), *(t.double() for t in norm))
    assert ours.dtype == dtype
    assert close(ours, F.linear(wide, weight.double()), dtype)


def test_what_is_not_a_number_comes_out_again(device: str) -> None:
    query, keys, values = torch.randn(1, 1, 8), torch.randn(1, 1, 80, 8), torch.randn(1, 1, 80, 8)
    values[0, 0, 3, 2] = torch.nan
    out = attention.attend(*(t.to(device) for t in (query, keys, values, torch.tensor([79]))))
    assert out.isnan().cpu()[0, 0].tolist() == [i == 2 for i in range(8)]
    keys[0, 0, 70] = torch.nan
    out = attention.attend(*(t.to(device) for t in (query, keys, values, torch.tensor([79]))))
    assert out.isnan().all()


def test_a_row_beyond_the_longest_is_not_written(device: str) -> None:
    if device == "cpu" and not kernels.use_triton(torch.zeros(1)):
        pytest.skip("the plain way refuses it")
    query, keys, values = torch.randn(2, 1, 8), *torch.randn(2, 2, 1, 40, 8)
    held = [t.to(device, copy=True) for t in (keys, values)]
    new = torch.randn(2, 1, 8, device=device)
    positions = torch.tensor([32, 31], device=device)
    attention.attend(query.to(device), *held, positions, longest=32, new=(new, new))
    for after, before in zip(held, (keys, values), strict=True):
        assert torch.equal(after[0].cpu(), before[0])
        assert torch.equal(after[1, :, 31], new[1])


def test_what_lies_past_the_end_of_a_row_is_not_looked_at(device: str) -> None:
    query, keys, values = torch.randn(3, 2, 16), *torch.randn(2, 3, 2, 90, 16)
    positions = torch.tensor([70, -1, 5])
    expected = exact(query, keys, values, positions)
    for row, place in enumerate(positions.tolist()):
        keys[row, :, place + 1 :], values[row, :, place + 1 :] = torch.nan, torch.inf
    ours = attention.attend(*(t.to(device) for t in (query, keys, values, positions)))
    assert close(ours, expected, torch.float32)
    # What torch does where rows cannot be asked for their ends.
    seen = (torch.arange(90) <= positions[:, None])[:, None, None]
    masked = attention._two_products(query, (keys, values, None, None), 0.25, 90, seen)
    assert close(masked, expected, torch.float32)


def test_rows_do_not_depend_on_their_neighbours(device: str) -> None:
    query, keys, values = torch.randn(4, 2, 16), *torch.randn(2, 4, 2, 90, 16)
    positions = torch.tensor([89, 0, 40, 63])
    tensors = [t.to(device) for t in (query, keys, values, positions)]
    together = attention.attend(*tensors)
    for row in range(4):
        alone = attention.attend(*(t[row : row + 1] for t in tensors))
        assert torch.allclose(alone[0], together[row], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.zeros(2, 2, 5, 8)}, "must both be"),
        ({"keys": torch.zeros(2, 2, 8, 4).transpose(2, 3)}, "side by side"),
        ({"positions": torch.zeros(3, dtype=torch.int64)}, "2 int32 or int64"),
        ({"positions": torch.zeros(2)}, "2 int32 or int64"),
        ({"positions": torch.tensor([0, 4])}, "position 4 is beyond the 4 places"),
        ({"longest": 0}, "longest 0"),
        ({"longest": 2}, "position 3 is beyond the 2 places"),
        ({"key_scales": torch.zeros(2, 2, 4)}, "int8 cache needs"),
        ({"keys": torch.zeros(2, 2, 4, 8, dtype=torch.int8)}, "int8 cache needs"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    arguments = {
        "query": torch.zeros(2, 2, 8),
        "keys": torch.zeros(2, 2, 4, 8),
        "values": torch.zeros(2, 2, 4, 8),
        "positions": torch.tensor([0, 3]),
    }
    with pytest.raises(ValueError, match=message):
        attention.attend(**(arguments | change))


@pytest.mark.parametrize(("heads", "outs"), [(3, 24), (2, 16)])
def test_a_projection_that_does_not_fit_is_refused(heads: int, outs: int) -> None:
    cache = torch.zeros(1, heads, 4, 4)
    with pytest.raises(ValueError, match="do not fit a width of 8"):
        attention.decode_attention(
            torch.zeros(1, 8), torch.ones(8), torch.zeros(8), torch.zeros(outs, 8), None,
            cache, cache.clone(), torch.tensor([0]), heads,
        )  # fmt: skip


@given(st.integers(1, 600), st.integers(1, 8192), st.sampled_from([16, 32, 64]))
def test_shares_cover_the_cache_once(pairs: int, longest: int, block: int) -> None:
    triton = pytest.importorskip("musictune.kernels.attention_decode_triton")
    splits, chunk = triton.shares(pairs, longest, block, 132)
    assert (splits - 1) * chunk < longest <= splits * chunk
    assert chunk % block == 0
    assert splits == 1 or splits * pairs <= 4 * 132


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("eight_bit", [False, True])
def test_a_cuda_graph_plays_each_position_like_a_direct_call(eight_bit: bool) -> None:
    layer = Layer((2, 16, 64, 1536, None, [0, 0]), torch.bfloat16)
    x, weight, positions = (t.cuda() for t in (layer.x, layer.weight, layer.positions))
    norm = [t.cuda() for t in layer.norm]
    caches = [t.cuda() for t in (layer.keys, layer.values)]
    scales: list[Tensor | None] = [None, None]
    if eight_bit:
        (caches[0], scales[0]), (caches[1], scales[1]) = map(attention.quantize, caches)

    def step() -> Tensor:
        return attention.decode_attention(
            x, *norm, weight, None, *caches, positions, 16, longest=512,
            key_scales=scales[0], value_scales=scales[1],
        )  # fmt: skip

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for place in (0, 1, 63, 64, 300, 511):
        positions.fill_(place)
        x.copy_(torch.randn_like(x))
        graph.replay()
        played = out.clone()
        assert torch.equal(played, step())
