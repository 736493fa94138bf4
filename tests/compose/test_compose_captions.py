"""Captions say only what is true of the music."""

from __future__ import annotations

import re

import numpy as np
import pytest

from musictune.compose.captions import TEMPO_WORDS, moods_of, tempo_words
from musictune.compose.instruments import DRUM_NAMES, HELD_OUT, INSTRUMENTS
from musictune.compose.notes import Truth
from musictune.compose.score import write_score
from musictune.compose.styles import STYLES

_NAMES = {item.name: item.names for item in [*INSTRUMENTS.values(), *HELD_OUT.values()]}
_NAMES["drums"] = DRUM_NAMES


@pytest.fixture(scope="module")
def truths() -> list[Truth]:
    return [write_score(seed, seconds=4).truth for seed in range(1000)]


def _says(caption: str, phrase: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", caption) is not None


def test_every_caption_names_the_lead_or_the_style(truths: list[Truth]) -> None:
    lead_named = 0
    for truth in truths:
        assert len(truth.captions) >= 3
        for caption in truth.captions:
            named = any(_says(caption, name) for name in _NAMES[truth.lead])
            styled = any(_says(caption, name) for name in STYLES[truth.style].names)
            assert named or styled, caption
            lead_named += named
    assert lead_named > 0.9 * sum(len(truth.captions) for truth in truths)


def test_no_caption_names_an_instrument_that_does_not_play(truths: list[Truth]) -> None:
    every = sorted({name for names in _NAMES.values() for name in names}, key=len, reverse=True)
    any_name = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, every))})(?![\w-])")
    for truth in truths:
        allowed = {name for player in truth.instruments for name in _NAMES[player]}
        allowed |= set(STYLES[truth.style].names)
        for caption in truth.captions:
            rest = caption
            for phrase in sorted(allowed, key=len, reverse=True):
                rest = re.sub(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", " ", rest)
            rest = re.sub(r"(no|without) drums", " ", rest)
            assert not any_name.findall(rest), caption


def test_tempo_words_and_figures_fit(truths: list[Truth]) -> None:
    every = {word for _, words in TEMPO_WORDS for word in words}
    said = 0
    for truth in truths:
        fitting = set(tempo_words(truth.tempo))
        for caption in truth.captions:
            for word in sorted(every - fitting, key=len):
                longer = [other for other in fitting if word in other]
                bare = caption
                for other in longer:
                    bare = bare.replace(other, " ")
                assert not _says(bare, word), (caption, truth.tempo)
            said += any(_says(caption, word) for word in fitting)
            figure = re.search(r"(\d+) bpm", caption)
            assert figure is None or int(figure[1]) == round(truth.tempo)
    assert said > 0.5 * sum(len(truth.captions) for truth in truths)


def test_keys_and_missing_drums_are_true(truths: list[Truth]) -> None:
    keyed = drumless = 0
    for truth in truths:
        for caption in truth.captions:
            found = re.findall(r"[A-G]#? (?:major|minor)", caption)
            assert all(key == truth.key for key in found)
            keyed += len(found)
            if "no drums" in caption or "without drums" in caption:
                assert not truth.has_drums
                drumless += 1
    assert keyed > 300 and drumless > 30


def test_captions_are_plain_lower_case(truths: list[Truth]) -> None:
    for truth in truths:
        for caption in truth.captions:
            plain = re.sub(r"[A-G]#? (major|minor)", "", caption)
            assert plain == plain.lower()
            assert "  " not in caption and caption == caption.strip(" ,")


@pytest.mark.parametrize(
    ("bpm", "word"),
    [(60, "slow"), (84.9, "slow"), (85, "mid-tempo"), (120, "mid-tempo"), (121, "fast")]
    + [(150, "fast"), (151, "very fast")],
)
def test_tempo_thresholds(bpm: float, word: str) -> None:
    assert tempo_words(bpm)[0] == word


def test_moods_follow_the_music() -> None:
    def drawn(**how: object) -> set[str]:
        rng = np.random.default_rng(0)
        return {word for _ in range(200) for word in moods_of(rng, **how)}

    slow = {"tempo": 65.0, "loudness": 0.2, "register": 0.5, "drums": False}
    quick = {"tempo": 150.0, "loudness": 0.9, "register": 0.5, "drums": True}
    sad, calm = drawn(mode="minor", **slow), drawn(mode="major", **slow)
    intense, happy = drawn(mode="minor", **quick), drawn(mode="major", **quick)
    assert "sad" in sad and "calm" in calm and "intense" in intense and "happy" in happy
    assert "happy" not in sad | calm | intense
    assert "sad" not in calm | happy | intense
