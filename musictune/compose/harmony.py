"""Keys, scales and chords: Roman numerals to pitches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from musictune.errors import InputError

NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}

_FLATS = {"Db": "C#", "Eb": "D#", "Gb": "F#", "Ab": "G#", "Bb": "A#", "Cb": "B", "Fb": "E"}
_QUALITIES = {
    "": (0, 4, 7),
    "m": (0, 3, 7),
    "7": (0, 4, 7, 10),
    "m7": (0, 3, 7, 10),
    "maj7": (0, 4, 7, 11),
    "dim": (0, 3, 6),
    "m7b5": (0, 3, 6, 10),
    "sus4": (0, 5, 7),
    "5": (0, 7),
}
_NUMERALS = ("i", "ii", "iii", "iv", "v", "vi", "vii")
_ROMAN = re.compile(r"(b?)([iv]+|[IV]+)(maj7|m7b5|dim|sus4|7|5)?")


@dataclass(frozen=True)
class Chord:
    """A chord as pitch classes: ``root`` 0 to 11 and intervals above it in semitones."""

    root: int
    quality: str

    @property
    def name(self) -> str:
        return NAMES[self.root] + self.quality

    @property
    def tones(self) -> tuple[int, ...]:
        """Pitch classes, the root first."""
        return tuple((self.root + step) % 12 for step in _QUALITIES[self.quality])


def parse_key(key: str) -> tuple[int, str]:
    """``"A minor"`` as ``(9, "minor")``; flats are read too.

    Raises:
        InputError: not a tonic and ``major`` or ``minor``.
    """
    words = key.split()
    tonic = words[0][:1].upper() + words[0][1:].lower() if words else ""
    tonic = _FLATS.get(tonic, tonic)
    mode = words[1].lower() if len(words) == 2 else ""
    if tonic not in NAMES or mode not in SCALES:
        raise InputError(f"key {key!r} is not known; write it as 'A minor' or 'F# major'")
    return NAMES.index(tonic), mode


def key_name(tonic: int, mode: str) -> str:
    return f"{NAMES[tonic % 12]} {mode}"


def roman(numeral: str, tonic: int, mode: str) -> Chord:
    """The chord of a Roman numeral: upper case is major, lower case minor, ``b`` a semitone down.

    Degrees are those of the mode's own scale, so ``VI`` in minor needs no flat.
    """
    match = _ROMAN.fullmatch(numeral)
    if match is None or match[2].lower() not in _NUMERALS:
        raise ValueError(f"numeral {numeral!r}")
    flat, degree, suffix = match[1], match[2], match[3] or ""
    root = SCALES[mode][_NUMERALS.index(degree.lower())] - len(flat)
    if degree.islower() and suffix in ("", "7"):
        suffix = "m" + suffix
    return Chord((tonic + root) % 12, suffix)


def scale_for(chord: Chord, tonic: int, scale: Sequence[int]) -> frozenset[int]:
    """Pitch classes a melody may use over ``chord``: the key, bent where the chord leaves it.

    Over the dominant of a minor key this gives the raised seventh of the harmonic scale.

    Args:
        scale: semitones above the tonic.
    """
    classes = {(tonic + step) % 12 for step in scale}
    for tone in chord.tones:
        if tone not in classes:
            classes -= {(tone - 1) % 12, (tone + 1) % 12} - set(chord.tones)
            classes.add(tone)
    return frozenset(classes)
