"""The small random base that the tests of methods share."""

from __future__ import annotations

import copy
import functools

from musictune.errors import InputError
from musictune.methods import methods
from musictune.methods.base import TuningMethod
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


def fits(method: TuningMethod) -> bool:
    """Whether it is for models that make music; what is for encoders only refuses them."""
    try:
        method.check(base())
    except InputError:
        return False
    return True


FITTING = [name for name, kind in methods().items() if fits(kind.toy())]
"""The short names of the methods for music."""

LIVE = [name for name in FITTING if not methods()[name].mergeable]
"""Those of them that cannot be folded into the weights."""
