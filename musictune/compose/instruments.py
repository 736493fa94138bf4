"""The instruments of General MIDI the composer plays, with names, families and ranges."""

from __future__ import annotations

from dataclasses import dataclass

from musictune.errors import InputError

DRUMS = "drums"


@dataclass(frozen=True)
class Instrument:
    """One General MIDI program (0-based) as the composer uses it.

    Attributes:
        names: what captions call it, the plainest first.
        low, high: lowest and highest pitch written for it, MIDI.
        chords: it can play several notes at once.
        slow: it speaks slowly, so that only long notes sound well.
    """

    program: int
    names: tuple[str, ...]
    family: str
    low: int
    high: int
    chords: bool = False
    slow: bool = False

    @property
    def name(self) -> str:
        return self.names[0]


def _family(
    family: str, *rows: tuple[int, str, int, int], chords: bool = False, slow: bool = False
) -> list[Instrument]:
    return [
        Instrument(program, tuple(names.split("|")), family, low, high, chords, slow)
        for program, names, low, high in rows
    ]


_PLAYED = [
    *_family(
        "piano",
        (0, "piano|grand piano|acoustic piano", 33, 96),
        (1, "bright piano|bright acoustic piano", 33, 96),
        (3, "honky-tonk piano|detuned piano", 33, 90),
        (4, "electric piano|rhodes piano", 33, 88),
        (5, "fm electric piano|digital electric piano", 33, 88),
        (6, "harpsichord|cembalo", 36, 86),
        (7, "clavinet|funky clavinet", 36, 84),
        chords=True,
    ),
    *_family(
        "mallets",
        (8, "celesta|celeste", 60, 100),
        (9, "glockenspiel|orchestral bells", 72, 103),
        (11, "vibraphone|vibes", 53, 89),
        (12, "marimba|wooden marimba", 45, 91),
        (13, "xylophone|wooden xylophone", 60, 96),
        (14, "tubular bells|church bells", 55, 79),
        chords=True,
    ),
    *_family(
        "organ",
        (16, "hammond organ|drawbar organ|organ", 36, 90),
        (18, "rock organ|overdriven organ", 36, 90),
        (19, "church organ|pipe organ", 36, 90),
        (21, "accordion|squeezebox", 48, 88),
        chords=True,
    ),
    *_family("organ", (22, "harmonica|mouth organ", 55, 86)),
    *_family(
        "guitar",
        (24, "nylon guitar|classical guitar|acoustic guitar", 40, 81),
        (25, "steel guitar|steel string guitar|acoustic guitar", 40, 83),
        (26, "jazz guitar|mellow electric guitar", 40, 83),
        (27, "electric guitar|clean electric guitar", 40, 84),
        (28, "muted guitar|palm muted guitar", 40, 80),
        (29, "overdriven guitar|overdrive electric guitar", 40, 84),
        (30, "distorted guitar|distortion guitar|heavy electric guitar", 40, 84),
        chords=True,
    ),
    *_family(
        "bass",
        (32, "double bass|upright bass|acoustic bass", 28, 58),
        (33, "bass guitar|electric bass|fingered bass", 28, 58),
        (34, "picked bass|picked bass guitar", 28, 58),
        (35, "fretless bass|fretless bass guitar", 28, 60),
        (36, "slap bass|slapped bass", 28, 58),
        (38, "synth bass|synthesizer bass", 26, 58),
        (39, "deep synth bass|analog synth bass", 26, 58),
    ),
    *_family(
        "strings",
        (40, "violin|fiddle", 55, 96),
        (41, "viola|alto violin", 48, 84),
        (42, "cello|violoncello", 36, 74),
    ),
    *_family(
        "strings",
        (48, "strings|string ensemble|string section", 40, 91),
        (50, "synth strings|synthesizer strings", 40, 91),
        chords=True,
        slow=True,
    ),
    *_family(
        "plucked",
        (45, "pizzicato strings|plucked strings", 43, 88),
        (46, "harp|concert harp", 36, 96),
        chords=True,
    ),
    *_family(
        "choir",
        (52, "choir|choir aahs|vocal choir", 45, 81),
        (53, "voices|voice oohs|humming voices", 48, 81),
        (54, "synth voice|synthetic choir", 48, 84),
        chords=True,
        slow=True,
    ),
    *_family(
        "brass",
        (56, "trumpet|brass trumpet", 54, 86),
        (57, "trombone|slide trombone", 40, 72),
        (58, "tuba|low tuba", 29, 58),
        (59, "muted trumpet|trumpet with mute", 54, 82),
        (60, "french horn|horn", 41, 77),
    ),
    *_family("brass", (61, "brass section|brass ensemble", 43, 82), chords=True),
    *_family(
        "reed",
        (64, "soprano saxophone|soprano sax", 56, 87),
        (65, "alto saxophone|alto sax|saxophone", 49, 80),
        (66, "tenor saxophone|tenor sax", 44, 75),
        (67, "baritone saxophone|baritone sax", 36, 68),
        (68, "oboe|reedy oboe", 58, 90),
        (70, "bassoon|low bassoon", 34, 70),
        (71, "clarinet|wooden clarinet", 50, 90),
    ),
    *_family(
        "flute",
        (72, "piccolo|piccolo flute", 74, 105),
        (73, "flute|concert flute", 60, 95),
        (74, "recorder|wooden recorder", 60, 91),
        (75, "pan flute|panpipes", 60, 94),
        (78, "whistle|tin whistle", 64, 96),
    ),
    *_family(
        "synth lead",
        (80, "square lead|square wave synth|synth lead", 48, 91),
        (81, "saw lead|sawtooth synth|synth lead", 48, 91),
        (87, "bass lead|fat synth lead", 36, 79),
    ),
    *_family(
        "synth pad",
        (88, "new age pad|bell pad|synth pad", 48, 88),
        (89, "warm pad|soft synth pad|synth pad", 45, 86),
        (90, "polysynth|poly synth|synth chords", 45, 88),
        (94, "halo pad|airy synth pad", 48, 86),
        (95, "sweep pad|sweeping synth pad", 48, 84),
        chords=True,
        slow=True,
    ),
]

