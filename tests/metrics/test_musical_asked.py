"""What prompts ask for, and whether music that is known to follow them is found to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.base import NotComputed, Score
from musictune.metrics.features import Features
from musictune.metrics.musical import KEYS, key_of_chroma
from musictune.metrics.musical_asked import (
    FollowsKey,
    FollowsTempo,
    KeyCloseness,
    TempoCloseness,
    asked,
    asked_scores,
)

RATE = 32_000


def row(tempo: float, key: str) -> np.ndarray:
    """What `MusicalListener` would hear: chroma that fit one key best."""
    tonic, minor = KEYS.index(key) % 12, KEYS.index(key) >= 12
    chroma = np.zeros(12)
    chroma[[tonic, (tonic + 3 + (not minor)) % 12, (tonic + 7) % 12]] = 1.0, 0.7, 0.8
    assert key_of_chroma(chroma)[0] == key
    return np.array([[tempo, 2.0, *chroma / chroma.sum()]], np.float32)


def clicks(bpm: float, caption: str) -> Clip:
    rng = np.random.default_rng(0)
    wave = np.zeros(8 * RATE, np.float32)
    burst = 0.5 * rng.uniform(-1, 1, 1600) * np.exp(-np.arange(1600) / 300)
    for beat in np.arange(0.1, 7.9, 60 / bpm):
        wave[round(beat * RATE) :][:1600] += burst
    return Clip(torch.from_numpy(wave)[None], RATE, caption)


def chord(pitches: tuple[int, ...], caption: str) -> Clip:
    time = np.arange(3 * RATE) / RATE
    wave = sum(np.sin(2 * np.pi * 440 * 2 ** ((p - 69) / 12) * time) for p in pitches)
    return Clip(torch.from_numpy(0.1 * np.asarray(wave, np.float32))[None], RATE, caption)


@pytest.mark.parametrize(
    ("prompt", "tempo", "key", "rest"),
    [
        ("piano solo in A minor, 70 bpm", 70, "A minor", "piano solo …, …"),
        ("techno, 128 BPM, C minor", 128, "C minor", "techno, …, …"),
        ("house at 124bpm in F#m", 124, "F# minor", "house at … …"),
        ("e-flat major waltz, tempo: 90.5", 90.5, "D# major", "… waltz, …"),
        ("B♭ major, 96 beats per minute", 96, "A# major", "…, …"),
        ("key of a minor", None, "A minor", "…"),
        ("slow tune in a minor", None, "A minor", "slow tune …"),
        ("Fb major", None, "E major", "…"),
        ("120 bpm drums, 120 bpm", 120, None, "… drums, …"),
    ],
)
def test_what_a_prompt_names(prompt: str, tempo: float | None, key: str | None, rest: str):
    found = asked(prompt)
    assert (found.tempo, found.key, found.rest) == (tempo, key, rest)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a slow piano",
        "a minor setback",
        "A major label's sound",
        "in a minor way",
        "sad minor song",
        "I am happy",
        "Am F C G",
        "in C",
        "808 drums",
        "from the 90s",
        "5 bpm",
        "9999 bpm",
        "12120 bpm",
        "90-120 bpm",
        "90 to 120 bpm",
        "90 bpm, then 120 bpm",
        "first C major, then D major",
        "cab major",
    ],
)
def test_what_names_neither_or_several(prompt: str):
    found = asked(prompt)
    assert (found.tempo, found.key) == (None, None)


@given(st.integers(20, 400), st.sampled_from(KEYS))
def test_every_tempo_and_key_is_read_back(tempo: int, key: str):
    for prompt in (f"a lute in {key}, {tempo} bpm", f"{tempo}bpm lute, {key}"):
        found = asked(prompt)
        assert (found.tempo, found.key) == (tempo, key)
    assert asked(f"a lute in {key}, {tempo} bpm").rest == "a lute …, …"


@given(st.text(max_size=60))
def test_any_text_is_read(prompt: str):
    found = asked(prompt)
    assert found.tempo is None or 20 <= found.tempo <= 400
    assert found.key is None or found.key in KEYS


PROMPTS = ["a in A minor, 100 bpm", "b in C major, 140 bpm", "c", "d in F# major"]


def test_scores_of_what_was_asked_and_chance_in_closed_form():
    rows = [row(50, "A minor"), row(120, "G major"), row(140, "C major"), row(140, "C major")]
    scores = asked_scores(Features.of(rows), PROMPTS)
    tempo, key = scores["tempo_followed"], scores["key_followed"]
    assert isinstance(tempo, Score) and isinstance(key, Score)
    assert (tempo.value, tempo.n, tempo.better) == (0.5, 2, "higher")
    # 100 bpm against the three other clips: none; 140 against them: two.
    assert tempo.note.startswith(f"chance {2 / 6:.3f}")
    assert (key.value, key.n) == (pytest.approx((1.0 + 0.5 + 0.0) / 3), 3)
    # A minor against G, C, C; C major against A minor, C, C; F# major against A minor, G, C.
    assert key.note.startswith(f"chance {(0.3 * 2 + 0.3 + 1 + 1) / 9:.3f}")
    assert tempo.low <= tempo.value <= tempo.high


def test_clips_of_one_prompt_count_as_one():
    rows = [row(100, "C major"), row(100, "C major"), row(100, "C major"), row(77, "C major")]
    scores = asked_scores(Features.of(rows), ["x 100 bpm"] * 3 + ["x 140 bpm"])
    tempo = scores["tempo_followed"]
    assert isinstance(tempo, Score) and (tempo.value, tempo.n) == (0.5, 4)
    alone = asked_scores(Features.of(rows[:2]), ["x 100 bpm"] * 2)["tempo_followed"]
    assert isinstance(alone, Score) and "chance is not known" in alone.note
    assert alone.low != alone.low


def test_without_anything_asked_there_is_no_score():
    scores = asked_scores(Features.of([row(100, "C major")]), ["a lute"])
    for what in ("tempo", "key"):
        missing = scores[f"{what}_followed"]
        assert isinstance(missing, NotComputed) and f"names one {what}" in missing.reason
    with pytest.raises(InputError, match="2 prompts do not fit 1 clips"):
        asked_scores(Features.of([row(100, "C major")]), ["a", "b"])


def test_silence_does_not_follow():
    scores = asked_scores(Features.of([np.zeros((1, 14), np.float32)]), ["100 bpm in C major"])
    for score in scores.values():
        assert isinstance(score, Score) and score.value == 0


def test_rewards_hear_what_was_asked():
    reward = FollowsTempo()([clicks(100, "100 bpm"), clicks(100, "50 bpm"), clicks(100, "130 bpm")])
    assert reward.dtype == torch.float32 and reward.tolist() == [1, 1, 0]
    c, g = (60, 64, 67), (55, 59, 62)
    found = FollowsKey()([chord(c, "C major"), chord(g, "C major"), chord(c, "F# major")])
    assert found.tolist() == [1, 0.5, 0]
    silent = Clip(torch.zeros(1, 4 * RATE), RATE, "in C major, 100 bpm")
    assert FollowsTempo()([silent]).tolist() == FollowsKey()([silent]).tolist() == [0]


def test_a_reward_needs_a_caption_that_asks():
    with pytest.raises(InputError, match="does not name one tempo"):
        FollowsTempo()([clicks(100, "fast clicks")])
    with pytest.raises(InputError, match="does not name one key"):
        FollowsKey()([clicks(100, "120 bpm")])


def test_closeness_rises_towards_what_was_asked():
    asked_for = ["100 bpm", "50 bpm", "110 bpm", "120 bpm", f"{100 * 2**0.5:.1f} bpm"]
    tempo = TempoCloseness()([clicks(100, text) for text in asked_for])
    assert tempo[0] == tempo[1] == 1
    assert (tempo[1:].diff() < 0).all() and tempo[-1] < 0.1
    c = (60, 64, 67)
    key = KeyCloseness()([chord(c, f"in {name}") for name in ("C major", "G major", "F# major")])
    assert key[0] > 0.5 and (key.diff() < 0).all() and key[-1] < 0
    silent = Clip(torch.zeros(1, 4 * RATE), RATE, "in C major, 100 bpm")
    assert TempoCloseness()([silent]).tolist() == [0] and KeyCloseness()([silent]).tolist() == [-1]
    for reward in (TempoCloseness(), KeyCloseness()):
        with pytest.raises(InputError, match="does not name one"):
            reward([clicks(100, "fast clicks")])
