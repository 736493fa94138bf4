"""The fused loss against dense float64: in plain torch, in Triton's interpreter and on a GPU."""

from __future__ import annotations

import contextlib
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

from musictune import kernels
from musictune.bench.memory import LiveBytes
from musictune.kernels import codebook_loss as module
from musictune.kernels import runtime
from musictune.kernels.codebook_loss import codebook_loss

# clips, codebooks, steps, width, vocabulary
SHAPES = [(1, 1, 1, 1, 1), (2, 4, 7, 5, 13), (3, 2, 11, 24, 70), (2, 8, 5, 16, 64)]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


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


@pytest.fixture(params=[1, 2**19])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows one after another, or all of them in one tile."""
    monkeypatch.setattr(module, "_TILE", {"cpu": request.param, "cuda": request.param})


def delayed(clips: int, codebooks: int, steps: int) -> Tensor:
    """The mask of MusicGen's delays, each clip somewhat shorter than the one before."""
    frames = max(1, steps - codebooks + 1)
    lengths = (frames - torch.arange(clips)).clamp_min(1)
    frame = torch.arange(steps) - torch.arange(codebooks)[:, None].clamp_max(steps - frames)
    return (frame >= 0) & (frame < lengths[:, None, None])


def some(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> list[Tensor]:
    clips, codebooks, steps, width, vocabulary = shape
    hidden = torch.randn(clips, steps, width).to(dtype)
    heads = (torch.randn(codebooks, vocabulary, width) / width**0.5).to(dtype)
    mask = delayed(clips, codebooks, steps)
    targets = torch.randint(vocabulary, mask.shape).masked_fill(~mask, vocabulary)
    return [hidden, heads, targets, mask]


def dense(hidden: Tensor, heads: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    logits = torch.einsum("ctw,kvw->cktv", hidden, heads)
    each = F.cross_entropy(
        logits.flatten(0, 2), targets.masked_fill(~mask, 0).flatten(), reduction="none"
    ).view_as(targets)
    return torch.where(mask, each, 0).sum((1, 2)) / mask.sum((1, 2))


def close(ours: Tensor, exact: Tensor, tolerance: float) -> bool:
    scale = exact.abs().max().clamp(min=1e-3)
    return bool((ours.double().cpu() - exact).abs().max() <= tolerance * scale)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", ["equal", "of any sign"])
def test_values_and_every_gradient(
    device: str,
    tile: None,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int, int],
    weights: str,
) -> None:
    hidden, heads, targets, mask = some(shape, dtype)
    upstream = torch.full((shape[0],), 0.5) if weights == "equal" else torch.randn(shape[0])
    leaves = [hidden.to(device).requires_grad_(), heads.to(device).requires_grad_()]
    loss = codebook_loss(*leaves, targets.to(device), mask.to(device))
    ours = torch.autograd.grad(loss, leaves, upstream.to(device))

    exact = [a.double().requires_grad_() for a in (hidden, heads)]
    expected = dense(*exact, targets, mask)
    theirs = torch.autograd.grad(expected, exact, upstream.double())
    assert loss.dtype == torch.float32
    for mine, leaf in zip(ours, leaves, strict=True):
        assert mine.dtype == leaf.dtype and mine.shape == leaf.shape
    # Not of the largest score: what rounding does to a sum of losses follows the losses.
    assert close(loss.detach(), expected.detach(), TOLERANCE[dtype])
    for mine, reference in zip(ours, theirs, strict=True):
        assert close(mine, reference, 4 * TOLERANCE[dtype])


def test_the_derivative_is_that_of_the_value() -> None:
    hidden, heads, targets, mask = some((2, 3, 5, 4, 6), torch.float64)
    inputs = (hidden.requires_grad_(), *(head.clone().requires_grad_() for head in heads))
    assert torch.autograd.gradcheck(
        lambda hidden, *heads: codebook_loss(hidden, heads, targets, mask), inputs
    )


@pytest.mark.parametrize("upstream", [[1.0, 1.0], [1.0, -2.0]])
def test_a_graph_that_is_kept_gives_the_same_again(device: str, upstream: list[float]) -> None:
    hidden, heads, targets, mask = (a.to(device) for a in some(SHAPES[1], torch.float32))
    leaves = [hidden.requires_grad_(), heads.requires_grad_()]
    loss = codebook_loss(*leaves, targets, mask)
    weights = torch.tensor(upstream, device=device)
    first = torch.autograd.grad(loss, leaves, weights, retain_graph=True)
    again = torch.autograd.grad(loss, leaves, weights)
    for a, b in zip(first, again, strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_heads_without_gradients_get_none_and_the_states_the_same(device: str) -> None:
    hidden, heads, targets, mask = (a.to(device) for a in some(SHAPES[2], torch.float32))
    whole = hidden.clone().requires_grad_()
    codebook_loss(whole, heads.clone().requires_grad_(), targets, mask).sum().backward()
    first, second = heads.clone().requires_grad_(), heads[1].clone()
    hidden.requires_grad_()
    codebook_loss(hidden, [first[0], second], targets, mask).sum().backward()
    assert second.grad is None
    assert first.grad is not None and first.grad[0].abs().sum() > 0
    assert not first.grad[1].any()
    assert whole.grad is not None and hidden.grad is not None
    assert torch.allclose(hidden.grad, whole.grad, atol=1e-7)
    states = hidden.detach()
    codebook_loss(states, [first[0], second], targets, mask).sum().backward()
    assert states.grad is None


def test_without_gradients_the_value_is_the_same(device: str) -> None:
    hidden, heads, targets, mask = (a.to(device) for a in some(SHAPES[1], torch.float32))
    learning = codebook_loss(hidden.requires_grad_(), heads, targets, mask)
    with torch.no_grad():
        resting = codebook_loss(hidden, heads, targets, mask)
    assert learning.requires_grad and not resting.requires_grad
    assert torch.equal(learning.detach(), resting)


@pytest.mark.parametrize("learned", [False, True])
def test_products_follow_autocast_and_softmax_does_not(device: str, learned: bool) -> None:
    hidden, heads, targets, mask = (a.to(device) for a in some(SHAPES[2], torch.float32))
    leaves = [hidden.requires_grad_(), heads.requires_grad_(learned)][: 1 + learned]
    with torch.autocast(device, torch.bfloat16):
        loss = codebook_loss(hidden, heads, targets, mask)
    found = torch.autograd.grad(loss.mean(), leaves)
    full = codebook_loss(hidden, heads, targets, mask)
    expected = torch.autograd.grad(full.mean(), leaves)
    assert loss.dtype == torch.float32
    assert not torch.equal(loss, full) and torch.allclose(loss, full, rtol=2e-2)
    for mine, reference in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert close(mine, reference.double().cpu(), 5e-2)


def test_what_is_masked_never_counts(device: str) -> None:
    hidden, heads, targets, mask = (a.to(device) for a in some((2, 2, 6, 8, 9), torch.float32))
    mask[1, :, 2:] = False
    hidden.requires_grad_()
    loss = codebook_loss(hidden, heads, targets, mask)
    (gradient,) = torch.autograd.grad(loss.sum(), hidden)
    assert not gradient[1, 2:].any() and gradient[1, :2].any()
    spoiled = hidden.detach().clone()
    spoiled[1, 2:] = torch.inf
    spoiled.requires_grad_()
    again = codebook_loss(spoiled, heads, targets.where(mask, -7), mask)
    assert torch.equal(again.detach(), loss.detach())
    assert torch.equal(torch.autograd.grad(again.sum(), spoiled)[0], gradient)


def test_scores_that_overflow_a_plain_exponential_do_not(device: str) -> None:
    hidden = torch.tensor([[[1000.0, -1000.0]]], device=device)
    heads = torch.eye(2, device=device)[None]
    mask = torch.ones(1, 1, 1, dtype=torch.bool, device=device)
    losses = [
        codebook_loss(hidden, heads, torch.tensor([[[i]]], device=device), mask).item()
        for i in range(2)
    ]
    assert losses == [0.0, 2000.0]


def test_a_clip_without_targets_or_with_broken_states_has_no_number(device: str) -> None:
    hidden, heads, targets, mask = (a.to(device) for a in some((3, 2, 4, 8, 9), torch.float32))
    mask[0] = False
    hidden[1, 1, 0] = torch.nan
    loss = codebook_loss(hidden, heads, targets, mask)
    assert loss.isnan().tolist() == [True, True, False]


def test_a_target_outside_the_vocabulary_is_no_silent_zero(device: str) -> None:
    hidden, heads, targets, mask = (a.to(device) for a in some((2, 2, 4, 8, 9), torch.float32))
    targets[1, 0, 0] = 9
    mask[1, 0, 0] = True
    if runtime.use_triton(hidden):
        assert codebook_loss(hidden, heads, targets, mask).isnan().tolist() == [False, True]
    else:
        with pytest.raises(RuntimeError, match="out of bounds"):
            codebook_loss(hidden, heads, targets, mask)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda h, w, t, m: (h, w, t[:, :1], m), r"targets \(2, 1, 7\)"),
        (lambda h, w, t, m: (h, w, t, m[..., :3]), r"mask \(2, 4, 3\)"),
        (lambda h, w, t, m: (h, w[..., :3], t, m), r"width 5"),
        (lambda h, w, t, m: (h, [*w[:3], w[3, :2]], t, m), r"heads \[\(2, 5\), \(13, 5\)\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        codebook_loss(*spoil(*some(SHAPES[1], torch.float32)))


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_a_clip_does_not_depend_on_its_neighbours(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, top)) for top in (4, 4, 12, 9, 30))
    hidden, heads, targets, mask = some(shape, torch.float32)  # type: ignore[arg-type]
    together = codebook_loss(hidden, heads, targets, mask)
    for i in range(len(hidden)):
        alone = codebook_loss(hidden[i : i + 1], heads, targets[i : i + 1], mask[i : i + 1])
        assert torch.allclose(together[i], alone[0], atol=1e-5)


def test_scores_are_never_held_whole() -> None:
    hidden, heads, targets, mask = some((2, 4, 259, 48, 2048), torch.float32)
    scores = 4 * mask.numel() * 2048
    hidden.requires_grad_()
    with LiveBytes() as live:
        codebook_loss(hidden, heads, targets, mask).mean().backward()
    assert live.peak < 0.35 * scores


PROGRAM = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from musictune.kernels import codebook_loss_triton as kernel

kinds = dict(scores="*" + sys.argv[1], labels="*i64", valid="*i1", losses="*fp32", vocabulary="i32")
for learns in (False, True):
    constants = dict(LEARNS=learns, BLOCK=2048)
    names = kernel._tile.arg_names
    source = ASTSource(
        fn=kernel._tile,
        signature={name: kinds.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    options = {"num_warps": kernel._warps(2048)}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    print(len(made.asm["cubin"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
def test_the_kernel_compiles_for_sm_90(kind: str, tmp_path: Path) -> None:
    if not runtime.has_triton():
        pytest.skip("triton is not installed; pip install 'musictune[kernels]'")
    # Another process: in this one Triton may have been told to interpret.
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    own = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind], env=os.environ | own, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(int(size) > 0 for size in done.stdout.split())
