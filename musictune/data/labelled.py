"""Labelled clips: what lies on disk in any known layout, as one checked list of examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from musictune.console import note
from musictune.data.labelled_layouts import LAYOUTS, Found, Layout
from musictune.data.labelled_tables import Example
from musictune.errors import InputError

__all__ = ["Example", "LabelledClips", "Split", "read_labelled", "targets"]

Place = tuple[Path, float, float | None]


@dataclass(frozen=True)
class LabelledClips:
    """Clips with what they are.

    Attributes:
        source: the folder or file they were read from.
        layout: the name of what it was read as.
        examples: at least two, by path and start; no excerpt twice.
        labels: sorted, at least two; each has an example.
        multi_label: whether a clip can have several, or none.
        refused: ``(file, reason)`` of each that was left out.
    """

    source: Path
    layout: str
    examples: tuple[Example, ...]
    labels: tuple[str, ...]
    multi_label: bool
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Split:
    """Parts that share no clip: to learn from, to choose the epoch by, to measure on."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    name: str = ""


def read_labelled(source: Path | str, layout: str = "auto") -> LabelledClips:
    """The labelled clips that ``source`` holds; no audio is decoded.

    Args:
        source: a folder, a CSV or a ``metadata.jsonl``.
        layout: ``folders`` (one per class, below ``train``, ``validation``, ``test`` if there are
            such), ``csv``, ``esc50``, ``urbansound8k``, ``speech_commands``, ``gtzan``, ``nsynth``,
            ``jsonl``; ``nsynth:FIELD`` and ``jsonl:FIELD`` take labels from another field; ``auto``
            finds out which.

    Raises:
        InputError: nothing there, an unlabelled or missing clip, one class only, a file with two
            labels where one is allowed, or a list that points outside its folder.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(f"{source} does not exist; give a folder of labelled clips, or a CSV")
    name, option, chosen = _layout(source, layout)
    try:
        found = chosen.read(source, option)
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror or error}") from error
    examples = _each_once(found)
    labels = tuple(sorted({label for example in examples for label in example.labels}))
    _check_labels(source, examples, labels)
    for what in ("split", "fold"):
        _check_all_have(source, examples, what)
    for _, reason in found.refused:
        note(f"skipped: {reason}")
    return LabelledClips(source, name, examples, labels, found.multi_label, found.refused)


def targets(examples: Sequence[Example], labels: Sequence[str]) -> Tensor:
    """``(examples, classes)`` float32: 1 where a label is true, else 0.

    Raises:
        InputError: an example has a label that is none of ``labels``.
    """
    column = {label: index for index, label in enumerate(labels)}
    found = torch.zeros(len(examples), len(labels))
    for row, example in enumerate(examples):
        for label in example.labels:
            if label not in column:
                raise InputError(
                    f"clip {example.path} has label {label!r}, which is none of the "
                    f"{len(labels)} known ones; remove it or learn it too"
                )
            found[row, column[label]] = 1
    return found


def _layout(source: Path, wanted: str) -> tuple[str, str, Layout]:
    """Name, option and layout."""
    name, _, option = wanted.partition(":")
    if name == "auto" and not option:
        name = next((known for known, layout in LAYOUTS.items() if layout.fits(source)), "")
        if not name:
            raise InputError(f"{source} is no folder, CSV or .jsonl of labelled clips; give one")
        return name, "", LAYOUTS[name]
    layout = LAYOUTS.get(name)
    if layout is None or (option and not layout.option) or wanted.endswith(":"):
        known = [key + f"[:{each.option}]" * bool(each.option) for key, each in LAYOUTS.items()]
        raise InputError(f"layout {wanted!r} is not known; choose auto, {', '.join(known)}")
    if not layout.fits(source):
        raise InputError(f"{source} is not laid out as {name}, which needs {layout.needs}")
    return name, option, layout


def _each_once(found: Found) -> tuple[Example, ...]:
    """Sorted; rows about one excerpt become one, with all labels where several can be true."""
    merged: dict[Place, Example] = {}
    for example in found.examples:
        path = example.path
        place = (path.resolve() if path.is_symlink() else path, example.start, example.seconds)
        before = merged.setdefault(place, example)
        if before is example:
            continue
        if not found.multi_label and before.labels != example.labels:
            raise InputError(
                f"clip {path} has two labels, {before.labels[0]!r} and {example.labels[0]!r}; keep "
                f"one, or write them in one cell of a CSV as A;B if both are true"
            )
        if replace(before, labels=(), path=path) != replace(example, labels=()):
            raise InputError(f"clip {path} is listed twice, with other parts or groups; keep one")
        labels = tuple(sorted({*before.labels, *example.labels}))
        merged[place] = replace(before, labels=labels)
    return tuple(sorted(merged.values(), key=lambda e: (str(e.path), e.start, e.seconds or 0.0)))


def _check_labels(source: Path, examples: Sequence[Example], labels: Sequence[str]) -> None:
    if not examples:
        raise InputError(f"{source} holds no labelled audio; add clips")
    if len(labels) < 2:
        only = f"one class only, {labels[0]!r}" if labels else "no class"
        raise InputError(f"{source} has {only}; two or more are needed to tell apart")


def _check_all_have(source: Path, examples: Sequence[Example], what: str) -> None:
    """A ``split`` or ``fold`` that some clips have and others lack is a mistake."""
    values = Counter(getattr(example, what) for example in examples)
    lacking = values[None if what == "fold" else ""]
    if 0 < lacking < len(examples):
        raise InputError(
            f"{lacking} of {len(examples)} clips of {source} have no {what}; give it to all or none"
        )
