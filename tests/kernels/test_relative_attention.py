"""Attention with relative terms against float64, in plain torch, in the interpreter, on a GPU."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from musictune import kernels
from musictune.errors import InputError
from musictune.kernels import relative_attention_torch, runtime
from musictune.kernels.relative_attention import relative_attention, t5_buckets

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
MAX_DISTANCE = 11

# queries, keys, distances of the table, buckets, causal, window: distances within and far beyond
# tiles, a table longer than the music, a cache, one query, tiles that a window leaves out
CASES = [
    (37, 37, 6, 0, True, None),
    (20, 53, 60, 0, True, None),
    (20, 53, 1, 6, True, 30),
    (33, 33, 0, 8, False, None),
    (17, 40, 0, 8, False, 9),
    (1, 18, 4, 5, True, None),
    (3, 3, 0, 0, True, 1),
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


class Inputs:
    """Random tensors of a case; ``embeddings`` and ``bias`` in float32, as a method trains them."""

    def __init__(self, case: tuple, dtype: torch.dtype, batch: int = 1, heads: int = 2) -> None:
        queries, keys, distances, buckets, self.causal, self.window = case
        size = 5
        self.query = torch.randn(batch, heads, queries, size).to(dtype)
        self.key = torch.randn(batch, heads, keys, size).to(dtype)
        self.value = torch.randn(batch, heads, keys, size).to(dtype)
        self.embeddings = torch.randn(heads, distances, size) if distances else None
        self.bias = torch.randn(heads, buckets) if buckets else None
        self.gradient = torch.randn(batch, heads, queries, size).to(dtype)

    def leaves(self, device: str, dtype: torch.dtype | None = None) -> list[Tensor | None]:
        tensors = (self.query, self.key, self.value, self.embeddings, self.bias)
        return [
            None if t is None else t.to(device, dtype or t.dtype, copy=True).requires_grad_()
            for t in tensors
        ]

    def ours(self, device: str) -> list[Tensor]:
        """The output and every gradient."""
        leaves = self.leaves(device)
        query, key, value, embeddings, bias = leaves
        output = relative_attention(
            query,
            key,
            value,
            embeddings=embeddings,
            bias=bias,
            causal=self.causal,
            window=self.window,
            max_distance=MAX_DISTANCE,
        )
        assert output.dtype == self.query.dtype
        return _with_gradients(output, leaves, self.gradient.to(device))

    def expected(self) -> list[Tensor]:
        """The same, from a bias of queries times keys in float64."""
        leaves = self.leaves("cpu", torch.float64)
        query, key, value, embeddings, bias = leaves
        assert query is not None and key is not None and value is not None
        length, scale = key.shape[2], query.shape[-1] ** -0.5
        apart = torch.arange(length)[-query.shape[2] :, None] - torch.arange(length)
        scores = query @ key.transpose(2, 3) * scale
        if embeddings is not None:
            rows = embeddings[:, apart.clamp(0, embeddings.shape[1] - 1)]
            scores = scores + torch.einsum("bhid,hijd->bhij", query, rows) * scale
        if bias is not None:
            scores = scores + bias[:, t5_buckets(apart, bias.shape[1], MAX_DISTANCE, self.causal)]
        heard = (apart >= 0) | (not self.causal)
        if self.window is not None:
            heard &= apart.abs() < self.window
        output = scores.masked_fill(~heard, -math.inf).softmax(-1) @ value
        return _with_gradients(output, leaves, self.gradient.double())


def _with_gradients(output: Tensor, leaves: list[Tensor | None], gradient: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(output, [leaf for leaf in leaves if leaf is not None], gradient)
    return [output.detach(), *found]


def error(ours: list[Tensor], exact: list[Tensor]) -> float:
    """The largest difference, in shares of the largest value of its tensor where over 1."""
    return max(
        ((mine.double().cpu() - right).abs().max() / right.abs().max().clamp(min=1)).item()
        for mine, right in zip(ours, exact, strict=True)
    )


@pytest.mark.parametrize("case", CASES)
def test_output_and_every_gradient(device: str, case: tuple) -> None:
    inputs = Inputs(case, torch.float32)
    assert error(inputs.ours(device), inputs.expected()) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_full(device: str, dtype: torch.dtype) -> None:
    inputs = Inputs((20, 37, 7, 8, True, None), dtype, batch=2)
    ours = inputs.ours(device)
    assert [t.dtype for t in ours] == [dtype] * 4 + [torch.float32] * 2
    assert error(ours, inputs.expected()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("causal", [True, False])
def test_zero_tables_are_plain_attention(device: str, causal: bool) -> None:
    inputs = Inputs((23, 23, 4 if causal else 0, 8, causal, None), torch.float32)
    for table in (inputs.embeddings, inputs.bias):
        if table is not None:
            table.zero_()
    ours = inputs.ours(device)
    leaves = [leaf for leaf in inputs.leaves("cpu")[:3] if leaf is not None]
    plain = F.scaled_dot_product_attention(*leaves, is_causal=causal)
    expected = _with_gradients(plain, [*leaves], inputs.gradient)
    assert error(ours[:4], [t.double() for t in expected]) <= 2e-6
    assert all(bool(table.any()) for table in ours[4:])  # and they can be trained at once


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_blocks_of_any_number_of_rows_agree_with_float64(data: st.DataObject) -> None:
    keys = data.draw(st.integers(1, 30), "keys")
    queries = data.draw(st.integers(1, keys), "queries")
    causal = data.draw(st.booleans(), "causal")
    distances = data.draw(st.integers(0, 34), "distances") if causal else 0
    buckets = data.draw(st.sampled_from([0, 4, 6, 8]), "buckets")
    window = data.draw(st.none() | st.integers(1, 33), "window")
    rows = data.draw(st.integers(1, 9), "rows")
    inputs = Inputs((queries, keys, distances, buckets, causal, window), torch.float64, 2, 3)
    if inputs.embeddings is not None:
        inputs.embeddings = inputs.embeddings.double()
    if inputs.bias is not None:
        inputs.bias = inputs.bias.double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relative_attention_torch, "_BLOCK_ELEMENTS", 0)
        patch.setattr(relative_attention_torch, "_LEAST_ROWS", rows)
        assert error(inputs.ours("cpu"), inputs.expected()) <= 1e-12


@settings(max_examples=30, deadline=None)
@given(st.integers(-(2**20), 2**20), st.integers(2, 40))
def test_a_shift_of_all_biases_changes_nothing(shift: int, count: int) -> None:
    """A softmax does not hear what is added to every score, nor does its gradient."""
    query, key, value = torch.randn(3, 1, 2, count, 4, dtype=torch.float64)
    bias = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    one, other = (
        relative_attention(query, key, value, bias=bias + more) for more in (0, shift / 2**10)
    )
    assert torch.allclose(one, other, atol=1e-9)
    (gradient,) = torch.autograd.grad(one.square().sum(), bias)
    assert torch.allclose(gradient.sum(1), torch.zeros(2, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (8, 20), (6, 500)])
def test_buckets_are_those_of_transformers(causal: bool, buckets: int, farthest: int) -> None:
    apart = torch.arange(-700, 701)
    theirs = T5Attention._relative_position_bucket(-apart, not causal, buckets, farthest)
    assert torch.equal(t5_buckets(apart, buckets, farthest, causal), theirs)


def test_extra_memory_grows_with_the_length_alone() -> None:
    from musictune.bench.memory import LiveBytes

    def peak(length: int) -> int:
        leaves = Inputs((length, length, length, 8, True, None), torch.float32, 1, 2)
        with LiveBytes() as live:
            leaves.ours("cpu")
        return live.peak

    short, long = peak(512), peak(2048)
    assert long < 5 * short
    one_bias = 2 * 2048 * 2048 * 4
    assert long < one_bias / 2


def test_autocast_keeps_the_sums_in_full_precision() -> None:
    inputs = Inputs((9, 9, 4, 8, True, None), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = inputs.ours("cpu")
    assert error(ours, inputs.expected()) <= TOLERANCE[torch.float32]


def test_deterministic_algorithms_are_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("musictune.kernels.relative_attention")
    monkeypatch.setattr(module, "use_triton", lambda *_: True)
    torch.use_deterministic_algorithms(True)
    try:
        assert module._way(torch.zeros(1)) is relative_attention_torch
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query": torch.zeros(1, 2, 4, 3)}, "differ in batch, heads or size"),
        ({"query": torch.zeros(1, 2, 9, 5)}, "9 queries with 8 keys"),
        ({"query": torch.zeros(2, 4, 5)}, "must each be"),
        ({"value": torch.zeros(1, 2, 7, 5)}, "must each be"),
        ({"window": 0}, "window 0 must be at least 1"),
        ({"embeddings": torch.zeros(2, 0, 5)}, "at least 1 distance"),
        ({"embeddings": torch.zeros(3, 4, 5)}, "embeddings of shape"),
        ({"embeddings": torch.zeros(2, 5)}, "embeddings of shape"),
        ({"embeddings": torch.zeros(2, 4, 5), "causal": False}, "need causal attention"),
        ({"bias": torch.zeros(3, 8)}, "bias of shape"),
        ({"bias": torch.zeros(8)}, "bias of shape"),
        ({"bias": torch.zeros(2, 1)}, "1 buckets cannot be used"),
        ({"bias": torch.zeros(2, 7), "causal": False}, "7 buckets cannot be used"),
        ({"bias": torch.zeros(2, 8), "max_distance": 4}, "max_distance 4 must be more than 4"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "query": torch.zeros(1, 2, 4, 5),
        "key": torch.zeros(1, 2, 8, 5),
        "value": torch.zeros(1, 2, 8, 5),
    }
    with pytest.raises(InputError, match=message) as caught:
        relative_attention(**(arguments | changed))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


PROGRAM = """
import sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from musictune.kernels import relative_attention_backward_triton as back
from musictune.kernels import relative_attention_triton as front
from musictune.kernels.relative_attention import Shape

