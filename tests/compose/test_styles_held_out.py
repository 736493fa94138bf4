"""The held-out styles have the rhythm, scale and form they are known by."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from musictune.compose.harmony import parse_key
from musictune.compose.instruments import HELD_OUT
from musictune.compose.notes import Part, Score
from musictune.compose.score import write_score
from musictune.compose.style import DRUM_KEYS
from musictune.compose.styles import HELD_OUT_STYLES


def _bands(style: str, count: int = 25) -> list[Score]:
    return [write_score(seed, seconds=10.0, style=style, texture="band") for seed in range(count)]


def _parts(scores: list[Score], role: str) -> list[tuple[Score, Part]]:
    return [(score, part) for score in scores for part in score.parts if part.role == role]


def _steps(score: Score, part: Part, keys: set[int] | None = None) -> Counter[int]:
    """How often notes start on each sixteenth of a bar."""
    truth = score.truth
    beats = {"4/4": 4, "3/4": 3, "2/4": 2}[truth.metre]
    step = 60 / truth.tempo / 4
    start = truth.downbeats[0]
    return Counter(
        round((note.start - start) / step) % (4 * beats)
        for note in part.notes
        # A clip is a window: what began before it starts at its edge, off the grid.
        if note.start > 0 and (keys is None or note.pitch in keys)
    )


@pytest.mark.parametrize("name", list(HELD_OUT_STYLES))
def test_asked_for_by_name_and_called_by_it(name: str) -> None:
    said = captions = 0
    for score in _bands(name):
        truth = score.truth
        assert truth.style == name
        low, high = HELD_OUT_STYLES[name].tempo
        assert low <= truth.tempo <= high
        assert not set(HELD_OUT) & {part.program for part in score.parts if part.role != "drums"}
        said += sum(
            any(word in caption for word in HELD_OUT_STYLES[name].names)
            for caption in truth.captions
        )
        captions += len(truth.captions)
    assert said > 0.7 * captions


@pytest.mark.parametrize("name", [n for n, style in HELD_OUT_STYLES.items() if style.scale])
def test_tunes_keep_to_the_scale_of_the_style(name: str) -> None:
    inside = notes = 0
    for score, part in _parts(_bands(name), "melody"):
        tonic, mode = parse_key(score.truth.key)
        scale = HELD_OUT_STYLES[name].scale.get(mode)
        if scale is None:
            continue
        inside += sum((note.pitch - tonic) % 12 in scale for note in part.notes)
        notes += len(part.notes)
    assert notes > 100 and inside / notes > 0.9


def test_klezmer_has_the_augmented_second() -> None:
    """Freygish is told from major and minor by its low second under a major third."""
    for score, part in _parts(_bands("klezmer"), "melody"):
        tonic, mode = parse_key(score.truth.key)
        if mode == "major":
            steps = {(note.pitch - tonic) % 12 for note in part.notes}
            assert not steps & {2, 3, 6, 9, 11}
            return
    pytest.fail("no clip in freygish")


def test_gamelan_has_five_tones_in_tunes_and_chords() -> None:
    for score in _bands("gamelan"):
        pitches = {
            note.pitch % 12 for part in score.parts if part.role != "drums" for note in part.notes
        }
        assert len(pitches) <= 5


def test_gamelan_players_interlock() -> None:
    """Two players share the sixteenths between them, and neither plays them all."""
    both = 0
    for score in _bands("gamelan"):
        chords = [part for part in score.parts if part.role == "chords"]
        if len(chords) < 2:
            continue
        one, other = (set(_steps(score, part)) for part in chords)
        assert len(one) < 16 and len(other) < 16 and len(one | other) == 16
        both += 1
    assert both > 10


def test_reggae_skanks_off_the_beat_over_a_one_drop() -> None:
    scores = _bands("reggae")
    drops = 0
    for score, part in _parts(scores, "drums"):
        kicks = _steps(score, part, {DRUM_KEYS["kick"]})
        drops += set(kicks) == {8}
    assert drops > 8
    for score, part in _parts(scores, "chords"):
        steps = _steps(score, part)
        on_the_beat = sum(steps[step] for step in (0, 8))
        assert on_the_beat <= 0.1 * sum(steps.values())


def test_bossa_rim_plays_the_clave() -> None:
    claves = {(0, 3, 6, 10, 13), (2, 5, 8, 11, 14)}
    for score, part in _parts(_bands("bossa nova"), "drums"):
        found = _steps(score, part, {DRUM_KEYS["rim"]})
        if found:
            assert tuple(sorted(found)) in claves


def test_tango_accents_three_three_two_or_marches() -> None:
    found = Counter(
        tuple(sorted(_steps(score, part))) for score, part in _parts(_bands("tango"), "chords")
    )
    assert (0, 6, 12) in found and (0, 4, 8, 12) in found
    assert not _parts(_bands("tango"), "drums")


def test_ragtime_strides_under_syncopation() -> None:
    scores = _bands("ragtime")
    for score, part in _parts(scores, "chords"):
        if part.instrument in ("piano", "honky-tonk piano"):
            assert set(_steps(score, part)) <= {0, 2, 4, 6}
    steps: Counter[int] = Counter()
    for score, part in _parts(scores, "melody"):
        steps += _steps(score, part)
    off = sum(count for step, count in steps.items() if step % 2)
    assert off > 0.3 * sum(steps.values())


def test_afrobeat_guitars_fill_each_others_gaps() -> None:
    pairs = 0
    for score in _bands("afrobeat"):
        chords = [part for part in score.parts if part.role == "chords"]
        if len(chords) < 2:
            continue
        one, other = (set(_steps(score, part)) for part in chords)
        pairs += len(one & other) <= 3
    assert pairs > 8


def test_surf_drives_in_eighths() -> None:
    for score, part in _parts(_bands("surf"), "bass"):
        if part.instrument in ("bass guitar", "picked bass"):
            assert set(range(0, 16, 2)) <= set(_steps(score, part))


def test_chiptune_breaks_chords_into_sixteenths() -> None:
    for score, part in _parts(_bands("chiptune"), "chords"):
        if part.instrument in ("square lead", "saw lead"):
            notes = [note for note in part.notes if note.start > 0]
            apart = [b.start - a.start for a, b in pairwise(notes)]
            sixteenth = 15 / score.truth.tempo
            assert all(abs(gap - sixteenth) < 0.01 for gap in apart)


def test_musette_goes_in_three_with_the_bass_on_one() -> None:
    scores = _bands("waltz musette")
    assert {score.truth.metre for score in scores} == {"3/4"}
    for score, part in _parts(scores, "bass"):
        assert set(_steps(score, part)) <= {0, 8}
    accordions = sum("accordion" in score.truth.instruments for score in scores)
    assert accordions > 8
