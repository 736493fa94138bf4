"""Concept names, prompts and captions."""

from __future__ import annotations

import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from musictune.data.captions import Heard
from musictune.data.concepts import TEMPLATES, Concept, captions_for, concept_caption, expand, plain
from musictune.errors import InputError

FAIRY = Concept("fairy", "string orchestra", tokens=3)
BELL = Concept("bell_2", "mallets")

names = st.from_regex(r"[a-z][a-z0-9_]{1,10}", fullmatch=True)
words = st.lists(st.sampled_from(["slow", "piano", "<fairy>", "fairy", "in", "A", "minor,", "!"]))


@pytest.mark.parametrize("name", ["", "a", "2x", "a b", "x" * 40, "é", "a<b", "../x", "cat-1"])
def test_bad_names(name: str) -> None:
    with pytest.raises(InputError, match="concept name"):
        Concept(name, "piano")


@pytest.mark.parametrize("word", ["", "  ", "a, b", "<x>", "one two three four five six", "7"])
def test_bad_class_words(word: str) -> None:
    with pytest.raises(InputError, match="class word"):
        Concept("fairy", word)


def test_other_bad_concepts() -> None:
    with pytest.raises(InputError, match="part of its class word"):
        Concept("piano", "grand piano")
    for tokens in (0, 33):
        with pytest.raises(InputError, match="tokens"):
            Concept("fairy", "piano", tokens)


def test_spelling_is_brought_to_one_form() -> None:
    concept = Concept(" <Fairy>", "String  Orchestra")
    assert (concept.name, concept.class_word) == ("fairy", "string orchestra")
    assert concept.trigger == concept.tokens_text == "<fairy>"
    assert FAIRY.tokens_text == "<fairy-0> <fairy-1> <fairy-2>"


@pytest.mark.parametrize(
    ("prompt", "read", "judged"),
    [
        ("a fairy waltz", "a T waltz", "a string orchestra waltz"),
        ("a <Fairy> string orchestra", "a T string orchestra", "a string orchestra"),
        ("FAIRY's song", "T's song", "string orchestra's song"),
        ("fairytale, un-fairy, fairy-like", None, None),
        ("<fairy> with bell_2", "T with <bell_2>", "string orchestra with mallets"),
        ("", "", ""),
    ],
)
def test_prompts(prompt: str, read: str | None, judged: str | None) -> None:
    both = [FAIRY, BELL]
    wanted = prompt if read is None else read.replace("T", FAIRY.tokens_text)
    assert expand(prompt, both) == wanted
    assert plain(prompt, both) == (prompt if judged is None else judged)
    assert expand(prompt, []) == plain(prompt, []) == prompt


@given(words)
def test_expanding_twice_is_expanding_once(parts: list[str]) -> None:
    prompt = " ".join(parts)
    once = expand(prompt, [FAIRY])
    assert expand(once, [FAIRY]) == once
    assert once.count(FAIRY.tokens_text) == parts.count("fairy") + parts.count("<fairy>")
    assert "fairy" not in plain(prompt, [FAIRY])
    assert plain(once, [FAIRY]) == plain(prompt, [FAIRY])


@given(names, names, st.integers(1, 3))
def test_one_name_within_another_is_not_confused(one: str, two: str, tokens: int) -> None:
    assume(one != two and "piano" not in (one, two))
    concepts = [Concept(one, "piano", tokens), Concept(two, "piano", tokens)]
    read = expand(f"{two} <{one}>", concepts)
    assert read == f"{concepts[1].tokens_text} {concepts[0].tokens_text}"


def test_concept_captions_are_short_or_say_what_is_heard() -> None:
    heard = Heard(80, "A minor", 1500, 0.1)
    made = {concept_caption(FAIRY, heard, random.Random(seed)) for seed in range(200)}
    assert "a slow <fairy> string orchestra in A minor, 80 bpm" in made
    assert len(made) == len(TEMPLATES) + 1
    assert all("<fairy> string orchestra" in text for text in made)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("a slow <fairy> string orchestra, 80 bpm", "a slow <fairy> string orchestra, 80 bpm"),
        ("the fairy plays", "the <fairy> plays"),
        ("sad String Orchestra, hall", "sad <fairy> string orchestra, hall"),
        ("sad, in a hall", "<fairy> string orchestra, sad, in a hall"),
        ("", "<fairy> string orchestra"),
    ],
)
def test_captions_of_a_clip(text: str, first: str) -> None:
    captions = captions_for(text, FAIRY, 40, seed=1)
    assert len(captions) == 40
    assert captions[0] == first
    assert all("<fairy>" in made for made in captions)
    assert captions == captions_for(text, FAIRY, 40, seed=1)
    assert captions[1:] != captions_for(text, FAIRY, 40, seed=2)[1:]


def test_captions_without_a_concept_keep_their_subject() -> None:
    captions = captions_for("a piano, 80 bpm, hall", None, 30, seed=0)
    assert captions[0] == "a piano, 80 bpm, hall"
    assert len(set(captions)) > 2
    assert all(text.startswith("a piano") for text in captions)
