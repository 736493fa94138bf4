"""What a score is made of: notes, the parts that play them, and the truth about the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Note(NamedTuple):
    """One note: start and duration in seconds, MIDI pitch 0 to 127, velocity 1 to 127."""

    start: float
    duration: float
    pitch: int
    velocity: int


@dataclass(frozen=True)
class Part:
    """What one instrument plays in one role.

    Attributes:
        program: General MIDI program, 0 to 127; the kit number where ``role`` is ``drums``.
        role: ``melody``, ``chords``, ``bass``, ``pad`` or ``drums``.
    """

    program: int
    instrument: str
    family: str
    role: str
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Truth:
    """What is known of a composed clip, times in seconds from its start.

    Attributes:
        tempo: beats per minute; the beat of 6/8 is the dotted quarter.
        chords: ``(start, end, name)`` with names such as ``Am`` or ``G7``.
        texture: ``solo``, ``duo`` or ``band``.
        captions: several descriptions of the same clip, the first one a full sentence.
    """

    tempo: float
    metre: str
    beats: tuple[float, ...]
    downbeats: tuple[float, ...]
    key: str
    chords: tuple[tuple[float, float, str], ...]
    instruments: tuple[str, ...]
    families: tuple[str, ...]
    lead: str
    lead_family: str
    has_drums: bool
    texture: str
    style: str
    moods: tuple[str, ...]
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """Parts that sound together for ``seconds``, and the truth about them."""

    parts: tuple[Part, ...]
    truth: Truth
    seconds: float
