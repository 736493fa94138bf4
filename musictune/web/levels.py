"""Two clips as loud as each other, so that nobody votes for the louder one.

Loudness is that of ITU-R BS.1770; see :func:`musictune.audio.loudness`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from musictune.audio import Clip, loudness

TARGET = -23.0
"""LUFS, of EBU R 128; less where a clip of the pair would clip."""

_PEAK = 0.98
_MOST_DB = 60.0


def matched(clips: Sequence[Clip]) -> list[Clip]:
    """The clips at one sample rate, the highest, and at one loudness.

    That is -23 LUFS, or as much as the one with the highest peaks allows. Silent clips stay as they
    are. One rate for both, because the rate alone would tell which system made a clip.
    """
    rate = max(clip.sample_rate for clip in clips)
    same = [clip.resample(rate) for clip in clips]
    levels = [loudness(clip) for clip in same]
    heard = [place for place, level in enumerate(levels) if math.isfinite(level)]
    target = min((levels[place] + _room(same[place]) for place in heard), default=TARGET)
    target = min(target, TARGET)
    for place in heard:
        gain = 10 ** ((target - levels[place]) / 20)
        same[place] = replace(same[place], wave=same[place].wave * gain)
    return same


def _room(clip: Clip) -> float:
    """Decibels by which a clip may become louder."""
    return min(20 * math.log10(_PEAK / float(clip.wave.abs().max())), _MOST_DB)