dtype = getattr(torch, sys.argv[1])
data = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}[sys.argv[1]]
tensors = "query key value table output gradient dquery dkey dvalue".split()
kinds = dict.fromkeys(tensors, data) | {"scale": "fp32", "dtable": "*fp32"}
kinds |= dict.fromkeys(("line", "dline", "total", "dot"), "*fp32")
query = torch.empty(1, 16, 1503, 64, dtype=dtype, device="meta")
table, line = torch.empty(16, 1503, 64, device="meta"), torch.empty(16, 257, device="meta")
for terms, shape in (
    ((table, None), Shape(True, 0, 1.0, 0)),
    ((None, line), Shape(False, 300, 1.0, 128)),
    ((table, line), Shape(True, 300, 1.0, 0)),
):
    options = front._options(query, *terms, shape)
    for kernel in (front._forward, back.backward_queries, back.backward_keys):
        constants = {n: v for n, v in options.items() if n.isupper()}
        signature = {
            n: "constexpr" if n in constants else kinds.get(n, "i32") for n in kernel.arg_names
        }
        places = {(kernel.arg_names.index(n),): v for n, v in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places)
        built = {n: v for n, v in options.items() if not n.isupper()}
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=built)
        assert made.asm["cubin"], kernel.__name__
        assert made.metadata.shared <= 232448, (kernel.__name__, made.metadata.shared)
        print(kernel.__name__, made.metadata.shared, "wgmma" in made.asm["ptx"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_kernel_compiles_for_sm_90(dtype: str, tmp_path: Path) -> None:
    if not runtime.has_triton():
        pytest.skip("triton is not installed; pip install 'musictune[kernels]'")
    # Another process: in this one Triton may have been told to interpret.
    own = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, dtype],
        env=os.environ | own | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 9
    # Half precision is for the tensor cores; full precision stays exact.
    assert {line[2] for line in lines} == {str(dtype != "float32")}
