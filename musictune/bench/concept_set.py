"""What a concept set on disk is: sounds to learn, each with audio to learn from, other audio to
measure with, and prompts.

    SET/<name>/concept.json   name, kind, class word, prompts, where the audio comes from
    SET/<name>/reference/     an AudioFolder to tune on
    SET/<name>/heldout/       an AudioFolder of the same sound, never tuned on
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musictune.data.concepts import Concept
from musictune.errors import InputError

PLACEHOLDER = "{concept}"
"""What stands in a prompt for the concept's trigger, or for its class word."""

KINDS = ("instrument", "style", "recordings")

_FILE = "concept.json"
_PREPARE = "python datasets/concepts20/prepare.py --out"


@dataclass(frozen=True)
class BenchConcept:
    """One sound of a concept set.

    Attributes:
        name: what its folder is called, and its trigger without the brackets.
        kind: ``instrument``, ``style`` or ``recordings``.
        class_word: a word for its kind that a base model is expected to know.
        keep: prompts that keep the class, with `PLACEHOLDER` in each.
        move: prompts that move it to another instrument, mood, tempo, place or style.
        reference: folder of the clips to tune on.
        heldout: folder of other clips of the same sound.
        source: where the audio comes from, for people.

    Raises:
        InputError: a name or class word that `Concept` refuses, an unknown kind, a prompt without
            a gap for the sound's name, the same prompt twice, or none.
    """

    name: str
    kind: str
    class_word: str
    keep: tuple[str, ...]
    move: tuple[str, ...]
    reference: Path
    heldout: Path
    source: str = ""

    def __post_init__(self) -> None:
        if Concept(self.name, self.class_word).name != self.name:
            raise InputError(f"concept name {self.name!r} must be in lower case, without brackets")
        if self.kind not in KINDS:
            raise InputError(
                f"concept {self.name}: kind {self.kind!r} is not known; give {', '.join(KINDS)}"
            )
        prompts = [*self.keep, *self.move]
        for prompt in prompts:
            if prompt.count(PLACEHOLDER) != 1:
                raise InputError(
                    f"concept {self.name}: prompt {prompt!r} must hold {PLACEHOLDER} once"
                )
        if not self.keep or not self.move or len(set(prompts)) < len(prompts):
            raise InputError(
                f"concept {self.name}: 'keep' and 'move' each need prompts, none of them twice"
            )


def read_concept_set(folder: Path, names: Sequence[str] = ()) -> list[BenchConcept]:
    """The concepts in ``folder``, all of them by name, or those named, in that order.

    Raises:
        InputError: no concept set there, a name that is not in it, or a damaged concept.
    """
    if not folder.is_dir():
        raise InputError(f"concept set {folder} does not exist; make it: {_PREPARE} {folder}")
    found = sorted(path.parent.name for path in folder.glob(f"*/{_FILE}"))
    if not found:
        raise InputError(
            f"folder {folder} holds no concept set (<name>/{_FILE}); make one: {_PREPARE} DIR"
        )
    for name in names:
        if name not in found:
            raise InputError(f"concept {name!r} is not in {folder}; choose of {', '.join(found)}")
    return [_read(folder / name) for name in dict.fromkeys(names or found)]


def write_concept(concept: BenchConcept) -> None:
    """Write ``concept.json`` beside the concept's two folders of audio."""
    entry = {
        "name": concept.name,
        "kind": concept.kind,
        "class_word": concept.class_word,
        "source": concept.source,
        "keep": concept.keep,
        "move": concept.move,
    }
    text = json.dumps(entry, indent=2, ensure_ascii=False)
    (concept.reference.parent / _FILE).write_text(text + "\n", encoding="utf-8")


def parse_concept(entry: Any, folder: Path, where: str) -> BenchConcept:
    """A concept from its JSON entry, with its audio in ``folder``.

    Args:
        where: what to call the entry in an error.

    Raises:
        InputError: a field is missing or of a wrong kind, or a value `BenchConcept` refuses.
    """
    if not isinstance(entry, dict):
        raise InputError(f"{where} is not a concept; a JSON object is needed")
    fields: dict[str, Any] = {}
    for field in ("name", "kind", "class_word", "source"):
        value = entry.get(field, "" if field == "source" else None)
        if not isinstance(value, str):
            raise InputError(f"{where}: {field!r} must be text, not {value!r}")
        fields[field] = value
    for field in ("keep", "move"):
        value = entry.get(field)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InputError(f"{where}: {field!r} must be a list of prompts")
        fields[field] = tuple(value)
    return BenchConcept(**fields, reference=folder / "reference", heldout=folder / "heldout")


def _read(folder: Path) -> BenchConcept:
    path = folder / _FILE
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path} cannot be read as JSON; prepare the set again") from error
    concept = parse_concept(entry, folder, str(path))
    if concept.name != folder.name:
        raise InputError(f"{path} is about {concept.name!r}; its folder must have the same name")
    for part in (concept.reference, concept.heldout):
        if not part.is_dir():
            raise InputError(f"folder {part} is missing; prepare the set again")
    return concept
