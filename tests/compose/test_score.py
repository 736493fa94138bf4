"""What the composer writes: the same for a seed, inside its window, true to its own labels."""

from __future__ import annotations

import hashlib
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
from musictune.compose.notes import Note, Score
from musictune.compose.score import write_score
from musictune.compose.style import BEATS, DRUM_KEYS, STEPS
from musictune.compose.styles import HELD_OUT_STYLES, STYLES, find_style
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
    textures = [
        write_score(1_000_000 + seed, seconds=2.0, texture=texture)
        for texture in ("solo", "duo", "band")
        for seed in range(1000)
    ]
    for score in [*scores, *textures]:
        assert not {part.program for part in score.parts if part.role != "drums"} & set(HELD_OUT)
        assert not names & set(score.truth.instruments)
        assert score.truth.style not in HELD_OUT_STYLES
    drawn = {name for style in STYLES.values() for name in style.names}
    held_out = {name for style in HELD_OUT_STYLES.values() for name in style.names}
    assert not drawn & held_out
    assert not set(HELD_OUT) & set(INSTRUMENTS)
    assert len(STYLES) == 24 and len(HELD_OUT_STYLES) == 10


def test_seeds_keep_their_scores() -> None:
    """Base models were trained on what these seeds stand for."""
    digest = hashlib.sha256()
    for seed in range(1_000_000, 1_000_150):
        score = write_score(seed)
        notes = [(part.role, *_rounded(note)) for part in score.parts for note in part.notes]
        digest.update(repr((notes, score.truth.captions)).encode())
    assert digest.hexdigest()[:16] == "329e34c35e1f9cca"


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
        bar = 60 / score.truth.tempo * BEATS[score.truth.metre]
        end = min(score.seconds, score.truth.downbeats[-1] + bar)  # some clips end before
        assert chords[0][0] == 0
        assert chords[-1][1] in (score.seconds, pytest.approx(end, abs=1e-3))
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
        ({"style": "polka"}, "'polka'"),
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


def test_some_clips_end_at_home_and_go_silent() -> None:
    endings = 0
    for seed in range(400):
        score = write_score(seed, seconds=10.0, texture="band")
        truth = score.truth
        # After an ending no beat follows the last downbeat.
        bar = BEATS[truth.metre] * 60 / truth.tempo
        if score.seconds - truth.beats[-1] < 1.05 * 60 / truth.tempo:
            continue
        endings += 1
        last = truth.downbeats[-1]
        assert last == truth.beats[-1]
        notes = [note for part in score.parts for note in part.notes]
        tonic, mode = parse_key(truth.key)
        home = roman("I" if mode == "major" else "i", tonic, mode)
        assert (
            next(name for start, end, name in truth.chords if start <= last + 0.01 < end)
            == home.name
        )
        assert all(note.start < last + 0.15 for note in notes)
        assert all(note.start + note.duration < last + bar + 0.05 for note in notes)
        for part in score.parts:
            final = [note for note in part.notes if note.start > last - 0.05]
            if part.role != "drums":
                assert {note.pitch % 12 for note in final} <= set(home.tones)
            if part.role == "bass" and final:
                assert final[-1].pitch % 12 == tonic
    assert 20 < endings < 90  # about one in eight


@pytest.mark.parametrize("name", [*STYLES, *HELD_OUT_STYLES])
def test_patterns_fill_a_bar_and_harmonies_are_readable(name: str) -> None:
    style = find_style(name)
    steps = STEPS[style.metre]
    lines = [*style.comps, *style.answers, *style.basses]
    lines += [line for beat in style.drums for line in beat.values()]
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


def _rounded(note: Note) -> tuple[float, float, int, int]:
    return round(note.start, 5), round(note.duration, 5), note.pitch, note.velocity
