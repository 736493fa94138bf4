"""Agreement of pairs: closed forms, clips with known differences, and mir_eval's own fixtures."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from musictune.audio import Clip
from musictune.metrics.base import NotComputed, Score
from musictune.metrics.musical import KEYS, NO_KEY
from musictune.metrics.musical_agreement import (
    AGREEMENT,
    beat_score,
    chroma_score,
    key_score,
    musical_agreement,
    musical_scores,
    onset_score,
    tempo_score,
)

RATE = 32_000


def tune(bpm: float = 120.0, tonic: int = 0, seconds: float = 8.0, seed: int = 0) -> Clip:
    """Chords I IV V I struck on every beat, a click of noise with each."""
    rng = np.random.default_rng(seed)
    wave = np.zeros(round(seconds * RATE))
    time = np.arange(round(60 / bpm * RATE)) / RATE
    for beat, start in enumerate(np.arange(0.1, seconds, 60 / bpm)):
        root = tonic + (0, 0, 5, 5, 7, 7, 0, 0)[beat % 8]
        chord = [440 * 2 ** ((root + step - 9) / 12) for step in (-12, 0, 4, 7)]
        sound = sum(np.sin(2 * np.pi * h * k * time) / k for h in chord for k in (1, 2, 3))
        note = 0.05 * np.asarray(sound) * np.exp(-4 * time)
        note[:800] += 0.3 * rng.uniform(-1, 1, 800) * np.exp(-np.arange(800) / 200)
        first = round(start * RATE)
        wave[first : first + len(note)] += note[: len(wave) - first]
    return Clip(torch.from_numpy(wave.astype(np.float32))[None], RATE)


def silence(seconds: float = 8.0) -> Clip:
    return Clip(torch.zeros(1, round(seconds * RATE)), RATE)


def test_a_copy_agrees_in_everything_at_any_rate():
    clip = tune()
    agreement = musical_agreement(clip, clip)
    assert list(agreement) == list(AGREEMENT)
    assert agreement == pytest.approx(dict.fromkeys(AGREEMENT, 1.0))
    moved = musical_agreement(clip.resample(44_100), clip)
    assert min(moved.values()) > 0.98


def test_a_transposed_tune_loses_its_key_and_harmony_and_keeps_its_rhythm():
    found = musical_agreement(tune(tonic=6), tune())
    assert found["key_agreement"] == 0
    assert found["chroma_agreement"] < 0.6
    assert found["tempo_agreement"] == 1
    assert found["onset_agreement"] > 0.8 and found["beat_agreement"] > 0.8
    fifth = musical_agreement(tune(tonic=7), tune())
    assert fifth["key_agreement"] == 0.5  # mir_eval's score for the fifth above


def test_another_tempo_loses_the_rhythm_and_keeps_the_key():
    found = musical_agreement(tune(bpm=150), tune(bpm=110))
    assert found["tempo_agreement"] == found["tempo_octave_agreement"] == 0
    assert found["onset_agreement"] < 0.5 and found["beat_agreement"] < 0.5
    assert found["key_agreement"] == 1


def test_only_the_shared_length_is_compared():
    clip = tune(seconds=10.0)
    assert musical_agreement(clip.crop(0, 6.0), clip) == pytest.approx(
        dict.fromkeys(AGREEMENT, 1.0)
    )


def test_what_cannot_be_compared_is_not_a_number():
    for reference in (silence(), tune().crop(0, 1.5)):
        assert all(math.isnan(value) for value in musical_agreement(tune(), reference).values())
    # Silence where music was asked for is a failure, not an unknown.
    missing = musical_agreement(silence(), tune())
    assert missing == dict.fromkeys(AGREEMENT, 0.0)


def test_scores_of_a_set_with_what_strangers_reach():
    pairs = [(tune(b, t), tune(b, t)) for b, t in ((100, 0), (125, 6), (150, 3))]
    scores = musical_scores(iter(pairs))
    assert list(scores) == list(AGREEMENT)
    for score in scores.values():
        assert isinstance(score, Score)
        assert (score.value, score.n, score.better) == (pytest.approx(1.0), 3, "higher")
        assert 0.4 < score.low < score.high == pytest.approx(1.0)  # three successes prove little
    key = scores["key_agreement"]
    assert isinstance(key, Score) and key.note == "0.000 with the reference of another pair"
    again = musical_scores(pairs)
    assert again == scores


def test_a_set_says_what_it_left_out_and_what_it_could_not_compute():
    scores = musical_scores([(tune(), tune()), (tune(), silence())])
    tempo = scores["tempo_agreement"]
    assert isinstance(tempo, Score)
    assert (tempo.n, tempo.value) == (1, 1) and math.isnan(tempo.low)
    assert "1 of 2 pairs left out" in tempo.note
    for pairs, words in (
        ([], "no pairs"),
        ([(silence(), silence())], "not silent"),
        ([(tune(seconds=1.0), tune())], "2 s or more"),
    ):
        for missing in musical_scores(pairs).values():
            assert isinstance(missing, NotComputed) and words in missing.reason


def test_tempo_score_holds_the_tolerance_and_octaves():
    assert tempo_score(100, 104) == 1 and tempo_score(100, 104.1) == 0
    assert tempo_score(100, 107, tolerance=0.08) == 1
    assert tempo_score(100, 50) == 0 and tempo_score(100, 50, octaves=True) == 1
    assert tempo_score(100, 300, octaves=True) == 0
    assert math.isnan(tempo_score(math.nan, 100)) and tempo_score(100, math.nan) == 0


@pytest.mark.parametrize(
    ("reference", "heard", "score"),
    [
        ("C major", "C major", 1.0),
        ("C major", "G major", 0.5),
        ("G major", "C major", 0.0),  # only the fifth above is near
        ("C major", "A minor", 0.3),
        ("A minor", "C major", 0.3),
        ("C major", "C minor", 0.2),
        ("C major", "F# major", 0.0),
        ("C major", NO_KEY, 0.0),
    ],
)
def test_key_score_is_weighted(reference: str, heard: str, score: float):
    assert key_score(reference, heard) == score


def test_without_a_reference_key_there_is_no_score():
    assert math.isnan(key_score(NO_KEY, "C major")) and math.isnan(key_score(NO_KEY, NO_KEY))


@given(st.sampled_from(KEYS), st.sampled_from(KEYS), st.integers(0, 11))
def test_key_score_does_not_change_when_both_are_transposed(a: str, b: str, shift: int):
    def moved(key: str) -> str:
        place = KEYS.index(key)
        return KEYS[place // 12 * 12 + (place + shift) % 12]

    assert key_score(moved(a), moved(b)) == key_score(a, b)
    assert key_score(a, a) == 1


def test_onsets_and_beats_match_one_to_one_within_their_windows():
    times = np.array([1.0, 2.0, 3.0, 6.0])
    assert onset_score(times, times + 0.049) == 1 and onset_score(times, times + 0.051) == 0
    assert beat_score(times, times + 0.069) == 1 and beat_score(times, times + 0.071) == 0
    # Two near one reference are one hit: precision 4/5, recall 1.
    assert onset_score(times, np.sort([*times, 1.01])) == pytest.approx(2 * 0.8 / 1.8)
    assert beat_score(times, times[:2]) == pytest.approx(2 / 3)
    assert beat_score(times, np.array([6.0]), trim=5.0) == 1
    for score in (onset_score, beat_score):
        assert math.isnan(score(np.empty(0), times)) and score(times, np.empty(0)) == 0
    assert math.isnan(beat_score(times, times, trim=7.0))


def test_chroma_score_in_closed_form():
    c, g, quiet = np.eye(12)[:, 0], np.eye(12)[:, 7], np.zeros(12)
    both = (c + g) / 2
    assert chroma_score(np.stack([c, g], 1), np.stack([c, c], 1)) == 0.5
    assert chroma_score(c[:, None], both[:, None]) == pytest.approx(1 / math.sqrt(2))
    # Silence against music is 0, against silence nothing.
    assert chroma_score(np.stack([c, c, quiet], 1), np.stack([c, quiet, quiet], 1)) == 0.5
    assert math.isnan(chroma_score(np.zeros((12, 3)), np.ones((12, 3))))


@given(arrays(np.float64, (12, 5), elements=st.floats(0, 1)), st.floats(0.1, 10))
def test_chroma_score_is_a_share_that_level_does_not_change(chroma: np.ndarray, gain: float):
    chroma[:, 0] += 0.1
    other = np.roll(chroma, 1, axis=0)
    score = chroma_score(chroma, other)
    assert 0 <= score <= 1
    assert chroma_score(other, chroma) == pytest.approx(score)
    assert chroma_score(chroma, other * gain) == pytest.approx(score, abs=1e-6)
    assert chroma_score(chroma, chroma) == pytest.approx(1)


DATA = os.environ.get("MUSICTUNE_MIR_EVAL_DATA", "")


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="MUSICTUNE_MIR_EVAL_DATA names no mir_eval tests/data folder")
@pytest.mark.parametrize("task", ["key", "tempo", "onset", "beat"])
def test_our_scores_are_those_of_mir_evals_fixtures(task: str):
    """Reference, estimate and output files as in mir_eval's repository, ``tests/data/<task>``."""
    import mir_eval

    outputs = sorted((Path(DATA) / task).glob("output*.json"))
    assert len(outputs) >= 4
    for path in outputs:
        wanted = json.loads(path.read_text())
        suffix = ".lab" if task == "tempo" else ".txt"
        number = path.stem.removeprefix("output")
        files = [str(path.with_name(f"{side}{number}{suffix}")) for side in ("ref", "est")]
        if task == "key":
            keys = [mir_eval.io.load_key(file) for file in files]
            assert key_score(*keys) == wanted["Weighted Score"]
        elif task == "onset":
            times = [mir_eval.io.load_events(file) for file in files]
            assert onset_score(*times) == pytest.approx(wanted["F-measure"], abs=1e-12)
        elif task == "beat":
            times = [mir_eval.io.load_events(file) for file in files]
            assert beat_score(*times, trim=5.0) == pytest.approx(wanted["F-measure"], abs=1e-12)
        else:
            rows = [mir_eval.io.load_delimited(file, [float] * 3) for file in files]
            tempi = [[row[0][0], row[1][0]] for row in rows]
            # Two tempi with weights are hit where either estimate hits each.
            hits = [
                max(tempo_score(asked, heard, tolerance=0.08) for heard in tempi[1])
                for asked in tempi[0]
            ]
            weight = rows[0][2][0]
            score = weight * hits[0] + (1 - weight) * hits[1]
            assert score == pytest.approx(wanted["P-score"], abs=1e-12)
            assert bool(max(hits)) == wanted["One-correct"]
            assert bool(min(hits)) == wanted["Both-correct"]
