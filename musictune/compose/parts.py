"""Writing what each instrument plays: tune, accompaniment, bass, held chords and drums."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from musictune.compose.harmony import SCALES, Chord, scale_for
from musictune.compose.instruments import Instrument
from musictune.compose.notes import Note
from musictune.compose.style import DRUM_KEYS, Style

Random = np.random.Generator
Item = TypeVar("Item")

# Rhythms of one beat in steps of a quarter of it (negative: a rest), from calm to busy.
_CELLS_OF_4 = ((4,), (-2, 2), (3, 1), (2, 2), (2, 1, 1), (1, 1, 2), (1, 2, 1), (1, 1, 1, 1))
_CELLS_OF_6 = ((6,), (4, 2), (-2, 2, 2), (2, 2, 2), (2, 1, 1, 2), (2, 2, 1, 1))
_SCALE_STEPS = "abcde"
_SOFT, _PLAIN, _ACCENT = 0.55, 0.85, 1.0


@dataclass(frozen=True)
class Form:
    """The bars everything is written on.

    Attributes:
        chords: of each bar, ``(first step, last step + 1, chord)``.
        origin: where bar 0 starts, in seconds; not after 0, for the clip is a window.
        step: seconds of a step (a sixteenth).
        loudness: 0 (soft) to 1 (loud).
    """

    style: Style
    tonic: int
    mode: str
    chords: tuple[tuple[tuple[int, int, Chord], ...], ...]
    origin: float
    step: float
    seconds: float
    loudness: float

    @property
    def bars(self) -> int:
        return len(self.chords)

    @property
    def steps_per_beat(self) -> int:
        return self.style.steps // self.style.beats

    def time(self, bar: int, step: float) -> float:
        """Seconds of a step, late on the off-eighths where the style swings."""
        late = self.style.swing * 4 if step % 4 in (2, 3) else 0.0
        if step % 4 == 3:
            late /= 2
        return self.origin + (bar * self.style.steps + step + late) * self.step

    def chord(self, bar: int, step: float) -> Chord:
        for _, end, chord in self.chords[bar]:
            if step < end:
                return chord
        return self.chords[bar][-1][2]

    def scale(self, chord: Chord) -> list[int]:
        """Pitch classes of tunes over ``chord``, rising."""
        steps = self.style.scale.get(self.mode, SCALES[self.mode])
        return sorted(scale_for(chord, self.tonic, steps))


def choose(rng: Random, items: Sequence[Item], weights: Sequence[float] | None = None) -> Item:
    """One of ``items``; much faster than ``Generator.choice`` on short lists."""
    if weights is None:
        return items[int(rng.random() * len(items))]
    mark = rng.random() * sum(weights)
    for item, weight in zip(items, weights, strict=True):
        mark -= weight
        if mark < 0:
            return item
    return items[-1]


class _Page:
    """Collects the notes of one part with human timing and touch, cut to the window."""

    def __init__(self, form: Form, rng: Random, gain: float) -> None:
        self.form = form
        self.rng = rng
        self.base = (44 + 60 * form.loudness) * gain
        self.notes: list[Note] = []

    def add(
        self, bar: int, step: float, steps: float, pitch: int, touch: float, hold: float = 0.92
    ) -> None:
        start = self.form.time(bar, step)
        end = start + (self.form.time(bar, step + steps) - start) * hold
        start += self.rng.normal(0.0, self.form.style.tight / 1000)
        start, end = max(start, 0.0), min(end, self.form.seconds)
        if end - start < 0.03 or not 0 <= pitch <= 127:
            return
        velocity = round(self.base * touch + self.rng.normal(0.0, 4.0))
        self.notes.append(Note(start, end - start, pitch, min(max(velocity, 12), 127)))

    def done(self) -> tuple[Note, ...]:
        """The notes in order; one that runs into the next of its pitch ends before it."""
        last: dict[int, Note] = {}
        kept: list[Note] = []
        for note in sorted(self.notes, reverse=True):
            following = last.get(note.pitch)
            if following is not None and note.start + note.duration > following.start:
                note = note._replace(duration=following.start - note.start)
            if note.duration >= 0.02:
                last[note.pitch] = note
                kept.append(note)
        return tuple(sorted(kept))


def _scan(pattern: str) -> list[tuple[int, int, str]]:
    """``(step, steps, mark)`` of a pattern; ``-`` lengthens and ``.`` is a rest."""
    found: list[tuple[int, int, str]] = []
    held = False
    for step, mark in enumerate(pattern):
        if mark == "-" and held:
            first, steps, what = found[-1]
            found[-1] = (first, steps + 1, what)
        elif mark in "-.":
            held = False
        else:
            found.append((step, 1, mark))
            held = True
    return found


def _near(tones: Sequence[int], low: int, high: int) -> list[int]:
    """All pitches of the pitch classes ``tones`` from ``low`` to ``high``, upwards."""
    wanted = set(tones)
    return [pitch for pitch in range(low, high + 1) if pitch % 12 in wanted]


def _closest(pitches: Sequence[int], target: int) -> int:
    """Index of the pitch nearest to ``target`` in a rising list."""
    right = bisect_left(pitches, target)
    if right == 0:
        return 0
    if right == len(pitches) or target - pitches[right - 1] <= pitches[right] - target:
        return right - 1
    return right


def voicing(chord: Chord, centre: int, player: Instrument, size: int = 4) -> list[int]:
    """A close chord around ``centre`` inside the player's range, lowest tone first."""
    low = min(max(centre - 7, player.low), player.high - 12)
    pitches = _near(chord.tones, low, min(low + 18, player.high))
    return pitches[:size]


