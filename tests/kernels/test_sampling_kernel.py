"""Drawing tokens on the device: in plain torch, in Triton's interpreter and on a GPU."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from musictune import kernels
from musictune.kernels import runtime
from musictune.kernels.sampling import gumbel, philox, random_bits, sample, sample_scores

SEEDS = [0, 1, -3, 2**62 + 17]
BITS = 2**32


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


def chi_square(counts: Tensor, shares: Tensor) -> float:
    """The probability of counts at least as far from ``shares`` as these."""
    expected = shares.double() / shares.double().sum() * counts.sum()
    seen = expected > 0
    assert not counts[~seen].any()
    return float(chisquare(counts[seen].double(), expected[seen]).pvalue)


# --- the random numbers ---


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([BITS - 1] * 4, [BITS - 1] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_its_published_answers(
    counter: list[int], key: list[int], expected: str
) -> None:
    words = philox(
        [torch.tensor(word) for word in counter], (torch.tensor(key[0]), torch.tensor(key[1]))
    )
    assert " ".join(f"{int(word):08x}" for word in words) == expected


@pytest.mark.parametrize(("codebooks", "vocabulary"), [(1, 1), (2, 19)])
def test_bits_follow_seed_step_codebook_and_token_alone(
    device: str, codebooks: int, vocabulary: int
) -> None:
    seeds, steps = (
        torch.tensor(SEEDS, device=device),
        torch.tensor([0, 1, 7, BITS - 1], device=device),
    )
    bits = random_bits(seeds, steps, codebooks, vocabulary).cpu()
    assert bits.shape == (4, codebooks, vocabulary) and bits.dtype == torch.int64
    for clip, (seed, step) in enumerate(zip(SEEDS, steps.tolist(), strict=True)):
        for codebook in range(codebooks):
            for token in range(vocabulary):
                counter = [torch.tensor(word) for word in (token // 4, codebook, step, 0)]
                key = torch.tensor(seed % BITS), torch.tensor((seed >> 32) % BITS)
                assert bits[clip, codebook, token] == philox(counter, key)[token % 4]


def test_a_step_of_all_clips_is_that_of_each(device: str) -> None:
    seeds = torch.tensor(SEEDS, device=device)
    each = torch.tensor([5] * 4, device=device)
    assert torch.equal(random_bits(seeds, 5, 2, 9), random_bits(seeds, each, 2, 9))
    assert torch.equal(random_bits(seeds, 5, 2, 9), random_bits(seeds, each[0], 2, 9))


def test_bits_are_uniform_and_unrelated_from_clip_to_clip_and_step_to_step() -> None:
    bits = torch.stack([random_bits(torch.arange(8), step, 4, 512) for step in range(8)])
    for shift in (0, 8, 16, 24):
        counts = torch.bincount(((bits >> shift) & 255).flatten(), minlength=256)
        assert chi_square(counts, torch.ones(256)) > 1e-3
    assert len(bits.unique()) > 0.9999 * bits.numel()
    for one, other in (
        (bits[1:], bits[:-1]),
        (bits[:, 1:], bits[:, :-1]),
        (bits[:, :, 1:], bits[:, :, :-1]),
    ):
        pairs = torch.bincount(((one >> 28) * 16 + (other >> 28)).flatten(), minlength=256)
        assert chi_square(pairs, torch.ones(256)) > 1e-3


def test_noise_is_gumbel_and_exact_where_draws_are_decided() -> None:
    bits = torch.tensor([0, 1, 1000, 2**25, 2**26 - 1, 2**26, 2**31, BITS - 1])
    noise = gumbel(bits)
    assert noise.dtype == torch.float32 and noise.isfinite().all()
    assert noise.tolist() == sorted(noise.tolist(), reverse=True)
    exact = -(-torch.log1p(-(bits.double() + 0.5) / BITS)).log()
    assert torch.allclose(noise[:-1].double(), exact[:-1], atol=1e-6)
    sorted_noise = gumbel(random_bits(torch.arange(4), 0, 4, 2048).flatten()).double().sort().values
    share = torch.arange(1, len(sorted_noise) + 1) / len(sorted_noise)
    furthest = ((-(-sorted_noise).exp()).exp() - share).abs().max()
    assert furthest < 1.95 / math.sqrt(len(share))  # Kolmogorov and Smirnov's at 0.001


# --- the draw ---


def test_draws_have_the_probabilities_of_the_allowed_tokens() -> None:
    count = 40_000
    scores = torch.tensor(
        [[2.0, -1.0, 0.5, 1.9, -6.0, 0.0, 0.4], [0.0, 3.0, 3.0, 1.0, -2.0, 2.5, 0.1]]
    )
    for top_k, temperature in ((0, 1.0), (3, 1.0), (5, 0.6), (6, 2.5), (100, 1.0)):
        tokens, finite = sample_scores(
            scores.expand(count, 2, 7), temperature, top_k, torch.arange(count), step=11
        )
        assert finite.all()
        for codebook in range(2):
            row = scores[codebook]
            least = row.sort(descending=True).values[min(top_k or 7, 7) - 1]
            shares = (row / temperature).masked_fill(row < least, -torch.inf).softmax(0)
            counts = torch.bincount(tokens[:, codebook], minlength=7)
            assert chi_square(counts, shares) > 1e-3
    both = tokens[:, 0] * 7 + tokens[:, 1]
    joint = torch.outer(scores[0].softmax(0), scores[1].softmax(0)).flatten()
    assert chi_square(torch.bincount(both, minlength=49), joint) > 1e-3


@pytest.mark.gpu
def test_draws_on_a_gpu_have_those_probabilities_too() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    scores = torch.randn(4, 2048, device="cuda")
    seeds = torch.arange(50_000, device="cuda")
    tokens, _ = sample_scores(scores.expand(len(seeds), 4, 2048).contiguous(), 1.0, 20, seeds, 3)
    for codebook in range(4):
        row = scores[codebook].cpu()
        shares = row.masked_fill(row < row.topk(20).values[-1], -torch.inf).softmax(0)
        counts = torch.bincount(tokens[:, codebook].cpu(), minlength=2048)
        assert chi_square(counts, shares) > 1e-3


@pytest.mark.parametrize("top_k", [0, 1, 7, [1, 3, 0, 400]])
@pytest.mark.parametrize("vocabulary", [1, 50])
def test_the_kernel_draws_what_plain_torch_draws(
    device: str, top_k: int | list[int], vocabulary: int
) -> None:
    seeds, steps = torch.tensor(SEEDS), torch.tensor([0, 1, 500, 1502])
    scores = (torch.randn(4, 2, vocabulary) * 3).round(decimals=1)  # some are equal
    warmth = torch.tensor([1.0, 0.5, 2.0, 1.3])
    kept = torch.tensor(top_k)
    there = [a.to(device) for a in (scores, warmth, kept, seeds, steps)]
    tokens, finite = sample_scores(*there)
    noise = gumbel(random_bits(seeds, steps, 2, vocabulary).cpu())
    for clip in range(4):
        k = int(kept.expand(4)[clip])
        for codebook in range(2):
            row = scores[clip, codebook]
            least = row.sort(descending=True).values[min(k or vocabulary, vocabulary) - 1]
            luck = row / warmth[clip] + (0 if k == 1 else noise[clip, codebook])
            luck = luck.masked_fill(row < least, -torch.inf)
            assert tokens[clip, codebook] == luck.argmax()
    assert finite.all() and finite.shape == tokens.shape


@given(
    scores=st.lists(
        st.one_of(st.floats(-80, 80, width=32), st.sampled_from([0.0, -0.0, 1.0, -1e-30])),
        min_size=1,
        max_size=9,
    ),
    top_k=st.integers(0, 12),
    seed=st.integers(-(2**63), 2**63 - 1),
    step=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_a_drawn_token_is_among_the_k_best(
    scores: list[float], top_k: int, seed: int, step: int
) -> None:
    tokens, finite = sample_scores(torch.tensor([[scores]]), 1.0, top_k, torch.tensor([seed]), step)
    token = int(tokens)
    assert finite.all()
    assert sum(score > scores[token] for score in scores) < (top_k or len(scores))
    if top_k == 1:
        assert token == scores.index(max(scores))


def test_scores_that_are_not_finite_are_reported_and_draw_no_token_outside(device: str) -> None:
    scores = torch.zeros(4, 3, 11)
    scores[0, 1, 3], scores[1], scores[2, 0, 10] = torch.nan, -torch.inf, torch.inf
    tokens, finite = sample_scores(scores.to(device), 1.0, 4, torch.arange(4, device=device), 0)
    assert finite.tolist() == [[True, False, True], [False] * 3, [False, True, True], [True] * 3]
    assert tokens.min() >= 0 and tokens.max() < 11
    assert tokens[2, 0] == 10


# --- guidance and heads ---


# clips, codebooks, vocabulary, width
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("guided", "shape"),
    [
        (True, (1, 1, 3, 5)),
        (True, (2, 2, 37, 140)),
        (True, (17, 1, 20, 8)),
        (False, (3, 1, 40, 24)),
    ],
)
def test_the_likeliest_token_is_that_of_guided_scores(
    device: str, dtype: torch.dtype, guided: bool, shape: tuple[int, int, int, int]
) -> None:
    clips, codebooks, vocabulary, width = shape
    hidden = torch.randn((1 + guided) * clips, width).to(dtype)
    heads = torch.randn(codebooks, vocabulary, width).to(dtype)
    guidance = torch.linspace(1, 4, clips)
    tokens, finite = sample(
        hidden.to(device),
        heads.to(device),
        guidance.to(device) if guided else None,
        1.0,
        1,
        torch.arange(clips, device=device),
        0,
    )
    scores = torch.einsum("cw,kvw->ckv", hidden.double(), heads.double())
    if guided:
        prompted, null = torch.einsum("cw,kvw->ckv", hidden.double(), heads.double()).chunk(2)
        scores = null + (prompted - null) * guidance.double()[:, None, None]
    # Rounding may choose another where two are as good as equal.
    lost = scores.amax(-1) - scores.gather(-1, tokens.cpu()[..., None])[..., 0]
    tolerance = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    assert (lost <= tolerance * scores.abs().amax()).all()
    assert finite.all() and tokens.dtype == torch.int64


def test_a_clip_does_not_depend_on_its_batch(device: str) -> None:
    hidden, heads = torch.randn(8, 20, device=device), torch.randn(2, 50, 20, device=device)
    seeds, steps = torch.tensor(SEEDS, device=device), torch.tensor([4, 0, 9, 4], device=device)
    guidance, warmth = torch.tensor([[1.0, 3, 2, 5], [1, 0.7, 2, 1]], device=device)
    top_k = torch.tensor([0, 20, 1, 5], device=device)
    together, _ = sample(hidden, heads, guidance, warmth, top_k, seeds, steps)
    for i in range(4):
        alone, _ = sample(
            hidden[[i, 4 + i]],
            heads,
            float(guidance[i]),
            float(warmth[i]),
            int(top_k[i]),
            seeds[i : i + 1],
            int(steps[i]),
        )
        assert torch.equal(alone[0], together[i])
    moved, _ = sample(hidden, heads, guidance, warmth, top_k, seeds, steps + 1)
    assert not torch.equal(moved, together)
    assert torch.equal(moved[2], together[2])  # greedy


def test_guidance_one_is_no_guidance_to_the_bit(device: str) -> None:
    hidden, heads = torch.randn(6, 20, device=device), torch.randn(2, 50, 20, device=device)
    seeds = torch.arange(3, device=device)
    guided = sample(hidden, heads, 1.0, 1.0, 0, seeds, 0)
    plain = sample(hidden[:3], heads, None, 1.0, 0, seeds, 0)
    assert torch.equal(guided[0], plain[0])
    half = sample(hidden[:3], heads, 1, 1.0, 0, seeds, 0)
    assert torch.equal(half[0], plain[0])


def test_broken_states_are_reported(device: str) -> None:
    hidden, heads = torch.randn(4, 20, device=device), torch.randn(2, 50, 20, device=device)
    hidden[3, 2] = torch.nan  # the second clip without its prompt
    tokens, finite = sample(hidden, heads, 3.0, 1.0, 10, torch.arange(2, device=device), 0)
    assert finite.tolist() == [[True, True], [False, False]]
    assert tokens.max() < 50


@pytest.mark.parametrize(("rows", "guidance"), [(2, 3.0), (4, None), (3, 3.0), (3, 1.0)])
def test_halves_that_do_not_fit_are_refused(rows: int, guidance: float | None) -> None:
    with pytest.raises(ValueError, match=r"for 2 seeds with(out)? guidance"):
        sample(torch.randn(rows, 8), torch.randn(2, 5, 8), guidance, 1.0, 0, torch.arange(2), 0)
    with pytest.raises(ValueError, match=r"hidden \(2, 9\) must be \(2, 8\)"):
        sample(torch.randn(2, 9), torch.randn(2, 5, 8), None, 1.0, 0, torch.arange(2), 0)


@pytest.mark.gpu
def test_a_graph_replays_with_what_its_tensors_hold() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    hidden = torch.randn(4, 64, device="cuda")
    heads = torch.randn(4, 2048, 64, device="cuda")
    seeds, step = torch.arange(2, device="cuda"), torch.zeros(2, dtype=torch.int64, device="cuda")
    guidance, warmth = torch.full((2, 2), 1.5, device="cuda")
    top_k = torch.full((2,), 250, device="cuda")
    given = (hidden, heads, guidance, warmth, top_k, seeds, step)
    sample(*given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens, finite = sample(*given)
    for turn in range(3):
        hidden.normal_()
        step += turn
        graph.replay()
        expected, _ = sample(*given)
        assert torch.equal(tokens, expected) and finite.all()


PROGRAM = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from musictune.kernels import sampling_triton as module

kind, bytes_each = "*" + sys.argv[1], 4 if sys.argv[1] == "fp32" else 2
kinds = dict(hidden=kind, heads=kind, guidance="*fp32", result="*fp32", scores="*fp32")
kinds |= dict(temperature="*fp32", top_k="*i64", seeds="*i64", steps="*i64", tokens="*i64")
kinds |= dict(finite="*i1")

def build(kernel, constants, **changed):
    names = kernel.arg_names
    signature = {
        name: "constexpr" if name in constants else (kinds | changed).get(name, "i32")
        for name in names
    }
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    warps = module.draw_warps(constants.get("BLOCK", 1024))
    made = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": 3}
    )
    assert made.metadata.shared <= 232448
    print(kernel.__name__, len(made.asm["cubin"]))

for clips in (1, 64):
    m, o, k = module.product_blocks(clips, 1024, bytes_each)
    for guided in (False, True):
        build(module._scores, dict(GUIDED=guided, BLOCK_M=m, BLOCK_O=o, BLOCK_K=k, FULL=False))
build(module._sample_scores, dict(BLOCK=2048))
build(module._store_bits, dict(BLOCK=2048), result="*i64")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
def test_every_kernel_compiles_for_sm_90(kind: str, tmp_path: Path) -> None:
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
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 6 and all(int(size) > 0 for _, size in lines)
