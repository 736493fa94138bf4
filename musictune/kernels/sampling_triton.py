# mypy: disable-error-code="no-untyped-def"
"""The Triton side of :mod:`musictune.kernels.sampling`; imported only where it runs.

Two launches: the heads' weights are read by the whole GPU, while top-k needs all scores of a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from musictune.kernels.runtime import interpreted
from musictune.kernels.sampling import KEY_STEPS, MULTIPLIERS, ROUNDS

_MULTIPLIER_0, _MULTIPLIER_1 = (tl.constexpr(number) for number in MULTIPLIERS)
_KEY_STEP_0, _KEY_STEP_1 = (tl.constexpr(number) for number in KEY_STEPS)
_ROUNDS = tl.constexpr(ROUNDS)


def scores(hidden: Tensor, heads: Tensor, guidance: Tensor | None) -> Tensor:
    """Guided scores ``(clips, codebooks * vocabulary)`` fp32."""
    codebooks, vocabulary, width = heads.shape
    rows, outs = len(hidden), codebooks * vocabulary
    clips = rows if guidance is None else rows // 2
    result = torch.empty(clips, outs, dtype=torch.float32, device=hidden.device)
    block_m, block_o, block_k = product_blocks(clips, width, hidden.element_size())
    _scores[(triton.cdiv(outs, block_o), triton.cdiv(clips, block_m))](
        hidden.contiguous(),
        heads.contiguous(),
        hidden if guidance is None else guidance.contiguous(),
        result,
        clips,
        outs,
        width,
        GUIDED=guidance is not None,
        BLOCK_M=block_m,
        BLOCK_O=block_o,
        BLOCK_K=block_k,
        FULL=interpreted(),
        num_warps=4,
        num_stages=3,
    )
    return result


def sample_scores(
    scores: Tensor, temperature: Tensor, top_k: Tensor, seeds: Tensor, steps: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens and whether the scores were finite, each ``(clips, codebooks)``."""
    clips, codebooks, vocabulary = scores.shape
    tokens = torch.empty(clips, codebooks, dtype=torch.int64, device=scores.device)
    finite = torch.empty(clips, codebooks, dtype=torch.bool, device=scores.device)
    block = max(16, triton.next_power_of_2(vocabulary))
    _sample_scores[(clips, codebooks)](
        scores.contiguous(),
        temperature.contiguous(),
        top_k.contiguous(),
        seeds.contiguous(),
        steps.contiguous(),
        tokens,
        finite,
        vocabulary,
        BLOCK=block,
        num_warps=draw_warps(block),
    )
    return tokens, finite


def random_bits(seeds: Tensor, steps: Tensor, codebooks: int, vocabulary: int) -> Tensor:
    """What :func:`_sample_scores` draws from, ``(clips, codebooks, vocabulary)`` int64."""
    result = torch.empty(len(seeds), codebooks, vocabulary, dtype=torch.int64, device=seeds.device)
    _store_bits[(len(seeds), codebooks)](
        seeds.contiguous(),
        steps.contiguous(),
        result,
        vocabulary,
        BLOCK=max(16, triton.next_power_of_2(vocabulary)),
    )
    return result


