"""What the composer writes: the same for a seed, inside its window, true to its own labels."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from musictune.compose.harmony import SCALES, parse_key, roman
from musictune.compose.instruments import (
    DRUM_KITS,
    FAMILIES,
    HELD_OUT,
    INSTRUMENTS,
    instrument,
)
from musictune.compose.notes import Score
from musictune.compose.score import write_score
from musictune.compose.style import BEATS, DRUM_KEYS, STEPS
from musictune.compose.styles import HELD_OUT_STYLES, STYLES
from musictune.errors import InputError


@pytest.fixture(scope="module")
def scores() -> list[Score]:
    return [write_score(seed, seconds=8.0) for seed in range(2000)]


def test_a_seed_is_a_score(scores: list[Score]) -> None:
    assert [write_score(seed, seconds=8.0) for seed in range(50)] == scores[:50]
    assert len({score.parts for score in scores}) == len(scores)


def test_notes_lie_inside_the_clip_and_the_instrument(scores: list[Score]) -> None:
    for score in scores:
        for part in score.parts:
            assert part.notes
            assert list(part.notes) == sorted(part.notes)
            for note in part.notes:
                assert note.start >= 0 and note.duration > 0
                assert note.start + note.duration <= score.seconds + 1e-9
                assert 1 <= note.velocity <= 127
                if part.role == "drums":
                    assert note.pitch in DRUM_KEYS.values()
                else:
                    player = instrument(part.program)
                    assert player.low <= note.pitch <= player.high


def test_no_note_cuts_the_next_of_its_pitch(scores: list[Score]) -> None:
    for score in scores[:300]:
        for part in score.parts:
            last: dict[int, float] = {}
            for note in part.notes:
                assert note.start >= last.get(note.pitch, 0.0) - 1e-9
                last[note.pitch] = note.start + note.duration


def test_held_out_sounds_and_styles_are_never_drawn(scores: list[Score]) -> None:
    names = {item.name for item in HELD_OUT.values()}
    for score in scores:
        assert not {part.program for part in score.parts if part.role != "drums"} & set(HELD_OUT)
        assert not names & set(score.truth.instruments)
        assert score.truth.style not in HELD_OUT_STYLES
    assert not HELD_OUT_STYLES & {name for style in STYLES.values() for name in style.names}
    assert not set(HELD_OUT) & set(INSTRUMENTS)


def test_leads_and_textures_are_spread_as_promised(scores: list[Score]) -> None:
    leads = Counter(score.truth.lead_family for score in scores)
    for family in FAMILIES:
        assert 0.6 < leads[family] * len(FAMILIES) / len(scores) < 1.4, family
    assert leads["drums"] > 40
    textures = Counter(score.truth.texture for score in scores)
    for texture, share in (("solo", 0.4), ("duo", 0.25), ("band", 0.35)):
        assert abs(textures[texture] / len(scores) - share) < 0.05
    assert {score.truth.style for score in scores} == set(STYLES)
    played = {part.program for score in scores for part in score.parts if part.role != "drums"}
    assert played == set(INSTRUMENTS)


def test_textures_have_their_number_of_players(scores: list[Score]) -> None:
    for score in scores:
        players = len(score.truth.instruments)
        low, high = {"solo": (1, 1), "duo": (2, 2), "band": (2, 5)}[score.truth.texture]
        assert low <= players <= high
        assert score.truth.has_drums == ("drums" in score.truth.instruments)
        assert score.truth.lead in score.truth.instruments


def test_beats_follow_the_tempo(scores: list[Score]) -> None:
    for score in scores[:400]:
        truth = score.truth
        gaps = [b - a for a, b in pairwise(truth.beats)]
        assert gaps and all(abs(gap - 60 / truth.tempo) < 1e-3 for gap in gaps)
        assert set(truth.downbeats) <= set(truth.beats)
        bar = BEATS[truth.metre] * 60 / truth.tempo
        assert all(abs(b - a - bar) < 1e-3 for a, b in pairwise(truth.downbeats))
        assert 0 <= truth.beats[0] < 60 / truth.tempo + 1e-3
        assert truth.beats[-1] < score.seconds


def test_kicks_of_techno_fall_on_the_beats() -> None:
    score = write_score(3, style="techno", texture="band", tempo=130)
    drums = next(part for part in score.parts if part.role == "drums")
    kicks = [note.start for note in drums.notes if note.pitch == DRUM_KEYS["kick"]]
    assert len(kicks) >= 15
    assert all(min(abs(kick - beat) for beat in score.truth.beats) < 0.02 for kick in kicks)


def test_chords_cover_the_clip_without_gaps(scores: list[Score]) -> None:
    for score in scores[:400]:
        chords = score.truth.chords
        if score.truth.lead == "drums":
            assert chords == () and score.truth.key == ""
            continue
        assert chords[0][0] == 0 and chords[-1][1] == score.seconds
        assert all(abs(a[1] - b[0]) < 1e-3 and a[2] != b[2] for a, b in pairwise(chords))


def test_tunes_keep_to_the_key(scores: list[Score]) -> None:
    shares = []
    for score in scores[:500]:
        for part in score.parts:
            if part.role != "melody":
                continue
            tonic, mode = parse_key(score.truth.key)
            scale = {(tonic + step) % 12 for step in SCALES[mode]}
            inside = sum(note.pitch % 12 in scale for note in part.notes)
            shares.append(inside / len(part.notes))
    assert sum(shares) / len(shares) > 0.9
    assert sorted(shares)[len(shares) // 20] > 0.6


@pytest.mark.parametrize("seed", range(6))
def test_wishes_are_kept(seed: int) -> None:
    score = write_score(
        seed, seconds=7.5, program=107, style="funk", texture="band", tempo=111, key="Eb minor"
    )
    truth = score.truth
    assert score.seconds == 7.5 and truth.tempo == 111 and truth.key == "D# minor"
    assert (truth.lead, truth.style, truth.texture) == ("koto", "funk", "band")
    assert next(part.program for part in score.parts if part.role == "melody") == 107


def test_only_the_given_programs_play() -> None:
    wanted = {0, 33, 73, 48}
    for seed in range(60):
        score = write_score(seed, programs=sorted(wanted))
        assert {part.program for part in score.parts if part.role != "drums"} <= wanted


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"style": "tango"}, "'tango'"),
        ({"texture": "choir"}, "'choir'"),
        ({"tempo": 900.0}, "900"),
        ({"key": "H minor"}, "'H minor'"),
        ({"key": "A"}, "'A'"),
        ({"program": 127}, "127"),
        ({"seconds": 0.0}, "seconds 0"),
        ({"tempo": float("nan")}, "nan"),
    ],
)
def test_bad_wishes_are_refused_with_the_value(choices: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        write_score(0, **choices)


@pytest.mark.parametrize("name", list(STYLES))
def test_patterns_fill_a_bar_and_harmonies_are_readable(name: str) -> None:
    style = STYLES[name]
    steps = STEPS[style.metre]
    lines = [*style.comps, *style.basses, *(line for beat in style.drums for line in beat.values())]
    assert {len(line) for line in lines} == {steps}
    assert all(drum in DRUM_KEYS for beat in style.drums for drum in beat)
    assert set(style.kits) <= set(DRUM_KITS) and set(style.leads) <= set(FAMILIES)
    assert {*style.chords, *style.bass, *style.pads} <= set(INSTRUMENTS)
    for mode, rows in (("major", style.in_major), ("minor", style.in_minor)):
        for row in rows:
            for numeral in row.replace("/", " ").split():
                assert len(roman(numeral, 0, mode).tones) >= 2


def test_numerals_name_the_right_chords() -> None:
    a_minor = [roman(text, 9, "minor").name for text in ("i", "iv7", "V7", "VI", "iim7b5")]
    assert a_minor == ["Am", "Dm7", "E7", "F", "Bm7b5"]
    in_g = [roman(text, 7, "major").name for text in ("I", "ii7", "V7", "bVII", "IVmaj7")]
    assert in_g == ["G", "Am7", "D7", "F", "Cmaj7"]
