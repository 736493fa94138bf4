"""What a run is to learn: one concept from its clips, or several, each from a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from musictune.data.concepts import Concept
from musictune.errors import InputError

MOST = 8
"""Concepts of one run; each has a share of every batch."""


@dataclass(frozen=True)
class Lesson:
    """A sound to learn.

    Attributes:
        concept: its name; None where the model learns a sound without a new word.
        clips: its recordings; None where they are those of the run.
    """

    concept: Concept | None
    clips: Path | None = None


def read_lessons(
    names: Sequence[str] | str, class_words: Sequence[str] | str, tokens: int
) -> list[Lesson]:
    """The lessons that a recipe names; one without a concept if it names none.

    Args:
        names: one ``name``, or one or more ``name=FOLDER``.
        class_words: one word for one concept; ``name=word`` for each of several.
        tokens: how many tokens carry each concept.

    Raises:
        InputError: a name, folder or class word is missing, unknown, given twice or unusable.
    """
    entries = [names] if isinstance(names, str) and names else list(names)
    words = [class_words] if isinstance(class_words, str) and class_words else list(class_words)
    if not entries:
        if words:
            raise InputError(f"class word {words[0]!r} has no concept; pass --concept NAME too")
        return [Lesson(None)]
    if len(entries) > MOST:
        raise InputError(f"{len(entries)} concepts are too many for one run; at most {MOST}")
    pairs = [_named_folder(entry, len(entries)) for entry in entries]
    meanings = _meanings([name for name, _ in pairs], words)
    lessons = [
        Lesson(Concept(name, word, tokens), folder)
        for (name, folder), word in zip(pairs, meanings, strict=True)
    ]
    _check_apart(lessons)
    return lessons


def _named_folder(entry: str, count: int) -> tuple[str, Path | None]:
    name, equals, folder = entry.partition("=")
    if equals and not folder.strip():
        raise InputError(f"concept {entry!r} names no folder; write it as {name}=FOLDER")
    if not equals and count > 1:
        raise InputError(
            f"concept {entry!r} names no folder; each of several is name=FOLDER, such as "
            f"{entry}=recordings/{entry}"
        )
    return name, Path(folder.strip()) if equals else None


def _meanings(names: Sequence[str], words: Sequence[str]) -> list[str]:
    """The class word of each name, in their order."""
    if len(names) == len(words) == 1 and "=" not in words[0]:
        return [words[0]]
    given: dict[str, str] = {}
    for entry in words:
        name, equals, word = entry.partition("=")
        if not equals:
            raise InputError(
                f"class word {entry!r} must say whose it is: name=word, for {', '.join(names)}"
            )
        if name not in names:
            raise InputError(
                f"class word {entry!r} is for no concept of this run; they are {', '.join(names)}"
            )
        if name in given:
            raise InputError(f"concept {name!r} has two class words; give one")
        given[name] = word
    for name in names:
        if not given.get(name):
            how = f"--class-word {name}=piano" if len(names) > 1 else "--class-word piano"
            raise InputError(f"concept {name!r} needs a class word: say what it is, such as {how}")
    return [given[name] for name in names]


def _check_apart(lessons: Sequence[Lesson]) -> None:
    """Refuse concepts that texts or folders could not tell from each other."""
    seen: dict[str, Lesson] = {}
    for lesson in lessons:
        assert lesson.concept
        name = lesson.concept.name
        if name in seen:
            raise InputError(f"concept {name!r} is named twice; give each sound a name of its own")
        seen[name] = lesson
    folders = [lesson.clips.absolute() for lesson in lessons if lesson.clips]
    for folder in folders:
        if folders.count(folder) > 1:
            raise InputError(f"two concepts have the clips {folder}; give each its own folder")
    for lesson in lessons:
        assert lesson.concept
        if word := next((w for w in lesson.concept.class_word.split() if w in seen), None):
            raise InputError(
                f"concept {word!r} is part of the class word {lesson.concept.class_word!r} of "
                f"{lesson.concept.name!r}; choose another name or class word"
            )