def product_blocks(clips: int, width: int, size: int) -> tuple[int, int, int]:
    """Tile of the heads' product: clips, scores, and the width taken at a time.

    Few scores to a program, so that all of a GPU reads the weights; ``size`` is bytes of a number.
    """
    block_m = max(16, min(32, triton.next_power_of_2(clips)))
    block_k = max(16, min(256 // size, triton.next_power_of_2(width)))
    return block_m, 32 if clips <= 16 else 64, block_k


def draw_warps(block: int) -> int:
    """So that a thread has eight tokens: two quads of random words."""
    return max(1, min(16, block // 256))


@triton.jit
def _scores(
    hidden,
    heads,
    guidance,
    result,
    clips,
    outs,
    width,
    GUIDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FULL: tl.constexpr,
):
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    total = tl.zeros((BLOCK_M, BLOCK_O), dtype=tl.float32)
    if GUIDED:
        pull = tl.load(guidance + m, mask=m < clips, other=1.0)[:, None] - 1.0
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        there = (m[:, None] < clips) & (k[None, :] < width)
        place = hidden + m[:, None] * width + k[None, :]
        left = tl.load(place, mask=there, other=0.0)
        right = tl.load(
            heads + o[None, :].to(tl.int64) * width + k[:, None],
            mask=(o[None, :] < outs) & (k[:, None] < width),
            other=0.0,
        )
        if GUIDED:
            prompted = left.to(tl.float32)
            null = tl.load(place + clips * width, mask=there, other=0.0).to(tl.float32)
            left = (prompted + pull * (prompted - null)).to(left.dtype)
        if FULL:  # the interpreter's products of bf16 are wrong without an error
            left, right = left.to(tl.float32), right.to(tl.float32)
        total += tl.dot(left, right, input_precision="ieee")
    tl.store(
        result + m[:, None].to(tl.int64) * outs + o[None, :],
        total,
        mask=(m[:, None] < clips) & (o[None, :] < outs),
    )


@triton.jit
def _sample_scores(
    scores,
    temperature,
    top_k,
    seeds,
    steps,
    tokens,
    finite,
    vocabulary,
    BLOCK: tl.constexpr,
):
    clip, codebook = tl.program_id(0), tl.program_id(1)
    row = clip.to(tl.int64) * tl.num_programs(1) + codebook
    token = tl.arange(0, BLOCK)
    there = token < vocabulary
    score = tl.load(scores + row * vocabulary + token, mask=there, other=0.0)
    broken = (score != score) | (tl.abs(score) == float("inf"))
    tl.store(finite + row, tl.max(broken.to(tl.int32), 0) == 0)
    # Zero is one number here, and what is not a number comes last.
    score = tl.where(score == 0.0, 0.0, score)
    score = tl.where(there & (score == score), score, -float("inf"))

    # The bits of a float, turned so that as integers they order as the floats do.
    bits = score.to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, ~bits, bits ^ -0x80000000).to(tl.uint32, bitcast=True)
    order = tl.where(there, order, 0)
    kept = tl.load(top_k + clip)
    kept = tl.where((kept < 1) | (kept > vocabulary), vocabulary, kept).to(tl.int32)
    # The k-th largest, bit by bit: the largest number that k of the tokens reach.
    least = tl.zeros((1,), dtype=tl.uint32)
    for i in range(32):
        bit = tl.full((1,), 1, dtype=tl.uint32) << (31 - i)
        reached = tl.sum((order >= (least | bit)).to(tl.int32), 0)
        least = tl.where(reached >= kept, least | bit, least)

    noise = _gumbel(_token_bits(tl.load(seeds + clip), tl.load(steps + clip), codebook, BLOCK))
    luck = score / tl.load(temperature + clip) + tl.where(kept == 1, 0.0, noise)
    luck = tl.where(there & (order >= least), luck, -float("inf"))
    best = tl.argmax(luck, 0, tie_break_left=True)
    tl.store(tokens + row, tl.minimum(best, vocabulary - 1).to(tl.int64))


@triton.jit
def _store_bits(seeds, steps, result, vocabulary, BLOCK: tl.constexpr):
    clip, codebook = tl.program_id(0), tl.program_id(1)
    row = clip.to(tl.int64) * tl.num_programs(1) + codebook
    token = tl.arange(0, BLOCK)
    bits = _token_bits(tl.load(seeds + clip), tl.load(steps + clip), codebook, BLOCK)
    tl.store(result + row * vocabulary + token, bits.to(tl.int64), mask=token < vocabulary)


@triton.jit
def _token_bits(seed, step, codebook, BLOCK: tl.constexpr):
    quad = tl.arange(0, BLOCK // 4).to(tl.uint32)
    key_0, key_1 = (seed & 0xFFFFFFFF).to(tl.uint32), ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c0 = quad
    c1 = tl.zeros_like(quad) + codebook.to(tl.uint32)
    c2 = tl.zeros_like(quad) + (step & 0xFFFFFFFF).to(tl.uint32)
    c3 = tl.zeros_like(quad)
    a = tl.full((1,), _MULTIPLIER_0, dtype=tl.uint32)
    b = tl.full((1,), _MULTIPLIER_1, dtype=tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        first, second = tl.umulhi(c0, a), tl.umulhi(c2, b)
        c0, c1, c2, c3 = second ^ c1 ^ key_0, c2 * b, first ^ c3 ^ key_1, c0 * a
        key_0 += tl.full((), _KEY_STEP_0, dtype=tl.uint32)
        key_1 += tl.full((), _KEY_STEP_1, dtype=tl.uint32)
    return tl.interleave(tl.interleave(c0, c2), tl.interleave(c1, c3))


@triton.jit
def _gumbel(bits):
    # As in the twin: the inner logarithm is a series where u is small.
    u = bits.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    u = tl.minimum(u, 0.99999994039535522)
    series = u * (1.0 + u * (0.5 + u * (0.3333333333333333 + u * 0.25)))
    return -tl.log(tl.where(u < 0.015625, series, -tl.log(1.0 - u)))
