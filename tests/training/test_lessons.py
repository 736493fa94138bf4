"""What a recipe names to be learned: one concept, several, and what cannot be meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from musictune.data.concepts import Concept
from musictune.errors import InputError
from musictune.methods.combined import Combined
from musictune.methods.concept_tokens import ConceptTokens
from musictune.training.lessons import MOST, Lesson, read_lessons
from musictune.training.recipe import load_recipe

TWO = ["koto=a/koto", "reggae=b"]
WORDS = ["koto=harp", "reggae=style"]
NAMES = ["koto", "reggae", "sitar", "waltz", "surf", "banjo", "klezmer", "tango"]


def test_one_name_has_the_clips_of_the_run() -> None:
    assert read_lessons("", "", 1) == [Lesson(None)]
    one = [Lesson(Concept("koto", "harp", 2))]
    assert read_lessons("koto", "harp", 2) == one
    assert read_lessons(["koto"], ["koto=harp"], 2) == one


def test_several_names_have_their_own() -> None:
    found = read_lessons(TWO, WORDS[::-1], 3)
    assert found == [
        Lesson(Concept("koto", "harp", 3), Path("a/koto")),
        Lesson(Concept("reggae", "style", 3), Path("b")),
    ]
    assert read_lessons("koto=x=y z", "harp", 1) == [Lesson(Concept("koto", "harp"), Path("x=y z"))]


@given(st.permutations(NAMES), st.randoms(use_true_random=False), st.integers(2, MOST))
def test_class_words_may_come_in_any_order(names: list[str], rng: object, count: int) -> None:
    names = names[:count]
    words = [f"{name}=kind {place}" for place, name in enumerate(names)]
    rng.shuffle(words)  # type: ignore[attr-defined]
    found = read_lessons([f"{name}=folder/{name}" for name in names], words, 1)
    assert [lesson.concept.name for lesson in found if lesson.concept] == names
    assert [lesson.concept.class_word for lesson in found if lesson.concept] == [
        f"kind {place}" for place in range(count)
    ]


@pytest.mark.parametrize(
    ("names", "words", "says"),
    [
        (["koto=a", "koto=b"], ["koto=harp"], "'koto' is named twice"),
        (["koto=a", "<KOTO>=b"], ["koto=harp", "<KOTO>=harp"], "'koto' is named twice"),
        (["koto=a", "reggae"], WORDS, "'reggae' names no folder; .*reggae=recordings/reggae"),
        (["koto=", "reggae=b"], WORDS, "'koto=' names no folder"),
        (TWO, ["koto=harp"], "'reggae' needs a class word: .*--class-word reggae=piano"),
        (TWO, ["koto=harp", "reggae="], "'reggae' needs a class word"),
        (TWO, [*WORDS, "sitar=lute"], "'sitar=lute' is for no concept .* koto, reggae"),
        (TWO, [*WORDS, "koto=lute"], "'koto' has two class words"),
        (TWO, ["harp", "style"], "'harp' must say whose it is"),
        (TWO, ["koto=harp", "reggae=9!"], "class word '9!'"),
        (["koto=a", "reggae=a"], WORDS, "two concepts have the clips"),
        (["koto=a", "reggae=b"], ["koto=reggae harp", "reggae=style"], "'reggae' is part of"),
        ([f"{name}=x/{name}" for name in [*NAMES, "ninth"]], [], "9 concepts are too many"),
        ("koto", "", "'koto' needs a class word: .*--class-word piano"),
        ("koto", ["harp", "lute"], "must say whose"),
        ("", "harp", "'harp' has no concept"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    names: list[str] | str, words: list[str] | str, says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_lessons(names, words, 1)
    assert "\n" not in str(caught.value)


def test_a_recipe_of_several_concepts_is_read_again_alike(tmp_path: Path) -> None:
    recipe = load_recipe(overrides={"run.concept": TWO, "run.class_word": WORDS, "run.tokens": 2})
    assert recipe.concept is None
    assert [c.name for c in recipe.concepts] == ["koto", "reggae"]
    assert isinstance(recipe.method, Combined)
    tokens = recipe.method.methods[0]
    assert isinstance(tokens, ConceptTokens)
    assert tokens.concepts == recipe.concepts
    saved = tmp_path / "config.yaml"
    saved.write_text(recipe.text)
    assert yaml.safe_load(recipe.text)["run"]["concept"] == TWO
    again = load_recipe([saved])
    assert (again.text, again.lessons) == (recipe.text, recipe.lessons)


def test_one_concept_is_the_recipes_own() -> None:
    recipe = load_recipe(overrides={"run.concept": "koto", "run.class_word": "harp"})
    assert recipe.concept == Concept("koto", "harp")
    assert recipe.concepts == [recipe.concept]
    assert load_recipe().concept is None
    assert load_recipe().concepts == []


def test_clips_beside_folders_and_a_prior_of_nothing_are_refused() -> None:
    both = {"run.concept": TWO, "run.class_word": WORDS, "run.clips": "c"}
    with pytest.raises(InputError, match="clips c are given beside concepts with folders"):
        load_recipe(overrides=both)
    with pytest.raises(InputError, match="prior 4 is clips of a class word"):
        load_recipe(overrides={"training.prior": 4})
