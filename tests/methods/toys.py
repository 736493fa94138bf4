"""The small random base that the tests of methods share."""

from __future__ import annotations

import copy
import functools

from musictune.models.musicgen import MusicGen


@functools.cache
def base() -> MusicGen:
    """Nobody changes this one."""
    return MusicGen.toy()


def toy() -> MusicGen:
    """A new toy; they share the codec, which no method touches and which is slow to build."""
    network = base().network
    codec = network.audio_encoder
    return MusicGen(copy.deepcopy(network, {id(codec): codec}), base().tokenizer, "toy")
