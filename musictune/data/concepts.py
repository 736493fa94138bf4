"""Concepts: the new words that a tuned model learns, and captions and prompts that use them.

People write a concept as ``<name>`` or plainly as ``name``. The model reads it as one or several
tokens of its own, and a judge that never heard of it reads the class word instead.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from musictune.data.captions import Heard, caption
from musictune.errors import InputError

TEMPLATES = (
    "{trigger} {class_word}",
    "a {trigger} {class_word}",
    "the {trigger} {class_word}",
    "{trigger} {class_word} music",
    "a recording of {trigger} {class_word}",
    "music with {trigger} {class_word}",
)

_NAME = re.compile(r"[a-z][a-z0-9_-]{1,30}")
_CLASS_WORD = re.compile(r"[a-z][a-z0-9'-]*( [a-z0-9'-]+){0,4}")
_MAX_TOKENS = 32
_SHORT = 0.5  # share of concept captions that say nothing but the concept


@dataclass(frozen=True)
class Concept:
    """A sound with a name.

    Attributes:
        name: 2 to 31 letters, digits, ``_`` or ``-``, kept in lower case.
        class_word: what kind of thing it is, such as "piano" or "string quartet".
        tokens: how many tokens carry it inside the model.

    Raises:
        InputError: a name, class word or number that cannot be used.
    """

    name: str
    class_word: str
    tokens: int = 1

    def __post_init__(self) -> None:
        name = self.name.strip().lower().removeprefix("<").removesuffix(">")
        class_word = " ".join(self.class_word.lower().split())
        if not _NAME.fullmatch(name) or re.search(r"-\d+$", name):
            raise InputError(
                f"concept name {self.name!r} cannot be used; take 2 to 31 letters, digits, _ or -, "
                f"a letter first, not ending in a dash and a number"
            )
        if not _CLASS_WORD.fullmatch(class_word):
            raise InputError(
                f"class word {self.class_word!r} cannot be used; take one to five plain words that "
                f"say what the music is, such as 'piano' or 'string quartet'"
            )
        if name in class_word.split():
            raise InputError(
                f"concept name {name!r} is part of its class word {class_word!r}; choose a new name"
            )
        if not 1 <= self.tokens <= _MAX_TOKENS:
            raise InputError(f"a concept has 1 to {_MAX_TOKENS} tokens, not {self.tokens}")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "class_word", class_word)

    @property
    def trigger(self) -> str:
        """What people write and captions hold: ``<name>``."""
        return f"<{self.name}>"

    @property
    def token_names(self) -> tuple[str, ...]:
        """The tokens added to the model's vocabulary."""
        if self.tokens == 1:
            return (self.trigger,)
        return tuple(f"<{self.name}-{index}>" for index in range(self.tokens))

    @property
    def tokens_text(self) -> str:
        """The tokens as the model reads them, separated by spaces."""
        return " ".join(self.token_names)


def expand(prompt: str, concepts: Sequence[Concept]) -> str:
    """What the model reads: each trigger or bare name becomes the concept's tokens."""
    return _replace(prompt, {c: (_mention(c), c.tokens_text) for c in concepts})


def plain(prompt: str, concepts: Sequence[Concept]) -> str:
    """What a judge of text reads: each mention becomes the class word, never twice in a row."""
    patterns = {}
    for concept in concepts:
        following = rf"(?:\s+{re.escape(concept.class_word)}(?!\w))?"
        mention = rf"(?:{re.escape(concept.tokens_text)}|{_mention(concept)}){following}"
        patterns[concept] = (mention, concept.class_word)
    return _replace(prompt, patterns)


def concept_caption(concept: Concept, heard: Heard, rng: random.Random) -> str:
    """A training caption: half of the time only the concept, else with what is heard."""
    if rng.random() < _SHORT:
        return _short(concept, rng)
    return caption(heard, f"{concept.trigger} {concept.class_word}")


def captions_for(clip_caption: str, concept: Concept | None, count: int, seed: int) -> list[str]:
    """``count`` captions of one clip, the full one first; a pure function of its arguments.

    With a concept, every caption holds the trigger, and about half hold nothing else but the class
    word, so that the token alone comes to carry the sound. Details between commas are left out at
    random in the rest.
    """
    full = _with_trigger(clip_caption, concept) if concept else clip_caption
    rng = random.Random(f"{seed}:{clip_caption}")
    captions = [full]
    for _ in range(count - 1):
        if concept and rng.random() < _SHORT:
            captions.append(_short(concept, rng))
            continue
        parts = full.split(", ")
        kept = [
            part
            for index, part in enumerate(parts)
            if rng.random() < 0.5 or (concept.trigger in part if concept else index == 0)
        ]
        captions.append(", ".join(kept))
    return captions


def _short(concept: Concept, rng: random.Random) -> str:
    return rng.choice(TEMPLATES).format(trigger=concept.trigger, class_word=concept.class_word)


def _with_trigger(text: str, concept: Concept) -> str:
    """The caption with the trigger: in place of the bare name, or before the class word."""
    mention = re.compile(_mention(concept), re.IGNORECASE)
    if mention.search(text):
        return mention.sub(concept.trigger, text)
    subject = f"{concept.trigger} {concept.class_word}"
    class_word = re.compile(rf"(?<!\w){re.escape(concept.class_word)}(?!\w)", re.IGNORECASE)
    if class_word.search(text):
        return class_word.sub(subject, text, count=1)
    return f"{subject}, {text}" if text else subject


def _mention(concept: Concept) -> str:
    """Pattern of ``<name>`` or of the bare name as a word of its own."""
    name = re.escape(concept.name)
    return rf"(?:<{name}>|(?<![\w<-]){name}(?![\w>-]))"


def _replace(text: str, patterns: dict[Concept, tuple[str, str]]) -> str:
    """Replace all patterns in one pass, so that no replacement is replaced again."""
    if not patterns:
        return text
    # Longest name first: a name may begin with another one.
    ordered = sorted(patterns.values(), key=lambda pair: -len(pair[0]))
    joined = re.compile("|".join(f"({pattern})" for pattern, _ in ordered), re.IGNORECASE)
    return joined.sub(lambda match: ordered[(match.lastindex or 1) - 1][1], text)
