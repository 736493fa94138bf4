"""The next tokens: guidance, heads, temperature, top-k and a draw, all on the device.

Guidance (Ho and Salimans 2022, arXiv 2207.12598) is applied to the decoder's last states: the heads
are linear, so it is the same as on their scores, at half the work. A token is drawn by the
Gumbel-max trick: of all scores, each with Gumbel noise added, the largest is a token's with the
probability of that token. The noise is a function of seed, step, codebook and token alone, so a
clip's music does not depend on its batch, and nothing is kept from step to step.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.kernels.runtime import use_triton

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF

Number: TypeAlias = int | float | Tensor
"""The same for all clips, or ``(clips,)``."""


def sample(
    hidden: Tensor,
    heads: Tensor,
    guidance: Number | None,
    temperature: Number,
    top_k: Number,
    seeds: Tensor,
    step: Number,
) -> tuple[Tensor, Tensor]:
    """Draw a token of every codebook from the decoder's last states, without waiting for the GPU.

    Where all that is given is a tensor on the GPU, the call can be captured in a CUDA graph, and
    replays with what those tensors then hold.

    Args:
        hidden: ``(2 * clips, width)``, with the prompts first, then without, or ``(clips, width)``.
        heads: ``(codebooks, vocabulary, width)`` contiguous, of the dtype of ``hidden``.
        guidance: weight of the prompt against no prompt; None or 1 where ``hidden`` has no second
            half.
        temperature: above 0, divides the scores.
        top_k: only tokens with a score at least the k-th largest, 0 for all. 1 is greedy: the
            likeliest, the first of equal ones.
        seeds: ``(clips,)`` int64.
        step: the position, of all clips or of each, 0 to 2^32 - 1.

    Returns:
        Tokens ``(clips, codebooks)`` int64, and bool ``(clips, codebooks)``: whether all of the
        scores they were drawn from were finite. Where they were not, the token is of no use.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    clips = len(seeds)
    if not isinstance(guidance, Tensor) and guidance == 1 and len(hidden) == clips:
        guidance = None
    halves = 1 if guidance is None else 2
    if hidden.shape != (halves * clips, heads.shape[-1]):
        raise ValueError(
            f"hidden {tuple(hidden.shape)} must be {(halves * clips, heads.shape[-1])} for {clips} "
            f"seeds {'without' if guidance is None else 'with'} guidance, and these heads"
        )
    if use_triton(hidden, heads, seeds):
        from musictune.kernels import sampling_triton

        scale = None if guidance is None else _each(guidance, seeds, torch.float32)
        scores = sampling_triton.scores(hidden, heads, scale)
    else:
        if guidance is not None:
            scale = _each(guidance, seeds, torch.float32)
            prompted, null = hidden.float().chunk(2)
            hidden = (prompted + (scale[:, None] - 1) * (prompted - null)).to(hidden.dtype)
        scores = F.linear(hidden, heads.flatten(0, 1)).float()
    return sample_scores(scores.view(clips, *heads.shape[:2]), temperature, top_k, seeds, step)


def sample_scores(
    scores: Tensor, temperature: Number, top_k: Number, seeds: Tensor, step: Number
) -> tuple[Tensor, Tensor]:
    """The part of :func:`sample` behind the heads.

    Args:
        scores: ``(clips, codebooks, vocabulary)`` fp32, contiguous, already guided.
        temperature, top_k, seeds, step: as there.

    Returns:
        As there.
    """
    warmth = _each(temperature, seeds, torch.float32)
    kept = _each(top_k, seeds, torch.int64)
    steps = _each(step, seeds, torch.int64)
    if use_triton(scores, seeds):
        from musictune.kernels import sampling_triton

        return sampling_triton.sample_scores(scores, warmth, kept, seeds, steps)
    finite = scores.isfinite().all(-1)
    scores = scores.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    allowed = scores >= _threshold(scores, kept)
    noise = gumbel(random_bits(seeds, steps, *scores.shape[1:]))
    noise = torch.where((kept == 1)[:, None, None], 0.0, noise)
    luck = (scores / warmth[:, None, None] + noise).masked_fill_(~allowed, -torch.inf)
    return luck.argmax(-1), finite


def random_bits(seeds: Tensor, step: Number, codebooks: int, vocabulary: int) -> Tensor:
    """32 random bits for each token: Philox4x32-10 (Salmon et al. 2011, SC'11).

    The key is the seed. Token ``v`` of codebook ``c`` has word ``v % 4`` of what comes out for the
    counter ``(v // 4, c, step, 0)``.

    Args:
        seeds: ``(clips,)`` int64.
        step: of all clips, or of each.

    Returns:
        ``(clips, codebooks, vocabulary)`` int64, each 0 to 2^32 - 1.
    """
    steps = _each(step, seeds, torch.int64)
    if use_triton(seeds):
        from musictune.kernels import sampling_triton

        return sampling_triton.random_bits(seeds, steps, codebooks, vocabulary)
    quads = torch.arange((vocabulary + 3) // 4, device=seeds.device)
    books = torch.arange(codebooks, device=seeds.device)[:, None]
    shape = (len(seeds), codebooks, len(quads))
    counter = [
        word.expand(shape)
        for word in (quads, books, steps[:, None, None] & _WORD, torch.zeros_like(quads))
    ]
    keys = seeds[:, None, None] & _WORD, (seeds[:, None, None] >> 32) & _WORD
    return torch.stack(philox(counter, keys), -1).flatten(-2)[..., :vocabulary]


def philox(counter: list[Tensor], key: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Philox4x32-10: four words of counter and two of key to four random words.

    All are int64 tensors that hold words of 32 bits and can be broadcast together.
    """
    for turn in range(ROUNDS):
        # A product is right modulo 2^64, and so are both of its halves.
        first, second = counter[0] * MULTIPLIERS[0], counter[2] * MULTIPLIERS[1]
        left, right = ((key[i] + turn * KEY_STEPS[i]) & _WORD for i in range(2))
        counter = [
            ((second >> 32) & _WORD) ^ counter[1] ^ left,
            second & _WORD,
            ((first >> 32) & _WORD) ^ counter[3] ^ right,
            first & _WORD,
        ]
    return counter


def gumbel(bits: Tensor) -> Tensor:
    """Standard Gumbel noise, fp32, from 32 random bits: ``-log(-log(1 - u))``.

    Most draws are decided where ``u`` is small, so there the inner logarithm is a series, which
    keeps all digits. ``u`` is below 1, so the noise is finite.
    """
    u = (bits.float() * 2.0**-32 + 2.0**-33).clamp_max_(1 - 2.0**-24)
    series = u * (1 + u * (1 / 2 + u * (1 / 3 + u / 4)))
    return -torch.where(u < 2.0**-6, series, -(1 - u).log()).log()


def _threshold(scores: Tensor, kept: Tensor) -> Tensor:
    """The k-th largest score of each row, ``(clips, codebooks, 1)``."""
    size = scores.shape[-1]
    places = torch.where(kept < 1, size, kept).clamp_max(size) - 1
    # On a GPU the largest k is not asked for, since that would stall it.
    depth = size if scores.is_cuda else int(places.max()) + 1
    ranked = scores.topk(depth).values
    return ranked.gather(-1, places[:, None, None].expand(*ranked.shape[:2], 1))


def _each(number: Number, seeds: Tensor, dtype: torch.dtype) -> Tensor:
    """``number`` as ``(clips,)``."""
    if isinstance(number, Tensor):
        return number.to(seeds.device, dtype).expand(len(seeds))
    return torch.full((len(seeds),), number, dtype=dtype, device=seeds.device)
