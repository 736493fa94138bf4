"""Clips one after the other and at once, with captions that say so.

The idea of two stages is TeminAL's (arXiv 2408.09269): first whether one thing sounds or several,
then in which order. Its wordings and its loss are not public; those here are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError

THEN = (
    "{a} followed by {b}",
    "{a}, then {b}",
    "{a} before {b}",
    "{b} after {a}",
)
"""That ``a`` comes first: what is trained on. In the last the words stand the other way round, so
that reading the order of two captions is not enough."""

THEN_UNSEEN = (
    "first {a}, and later {b}",
    "it begins with {a} and ends with {b}",
    "{b} preceded by {a}",
)
"""The same in wordings that training never uses."""

TOGETHER = ("{a} while {b} plays", "{a} together with {b}", "{a} at the same time as {b}")
"""That both sound at once."""

BOTH = ("{a} and {b}", "both {a} and {b}", "{a}, and also {b}")
"""That there are two, in any order."""

ONE = ("{a}", "only {a}", "{a} and nothing else")
"""That there is one."""

_FADE = 0.02  # seconds, so that the place where two clips meet is no click
_NEPER = math.log(10) / 10
_DRAWS = 50  # for each pair that is wanted, until there seem to be no more


def said(wording: str, a: str, b: str = "") -> str:
    """A wording with the captions in their places."""
    return wording.replace("{a}", a).replace("{b}", b)


def longest_wording() -> str:
    """The wording that adds most to two captions."""
    return max((*THEN, *THEN_UNSEEN, *TOGETHER, *BOTH), key=len)


def draw_pairs(meanings: Sequence[str], count: int, seed: int) -> list[tuple[int, int]]:
    """At most ``count`` different pairs of clips that differ in what is said of them.

    Args:
        meanings: of each clip.
        count: of pairs; fewer where there are no more.
        seed: of the draw.

    Raises:
        InputError: all clips are said to be the same.
    """
    if len(set(meanings)) < 2:
        raise InputError("clips that are all called the same have no order to speak of")
    rng = np.random.default_rng([seed, 23])
    found: dict[tuple[int, int], None] = {}
    for _ in range(_DRAWS * max(count, 1)):
        if len(found) >= count:
            break
        one, other = sorted(int(i) for i in rng.integers(len(meanings), size=2))
        if meanings[one] != meanings[other]:
            found[one, other] = None
    return list(found)


def joined(first: Clip, second: Clip, seconds: float) -> Clip:
    """Half of ``seconds`` of the first, then half of the second, mono at the first's rate.

    A clip that is shorter than its half is repeated.
    """
    size = round(seconds / 2 * first.sample_rate)
    parts = [_faded(_filled(clip, first.sample_rate, size), first.sample_rate)
             for clip in (first, second)]  # fmt: skip
    return Clip(torch.cat(parts)[None], first.sample_rate)


def overlaid(first: Clip, second: Clip, seconds: float) -> Clip:
    """Both at once for ``seconds``, each at half its amplitude, mono at the first's rate."""
    size = round(seconds * first.sample_rate)
    one, other = (_filled(clip, first.sample_rate, size) for clip in (first, second))
    return Clip((0.5 * (one + other))[None], first.sample_rate)


def joined_mels(first: Tensor, second: Tensor, starts: tuple[int, int]) -> Tensor:
    """As `joined`, of log-mels ``(frames, bands)`` in decibels, from given frames on.

    It is what the joined audio sounds like but for the one or two frames at the seam.
    """
    half = len(first) // 2
    parts = (first[starts[0] :][:half], second[starts[1] :][: len(first) - half])
    return torch.cat(parts)


def overlaid_mels(first: Tensor, second: Tensor) -> Tensor:
    """As `overlaid`, of log-mels in decibels: powers add, as those of unrelated waves do."""
    quieter = 20 * math.log10(2)
    return torch.logaddexp(first * _NEPER, second * _NEPER) / _NEPER - quieter


def _filled(clip: Clip, rate: int, size: int) -> Tensor:
    wave = clip.mono().resample(rate).wave[0]
    if not len(wave):
        raise InputError(f"clip {clip.source or 'given'} is empty; leave it out")
    return wave.repeat(-(-size // len(wave)))[:size]


def _faded(wave: Tensor, rate: int) -> Tensor:
    size = min(round(_FADE * rate), len(wave) // 2)
    if size < 1:
        return wave
    ramp = torch.linspace(0, 1, size)
    return torch.cat(
        [wave[:size] * ramp, wave[size : len(wave) - size], wave[-size:] * ramp.flip(0)]
    )
