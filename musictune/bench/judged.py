"""A second judge of whether music is what its prompt asks for, which shares nothing with CLAP.

What a model was tuned to please says little about itself: it may please CLAP's mistakes. The
bundled judge is another network, trained apart, that names families of instruments, drums and keys;
held against the words of the prompt it tells whether the music followed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.compose.instruments import DRUM_NAMES, FAMILIES, HELD_OUT, INSTRUMENTS
from musictune.errors import InputError
from musictune.metrics.musical_asked import asked
from musictune.models.judge import DRUMS, KEYS, Heard, Judge

_DRUMS = tuple(dict.fromkeys([*DRUM_NAMES, DRUMS]))


@dataclass(frozen=True)
class Named:
    """What a prompt asks for, as far as the judge can hear it.

    Attributes:
        families: of the instruments named, in the order of the words; the first one leads.
        drums: whether drums are asked for; False where they are refused, None if not spoken of.
        key: one of `musictune.models.judge.KEYS`; None if none is named.
    """

    families: tuple[str, ...]
    drums: bool | None
    key: str | None


def named(prompt: str) -> Named:
    """Instruments, drums and key that a prompt names, in any order and case.

    Instruments are known by the composer's names and by their families; a longer name goes first,
    so that a bass guitar is no guitar.
    """
    found = [match[0].lower() for match in _words().finditer(prompt)]
    refused = re.search(rf"\b(?:no|without) (?:{'|'.join(_DRUMS)})\b", prompt, re.IGNORECASE)
    families = tuple(dict.fromkeys(_families()[word] for word in found))
    drums = False if refused else True if DRUMS in families else None
    return Named(
        tuple(family for family in families if family != DRUMS or drums),
        drums,
        asked(prompt).key,
    )


class JudgedText:
    """Reward: mean probability, by the judge, of what each clip's caption names.

    Of the first family named that it leads, of each other that it is heard, of drums that they are
    there or, if refused, are not, and of the key. Tempo and mood are not judged.

    Args:
        judge: what hears; the bundled one if None. It must not be what the music was tuned by.
    """

    def __init__(self, judge: Judge | None = None) -> None:
        self.judge = Judge.load() if judge is None else judge

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)`` float32 from 0 to 1.

        Raises:
            InputError: a caption names nothing that the judge can hear.
        """
        wanted = [self._wanted(clip) for clip in clips]
        heard = self.judge.hear(clips)
        return torch.tensor([_share(w, h) for w, h in zip(wanted, heard, strict=True)]).float()

    def _wanted(self, clip: Clip) -> Named:
        found = named(clip.caption)
        known = tuple(name for name in found.families if name in self.judge.config.families)
        if not known and found.drums is None and found.key is None:
            raise InputError(
                f"caption {clip.caption!r} of clip {clip.source or '(unnamed)'} names nothing the "
                f"judge knows; name an instrument, drums or a key, such as 'piano in A minor'"
            )
        return Named(known, found.drums, found.key)


def _share(wanted: Named, heard: Heard) -> float:
    chances = [heard.present[family] for family in wanted.families[1:] if family != DRUMS]
    if wanted.families:
        chances.append(heard.leads[wanted.families[0]])
    if wanted.drums is not None and wanted.families[:1] != (DRUMS,):
        there = heard.present.get(DRUMS, 0.0)
        chances.append(there if wanted.drums else 1 - there)
    if wanted.key is not None:
        chances.append(heard.keys[KEYS.index(wanted.key)])
    return sum(chances) / len(chances)


@functools.cache
def _families() -> dict[str, str]:
    """The family of each word, in small letters."""
    words = {family: family for family in FAMILIES} | dict.fromkeys(_DRUMS, DRUMS)
    for item in [*INSTRUMENTS.values(), *HELD_OUT.values()]:
        words |= {name.lower(): item.family for name in item.names}
    return words


@functools.cache
def _words() -> re.Pattern[str]:
    longest = sorted(_families(), key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest))})\b", re.IGNORECASE)
