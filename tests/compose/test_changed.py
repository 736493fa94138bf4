"""Changed captions are false in one fact; pairs differ in that fact alone."""

from __future__ import annotations

import re

import numpy as np
import pytest

from musictune.compose.captions import tempo_words
from musictune.compose.changed import FACTS, Fact, changed_caption, write_pairs
from musictune.compose.score import write_score

SECONDS = 5.0


def truth_of(seed: int, **choices: object) -> object:
    return write_score(seed, seconds=SECONDS, **choices).truth  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fact", "caption", "pattern"),
    [
        ("key mode", "a slow sad flute solo in A minor", "a slow sad flute solo in A major"),
        ("tempo word", "a slow-paced flute solo", r"a (mid-tempo|fast|very fast) flute solo"),
        ("tempo word", "solo flute, very fast", r"solo flute, (slow|mid-tempo|fast)"),
        ("instrument", "a slow solo on concert flute", r"a slow solo on (?!.*flute)[a-z -]+"),
    ],
)
def test_one_fact_is_made_false(fact: Fact, caption: str, pattern: str) -> None:
    truth = truth_of(0, program=73, texture="solo", key="A minor", tempo=70.0)
    for seed in range(5):
        changed = changed_caption(caption, truth, fact, np.random.default_rng(seed))  # type: ignore[arg-type]
        assert changed is not None
        assert re.fullmatch(pattern, changed)


def test_the_article_follows_the_word() -> None:
    truth = truth_of(0, program=73, texture="solo", key="A minor")
    made = {
        changed_caption("a flute solo", truth, "instrument", np.random.default_rng(seed))  # type: ignore[arg-type]
        for seed in range(80)
    }
    assert all(re.match(r"an [aeiou]|a [^aeiou]", text or "") for text in made)
    assert any((text or "").startswith("an ") for text in made)


@pytest.mark.parametrize("fact", FACTS)
def test_a_caption_that_does_not_state_the_fact_is_left_alone(fact: Fact) -> None:
    truth = truth_of(0, program=73, texture="solo")
    assert changed_caption("sad music", truth, fact, np.random.default_rng(0)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("fact", FACTS)
def test_pairs_differ_in_one_fact_and_their_captions_say_so(fact: Fact) -> None:
    for pair in write_pairs(fact, 12, 70_020_000, SECONDS):
        a, b = (score.truth for score in pair.scores)
        words = [caption.split() for caption in pair.captions]
        assert words[0] != words[1]
        assert (a.texture, a.style, a.metre) == (b.texture, b.style, b.metre)
        same = {
            "instrument": (a.tempo, a.key) == (b.tempo, b.key),
            "tempo word": (a.instruments, a.key) == (b.instruments, b.key),
            "key mode": (a.instruments, a.tempo) == (b.instruments, b.tempo),
        }
        assert same[fact]
        if fact == "key mode":
            assert sum(x != y for x, y in zip(*words, strict=True)) == 1
            assert all(
                truth.key in caption for truth, caption in zip((a, b), pair.captions, strict=True)
            )
        if fact == "tempo word":
            assert tempo_words(a.tempo) != tempo_words(b.tempo)
            assert any(word in pair.captions[0] for word in tempo_words(a.tempo))
            assert tempo_words(b.tempo)[0] in pair.captions[1]
            assert "bpm" not in pair.captions[0]
        if fact == "instrument":
            assert a.lead != b.lead
            assert b.lead in pair.captions[1]
            assert [n for n in a.instruments if n != a.lead] == [
                n for n in b.instruments if n != b.lead
            ]


def test_pairs_are_those_of_their_seeds() -> None:
    first = [pair.captions for pair in write_pairs("instrument", 3, 5, SECONDS)]
    assert first == [pair.captions for pair in write_pairs("instrument", 3, 5, SECONDS)]
    assert first[1:] == [pair.captions for pair in write_pairs("instrument", 2, 6, SECONDS)]