def _motif(rng: Random, form: Form, density: float) -> list[tuple[int, int, int]]:
    """One bar of tune as ``(step, steps, move)``, ``move`` in steps of the scale."""
    per_beat = form.steps_per_beat
    cells = form.style.cells or (_CELLS_OF_4 if per_beat == 4 else _CELLS_OF_6)
    spread = [np.exp(-(((i / (len(cells) - 1)) - density) ** 2) / 0.06) for i in range(len(cells))]
    shape: list[tuple[int, int, int]] = []
    step = 0
    for _ in range(form.style.beats):
        if shape and rng.random() < 0.45 * (1 - density):
            first, steps, move = shape[-1]
            shape[-1] = (first, steps + per_beat, move)
            step += per_beat
            continue
        for steps in choose(rng, cells, spread):
            if steps > 0:
                move = choose(rng, (0, 1, -1, 2, -2, 3, -3), (2, 5, 5, 2, 2, 0.7, 0.7))
                shape.append((step, steps, move))
            step += abs(steps)
    return shape or [(0, form.style.steps, 0)]


def melody(form: Form, player: Instrument, rng: Random, register: float) -> tuple[Note, ...]:
    """A tune of four-bar phrases: a motif, its repeat, an answer and a close on a chord tone."""
    page = _Page(form, rng, 1.0)
    density = form.style.density * (0.35 if player.slow else 1.0)
    density = min(max(density + rng.normal(0, 0.12), 0.0), 1.0)
    if form.step < 0.1:
        density *= max(form.step / 0.1, 0.4)
    span = player.high - player.low
    centre = round(player.low + span * (0.3 + 0.4 * register))
    low, high = max(player.low, centre - 11), min(player.high, centre + 11)
    call, answer = _motif(rng, form, density), _motif(rng, form, density)
    close = _motif(rng, form, density * 0.4)
    close[0] = (0, close[0][0] + close[0][1], 0)  # the close begins on the bar
    hold = float(rng.uniform(0.6, 0.98)) if not player.slow else 0.99
    pitch = centre
    for bar in range(form.bars):
        place = bar % 4
        shape = (call, call, answer, close)[place]
        if place == 1 and rng.random() < 0.5:  # the repeat, varied
            shape = [(step, steps, -move) for step, steps, move in shape]
        if place == 3 and rng.random() < 0.6:  # breathe
            step, steps, move = shape[-1]
            shape = [*shape[:-1], (step, max(steps // 2, 1), move)]
        swell = 0.88 + 0.12 * float(np.sin(np.pi * (bar % 8 + 0.5) / 8))
        for step, steps, move in shape:
            chord = form.chord(bar, step)
            strong = step % form.steps_per_beat == 0 and (step == 0 or steps >= 4)
            ladder = _near(form.scale(chord), low, high)
            index = _closest(ladder, pitch) + move
            if not 0 <= index < len(ladder):
                index -= 2 * move
            pitch = ladder[min(max(index, 0), len(ladder) - 1)]
            if strong:
                tones = _near(chord.tones, low, high)
                pitch = tones[_closest(tones, pitch)]
            touch = swell * (_ACCENT if step == 0 else 0.92 if strong else _PLAIN)
            page.add(bar, step, steps, pitch, touch, hold)
        pitch += round((centre - pitch) * 0.3)  # drift home
    return page.done()


def accompaniment(
    form: Form,
    player: Instrument,
    rng: Random,
    centre: int,
    gain: float = 0.75,
    *,
    answers: bool = False,
) -> tuple[Note, ...]:
    """Chords in one of the style's patterns; single tones where the player has only one voice.

    ``answers`` takes the patterns of the style's second player.
    """
    page = _Page(form, rng, gain)
    patterns = [_scan(text) for text in (form.style.answers if answers else form.style.comps)]
    if player.slow:
        patterns = [[(0, form.style.steps, "x")]]
    pattern = choose(rng, patterns)
    other = choose(rng, patterns) if rng.random() < 0.3 else pattern
    strum = 0.15 if player.family == "guitar" else 0.0
    for bar in range(form.bars):
        for step, steps, mark in other if bar % 4 == 3 else pattern:
            chord = form.chord(bar, step)
            tones = voicing(chord, centre, player)
            if not tones:
                continue
            if mark in _SCALE_STEPS:
                ladder = _near(form.scale(chord), tones[0], player.high)
                tones = [ladder[min(_SCALE_STEPS.index(mark), len(ladder) - 1)]]
            elif mark.isdigit():
                tones = [tones[int(mark) % len(tones)]]
            elif not player.chords:
                tones = tones[-1:]
            elif mark == "u":
                tones = tones[1:] or tones
            touch = _ACCENT if step == 0 else _PLAIN
            for i, pitch in enumerate(tones):
                page.add(bar, step + i * strum, max(steps - i * strum, 0.5), pitch, touch)
    return page.done()


def held(form: Form, player: Instrument, rng: Random, gain: float = 0.6) -> tuple[Note, ...]:
    """One long chord for each harmony."""
    page = _Page(form, rng, gain)
    centre = min(max(60, player.low + 7), player.high - 8)
    for bar, chords in enumerate(form.chords):
        for first, end, chord in chords:
            tones = voicing(chord, centre, player, 3)
            for pitch in tones if player.chords else tones[-1:]:
                page.add(bar, first, end - first, pitch, _PLAIN, 0.99)
    return page.done()


def bass_line(form: Form, player: Instrument, rng: Random, gain: float = 0.95) -> tuple[Note, ...]:
    """A bass in one of the style's patterns, leading into the next root where it says so."""
    page = _Page(form, rng, gain)
    pattern = _scan(choose(rng, form.style.basses))
    floor = player.low + 2
    for bar in range(form.bars):
        for step, steps, mark in pattern:
            chord = form.chord(bar, step)
            root = floor + (chord.root - floor) % 12
            third, fifth = (chord.root + 4) % 12, (chord.root + 7) % 12
            if len(chord.tones) > 2:
                third, fifth = chord.tones[1], chord.tones[2]
            above = {"r": 0, "3": (third - root) % 12, "5": (fifth - root) % 12, "8": 12}
            if mark == "w":
                pitch = root if step == 0 else choose(rng, _near(chord.tones, root, root + 12))
            elif mark == "a":
                following = form.chord(min(bar + 1, form.bars - 1), 0).root
                target = floor + (following - floor) % 12
                steps_there = [tone for tone in form.scale(chord) if tone != following]
                ladder = _near(steps_there, target - 3, target + 3)
                pitch = choose(rng, ladder) if ladder else root
            else:
                pitch = root + above[mark]
            while pitch > player.high:
                pitch -= 12
            while pitch < player.low:
                pitch += 12
            page.add(bar, step, steps, pitch, _ACCENT if step == 0 else _PLAIN, 0.9)
    return page.done()


def drum_beat(form: Form, rng: Random, gain: float = 0.95) -> tuple[Note, ...]:
    """A groove with a fill at the end of some phrases and a crash after it."""
    page = _Page(form, rng, gain)
    grooves = form.style.drums or ({"kick": "x" + "." * (form.style.steps - 1)},)
    groove = choose(rng, grooves)
    lines = [(DRUM_KEYS[name], pattern) for name, pattern in groove.items()]
    fills = rng.random() < 0.7 and form.style.steps >= 12 and form.style.fills
    touch = {"X": _ACCENT, "x": 0.78, "o": _SOFT}
    for bar in range(form.bars):
        filling = fills and bar % 4 == 3
        from_step = form.style.steps - (4 if filling else 0)
        for key, pattern in lines:
            for step, mark in enumerate(pattern[:from_step]):
                if mark in touch:
                    page.add(bar, step, 1, key, touch[mark], 1.0)
        if filling:
            run = choose(rng, (("snare",), ("snare", "tomhigh", "tommid", "tomlow"), ("tomlow",)))
            for i in range(4):
                if rng.random() < 0.85:
                    name = run[i * len(run) // 4]
                    page.add(bar, from_step + i, 1, DRUM_KEYS[name], 0.8 + 0.06 * i, 1.0)
        if fills and bar and bar % 4 == 0:
            page.add(bar, 0, 2, DRUM_KEYS["crash"], _PLAIN, 1.0)
    return page.done()


def ended(form: Form, notes: tuple[Note, ...], last: int) -> tuple[Note, ...]:
    """The notes up to the first beat of bar ``last``, whose own ring out to the end of the bar."""
    bar = form.step * form.style.steps
    start = form.origin + bar * last
    first = start + 0.6 * form.step
    end = min(start + bar, form.seconds)
    return tuple(
        note._replace(duration=end - note.start) if note.start > start - 0.6 * form.step else note
        for note in notes
        if note.start < first
    )
