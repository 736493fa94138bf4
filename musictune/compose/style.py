"""What a style is, and the notation its patterns are written in.

Patterns are one bar long, one character per step: a sixteenth note, so 16 steps in 4/4, 12 in 3/4
and 6/8, 8 in 2/4. ``-`` holds the note before and ``.`` is a rest. In ``comps``, ``x`` is the whole
chord, ``u`` its upper tones, a digit one tone of it, counted from the bottom, and ``a b c d e``
are the steps of the scale from its lowest tone up. In ``basses``,
``r 3 5 8`` are root, third, fifth and octave, ``w`` a walking tone and ``a`` a step towards the
next root. In ``drums``, ``X`` is accented, ``x`` plain and ``o`` soft. Progressions are Roman
numerals, one bar each; ``/`` shares a bar.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

STEPS = {"4/4": 16, "3/4": 12, "6/8": 12, "2/4": 8}
BEATS = {"4/4": 4, "3/4": 3, "6/8": 2, "2/4": 2}


@dataclass(frozen=True)
class Style:
    """How one kind of music goes.

    Attributes:
        names: what captions call it, the plainest first; the first one is its key.
        tempo: lowest and highest beats per minute.
        major: share of major keys.
        drums: one pattern per drum, for each of several grooves; none means never drums.
        kits: drum kits of General MIDI.
        swing: how far the second eighth of a beat is late, as a part of the beat; 1/6 is triplets.
        density: how busy melodies are, 0 to 1.
        tight: spread of note starts in milliseconds.
        leads: families that most often play the tune.
        chords, bass, pads: programs that accompany.
        named_alone: a solo can be recognised as this style.
        scale: semitones above the tonic that tunes use in ``major`` or ``minor``, where not those
            of the key; the mode then only says what the chord on the tonic is.
        cells: rhythms of one beat in steps (negative: a rest) that tunes are made of, from calm to
            busy; none means the ordinary ones.
        answers: like ``comps``, for a second player of ``pads`` who answers the first one.
        fills: whether the drums fill the ends of phrases.
    """

    names: tuple[str, ...]
    tempo: tuple[int, int]
    major: float
    in_major: tuple[str, ...]
    in_minor: tuple[str, ...]
    comps: tuple[str, ...]
    basses: tuple[str, ...]
    drums: tuple[Mapping[str, str], ...] = ()
    kits: tuple[int, ...] = (0,)
    metre: str = "4/4"
    swing: float = 0.0
    density: float = 0.5
    tight: float = 8.0
    leads: tuple[str, ...] = ("piano",)
    chords: tuple[int, ...] = (0,)
    bass: tuple[int, ...] = (33,)
    pads: tuple[int, ...] = field(default=(48, 89))
    named_alone: bool = False
    scale: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    cells: tuple[tuple[int, ...], ...] = ()
    answers: tuple[str, ...] = ()
    fills: bool = True

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def steps(self) -> int:
        """Steps of a bar."""
        return STEPS[self.metre]

    @property
    def beats(self) -> int:
        """Beats of a bar."""
        return BEATS[self.metre]


DRUM_KEYS = {
    "kick": 36,
    "rim": 37,
    "snare": 38,
    "clap": 39,
    "hat": 42,
    "tomlow": 43,
    "hatpedal": 44,
    "hatopen": 46,
    "tommid": 47,
    "crash": 49,
    "tomhigh": 50,
    "ride": 51,
    "tambourine": 54,
    "cowbell": 56,
    "conga": 63,
    "congalow": 64,
    "timbale": 65,
    "agogo": 67,
    "maracas": 70,
}
"""General MIDI percussion keys."""
