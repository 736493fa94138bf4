"""Composing: a seed and a few wishes in, a score with its truth out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from musictune.compose import parts
from musictune.compose.captions import moods_of, write_captions
from musictune.compose.harmony import Chord, key_name, parse_key, roman
from musictune.compose.instruments import (
    DRUMS,
    FAMILIES,
    INSTRUMENTS,
    Instrument,
    instrument,
)
from musictune.compose.notes import Note, Part, Score, Truth
from musictune.compose.parts import Form, Random, choose
from musictune.compose.style import Style
from musictune.compose.styles import STYLES, find_style
from musictune.errors import InputError

__all__ = ["Note", "Part", "Score", "Truth", "write_score"]

TEXTURES = ("solo", "duo", "band")
_TEXTURE_SHARES = (0.4, 0.25, 0.35)
_TEMPO = (30.0, 300.0)
_SECONDS = (1.0, 3600.0)
_DRUM_SOLOS = 0.15
_ENDINGS = 0.12
_DOMINANT = {2, 7, 11}  # semitones above the tonic
_PAD, _SECOND_PLAYER = 0.3, 0.9  # shares of bands


@dataclass(frozen=True)
class _Cast:
    """Who plays: the lead is None in a drum solo."""

    lead: Instrument | None
    chords: Instrument | None = None
    bass: Instrument | None = None
    pad: Instrument | None = None
    kit: int | None = None


def write_score(
    seed: int,
    *,
    seconds: float = 12.0,
    program: int | None = None,
    style: str | None = None,
    texture: str | None = None,
    tempo: float | None = None,
    key: str | None = None,
    programs: Sequence[int] | None = None,
) -> Score:
    """Compose ``seconds`` of music; the same arguments give the same score.

    What is not given is drawn at random: leads about evenly over the families, four in ten
    solos, a quarter duos, the rest bands. Held-out instruments and styles only when asked for.

    Args:
        program: General MIDI number (0-based) of the lead.
        texture: ``solo``, ``duo`` or ``band``.
        tempo: beats per minute.
        key: such as ``A minor``.
        programs: draw all pitched instruments from these only.

    Raises:
        InputError: a style, texture, program or key that is not known, or a number out of range.
    """
    _check(seconds, texture, tempo)
    wanted = find_style(style) if style is not None else None
    rng = np.random.default_rng([seed, 0])
    pool = [instrument(number) for number in programs] if programs else list(INSTRUMENTS.values())
    texture_ = texture or choose(rng, TEXTURES, _TEXTURE_SHARES)
    drummer = key is None and programs is None and (wanted is None or bool(wanted.drums))
    lead = instrument(program) if program is not None else _draw_lead(rng, pool, texture_, drummer)
    chosen = wanted or _draw_style(rng, lead)
    cast = _draw_cast(rng, lead, chosen, texture_, pool, bool(programs))
    tonic, mode = _draw_key(rng, chosen) if key is None else parse_key(key)
    bpm = float(tempo) if tempo is not None else float(round(rng.uniform(*chosen.tempo)))
    loudness = float(rng.uniform(0.1, 1.0))
    if bpm > 110 and cast.kit is not None:
        loudness = max(loudness, 0.45)
    register = float(rng.random())
    if texture_ != "solo":
        register = 0.4 + 0.6 * register  # the tune lies above what accompanies it
    form = _draw_form(rng, chosen, tonic, mode, bpm, seconds, loudness)
    last = _draw_ending(form, np.random.default_rng([seed, 4]))
    if last is not None:
        form = _resolve(form, last)
    players = _write_parts(form, cast, texture_, np.random.default_rng([seed, 1]), register)
    if last is not None:
        players = tuple(replace(p, notes=parts.ended(form, p.notes, last)) for p in players)
    rng = np.random.default_rng([seed, 2])
    pitched = lead is not None
    moods = moods_of(
        rng,
        tempo=bpm,
        mode=mode if pitched else "major",
        loudness=loudness,
        register=register if pitched else 0.5,
        drums=cast.kit is not None,
    )
    truth = _truth(form, players, cast, texture_, bpm, moods, last)
    return Score(players, replace(truth, captions=write_captions(truth, rng)), seconds)


def _check(seconds: float, texture: str | None, tempo: float | None) -> None:
    if not _SECONDS[0] <= seconds <= _SECONDS[1]:
        raise InputError(f"seconds {seconds:g} is out of range; give 1 to 3600")
    if texture is not None and texture not in TEXTURES:
        raise InputError(f"texture {texture!r} is not known; choose one of {', '.join(TEXTURES)}")
    if tempo is not None and not _TEMPO[0] <= tempo <= _TEMPO[1]:
        raise InputError(f"tempo {tempo:g} is out of range; give 30 to 300 beats per minute")


def _draw_lead(
    rng: Random, pool: Sequence[Instrument], texture: str, drummer: bool
) -> Instrument | None:
    if texture == "solo" and rng.random() < _DRUM_SOLOS and drummer:
        return None
    families = [name for name in FAMILIES if any(item.family == name for item in pool)]
    family = choose(rng, families)
    return choose(rng, [item for item in pool if item.family == family])


def _draw_style(rng: Random, lead: Instrument | None) -> Style:
    styles = list(STYLES.values())
    if lead is None:
        return choose(rng, [style for style in styles if style.drums])
    return choose(rng, styles, [3.0 if lead.family in style.leads else 0.6 for style in styles])


def _draw_key(rng: Random, style: Style) -> tuple[int, str]:
    mode = "major" if rng.random() < style.major else "minor"
    return int(rng.integers(12)), mode


def _draw_cast(
    rng: Random,
    lead: Instrument | None,
    style: Style,
    texture: str,
    pool: Sequence[Instrument],
    pool_only: bool,
) -> _Cast:
    kit = choose(rng, style.kits)
    if lead is None:
        return _Cast(None, kit=kit)
    if texture == "solo":
        return _Cast(lead)

    def pick(programs: Sequence[int], chords: bool) -> Instrument | None:
        wanted = [instrument(number) for number in programs if number != lead.program]
        if pool_only:
            allowed = [item for item in pool if item.program != lead.program]
            wanted = [item for item in wanted if item in allowed] or [
                item for item in allowed if item.chords == chords
            ]
        return choose(rng, wanted) if wanted else None

    comping, bass = pick(style.chords, True), pick(style.bass, False)
    if lead.family == "bass":
        bass = None
    if texture == "duo":
        kinds = ("chords", "bass", "drums")
        kind = choose(rng, kinds, (0.75, 0.13 * (bass is not None), 0.12 * bool(style.drums)))
        if kind == "drums" or (kind == "chords" and comping is None):
            return _Cast(lead, kit=kit)
        return _Cast(lead, chords=comping) if kind == "chords" else _Cast(lead, bass=bass)
    second = _SECOND_PLAYER if style.answers else _PAD
    pad = pick(style.pads, True) if rng.random() < second else None
    if pad is not None and comping is not None and pad.program == comping.program:
        pad = None
    drums = bool(style.drums) and rng.random() < 0.93
    if rng.random() < 0.12 and drums and bass is not None:
        comping = None  # a trio
    return _Cast(lead, comping, bass, pad, kit if drums else None)


def _draw_form(
    rng: Random, style: Style, tonic: int, mode: str, bpm: float, seconds: float, loudness: float
) -> Form:
    step = 60.0 / bpm * style.beats / style.steps
    bar = step * style.steps
    # Half of the clips start on a bar; the others are a window from the middle of one.
    origin = -float(rng.uniform(0, bar)) if rng.random() < 0.5 else 0.0
    bars = math.ceil((seconds - origin) / bar)
    progressions = style.in_major if mode == "major" else style.in_minor
    verse = choose(rng, progressions).split()
    other = choose(rng, progressions).split() if rng.random() < 0.4 else verse
    skip = int(rng.integers(4)) if rng.random() < 0.3 else 0
    numerals = ((verse * 2 + other) * (bars // len(verse) + 2))[skip : skip + bars]
    chords: list[tuple[tuple[int, int, Chord], ...]] = []
    for text in numerals:
        names = text.split("/")
        length = style.steps // len(names)
        chords.append(
            tuple(
                (i * length, (i + 1) * length, roman(name, tonic, mode))
                for i, name in enumerate(names)
            )
        )
    return Form(style, tonic, mode, tuple(chords), origin, step, seconds, loudness)


def _draw_ending(form: Form, rng: Random) -> int | None:
    """The bar on whose first beat the music ends, for about one clip in eight."""
    bar = form.step * form.style.steps
    last = math.floor((form.seconds - form.origin - min(bar, 1.0)) / bar)
    return last if rng.random() < _ENDINGS and 2 <= last < form.bars else None


def _resolve(form: Form, last: int) -> Form:
    """Dominant before the last bar, home in it.

    Where the style's own scale has no dominant chord, it comes home from wherever it is.
    """
    home, away = ("I", "V") if form.mode == "major" else ("i", "V")
    chords = list(form.chords)
    cadence = [(last - 1, away), (last, home)]
    scale = set(form.style.scale.get(form.mode, _DOMINANT))
    if not _DOMINANT.issubset(scale):
        del cadence[0]
    for bar, numeral in cadence:
        chords[bar] = ((0, form.style.steps, roman(numeral, form.tonic, form.mode)),)
    return replace(form, chords=tuple(chords))


def _write_parts(
    form: Form, cast: _Cast, texture: str, rng: Random, register: float
) -> tuple[Part, ...]:
    made: list[Part] = []

    def add(player: Instrument, role: str, notes: tuple[Note, ...]) -> None:
        if notes:
            made.append(Part(player.program, player.name, player.family, role, notes))

    lead = cast.lead
    if lead is not None and texture == "solo":
        kind = choose(rng, ("both", "chords", "melody"), (0.6, 0.15, 0.25))
        if not lead.chords:
            kind = "melody"
        if kind != "chords":
            raised = 0.5 + register / 2 if kind == "both" else register
            add(lead, "melody", parts.melody(form, lead, rng, raised))
        if kind != "melody":
            low = lead.low + (lead.high - lead.low) * (0.25 if kind == "both" else 0.5)
            add(lead, "chords", parts.accompaniment(form, lead, rng, round(low)))
    elif lead is not None:
        add(lead, "melody", parts.melody(form, lead, rng, register))
    if cast.chords is not None:
        centre = min(max(_comping_centre(lead), cast.chords.low + 7), cast.chords.high - 8)
        add(cast.chords, "chords", parts.accompaniment(form, cast.chords, rng, centre))
    if cast.bass is not None:
        add(cast.bass, "bass", parts.bass_line(form, cast.bass, rng))
    if cast.pad is not None:
        if form.style.answers:
            centre = min(max(_comping_centre(lead), cast.pad.low + 7), cast.pad.high - 8)
            notes = parts.accompaniment(form, cast.pad, rng, centre, answers=True)
            add(cast.pad, "chords", notes)
        else:
            add(cast.pad, "pad", parts.held(form, cast.pad, rng))
    if cast.kit is not None:
        notes = parts.drum_beat(form, rng)
        made.append(Part(cast.kit, DRUMS, DRUMS, "drums", notes))
    return tuple(made)


def _comping_centre(lead: Instrument | None) -> int:
    """Where chords lie: around G3, lower under a low lead so that they do not cover it."""
    if lead is None or lead.family == "bass":
        return 58
    return min(57, max(48, (lead.low + lead.high) // 2 - 9))


def _truth(
    form: Form,
    players: tuple[Part, ...],
    cast: _Cast,
    texture: str,
    bpm: float,
    moods: tuple[str, ...],
    last: int | None,
) -> Truth:
    pitched = cast.lead is not None
    bar = form.step * form.style.steps
    beat = bar / form.style.beats
    beats = [
        (form.origin + bar * number + beat * i, i)
        for number in range(form.bars)
        for i in range(form.style.beats)
        if last is None or number < last or (number == last and i == 0)
    ]
    inside = [(time, i) for time, i in beats if 0.0 <= time < form.seconds - 1e-3]
    spans: list[tuple[float, float, str]] = []
    sounding = form.chords if last is None else form.chords[: last + 1]
    for number, chords in enumerate(sounding):
        for first, end, chord in chords:
            start = max(form.origin + bar * number + form.step * first, 0.0)
            stop = min(form.origin + bar * number + form.step * end, form.seconds)
            if spans and spans[-1][2] == chord.name:
                spans[-1] = (spans[-1][0], stop, chord.name)
            elif stop > start:
                spans.append((start, stop, chord.name))
    return Truth(
        tempo=bpm,
        metre=form.style.metre,
        beats=tuple(round(time, 4) for time, _ in inside),
        downbeats=tuple(round(time, 4) for time, i in inside if i == 0),
        key=key_name(form.tonic, form.mode) if pitched else "",
        chords=tuple((round(a, 4), round(b, 4), name) for a, b, name in spans) if pitched else (),
        instruments=tuple(dict.fromkeys(part.instrument for part in players)),
        families=tuple(dict.fromkeys(part.family for part in players)),
        lead=cast.lead.name if cast.lead is not None else DRUMS,
        lead_family=cast.lead.family if cast.lead is not None else DRUMS,
        has_drums=cast.kit is not None,
        texture=texture,
        style=form.style.name,
        moods=moods,
    )