INSTRUMENTS: dict[int, Instrument] = {item.program: item for item in _PLAYED}
"""What the composer draws from by itself, by program."""

FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(item.family for item in _PLAYED))
"""Families of pitched instruments; ``drums`` come on top."""

# Never drawn by default: the base model must not know them, so that learning one of them from a
# few minutes of audio can be measured.
HELD_OUT: dict[int, Instrument] = {
    item.program: item
    for item in [
        *_family("plucked", (107, "koto|japanese koto", 48, 86)),
        *_family("plucked", (104, "sitar|indian sitar", 48, 82)),
        *_family("plucked", (105, "banjo|five-string banjo", 48, 84), chords=True),
        *_family("reed", (109, "bagpipe|bagpipes", 55, 82)),
        *_family(
            "mallets",
            (114, "steel drums|steel pan", 52, 86),
            (108, "kalimba|thumb piano", 52, 88),
            (10, "music box|musical box", 64, 100),
            (15, "dulcimer|hammered dulcimer", 50, 88),
            chords=True,
        ),
        *_family("flute", (77, "shakuhachi|bamboo flute", 57, 86), (79, "ocarina", 60, 91)),
    ]
}

DRUM_KITS: dict[int, str] = {
    0: "standard",
    8: "room",
    16: "power",
    24: "electronic",
    25: "analog",
    32: "jazz",
    40: "brush",
}

DRUM_NAMES = ("drums", "drum kit", "percussion")


def instrument(program: int) -> Instrument:
    """The instrument of a General MIDI program, held-out ones included.

    Raises:
        InputError: the composer does not play that program.
    """
    found = INSTRUMENTS.get(program) or HELD_OUT.get(program)
    if found is None:
        known = ", ".join(str(number) for number in sorted([*INSTRUMENTS, *HELD_OUT]))
        raise InputError(f"program {program} is not played by the composer; choose one of {known}")
    return found
