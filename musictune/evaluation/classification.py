"""A classifier against labelled clips: scores, a confusion picture, and a page of its mistakes."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musictune.console import note, track
from musictune.data.labelled import Example, LabelledClips, targets
from musictune.errors import CheckFailed, InputError
from musictune.evaluation.naming import Answer, Sound, name_sounds
from musictune.files import publish_folder
from musictune.metrics.base import NotComputed, Score
from musictune.metrics.classification import SEVERAL, SINGLE, classification_scores, confusion
from musictune.metrics.classification_page import Mistake, classification_page
from musictune.metrics.confusion_plot import confusion_png
from musictune.metrics.report import SCHEMA, harmless, versions
from musictune.models.classifier import Classifier

_THRESHOLD = 0.5
_NOTED = 8  # warnings on the terminal
_MISTAKES = 12  # with players; a page with more is slow to open


@dataclass(frozen=True)
class MeasuredClassifier:
    """What a classifier said of labelled clips, and how right it was.

    Attributes:
        labels: the model's.
        multi_label: whether several can be true of a clip.
        examples: the clips that were heard.
        probabilities, targets: ``(clips, classes)``.
        scores: by name as in ``metrics.json``; also ``f1/LABEL`` and ``average_precision/LABEL``.
        warnings: what to know before a score is believed.
        facts: what the numbers were made with.
    """

    labels: tuple[str, ...]
    multi_label: bool
    examples: tuple[Example, ...]
    probabilities: Tensor
    targets: Tensor
    scores: dict[str, Score | NotComputed]
    warnings: tuple[str, ...]
    facts: dict[str, Any]

    @property
    def main(self) -> dict[str, Score | NotComputed]:
        """The scores that are not about single classes."""
        names = SEVERAL if self.multi_label else SINGLE
        return {name: self.scores[name] for name in names}

    def write(self, folder: Path) -> None:
        """Write metrics.json, clips.csv, confusion.png (one label only) and report.html.

        Raises:
            InputError: a clip that the page plays can no longer be read.
        """
        found = {n: s.as_json() for n, s in self.scores.items() if isinstance(s, Score)}
        missing = {n: s.reason for n, s in self.scores.items() if isinstance(s, NotComputed)}
        content = {"schema": SCHEMA, "scores": found, "not_computed": missing,
                   "warnings": list(self.warnings), "made_with": self.facts}  # fmt: skip
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        _write(folder / "metrics.json", text + "\n")
        self._write_clips(folder / "clips.csv")
        picture = None
        if not self.multi_label:
            picture = confusion_png(confusion(self.probabilities, self.targets), self.labels)
            (folder / "confusion.png").write_bytes(picture)
        counts = self.targets.sum(0).int().tolist()
        page = classification_page(
            self.scores, self.main, dict(zip(self.labels, counts, strict=True)),
            picture, self._mistakes(), self.warnings, self.facts,
        )  # fmt: skip
        _write(folder / "report.html", page)

    def said(self, clip: int) -> tuple[str, ...]:
        """What was said of a clip: the likeliest label, or all from 0.5 on."""
        row = self.probabilities[clip]
        if not self.multi_label:
            return (self.labels[int(row.argmax())],)
        return tuple(self.labels[i] for i in (row >= _THRESHOLD).nonzero().flatten().tolist())

    def _write_clips(self, path: Path) -> None:
        each = [f"probability/{label}" for label in self.labels]
        with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file)
            columns = ["file", "start", "true", "said", "right", "probability", *each]
            writer.writerow([harmless(cell) for cell in columns])
            for i, example in enumerate(self.examples):
                said, row = self.said(i), self.probabilities[i]
                right = set(said) == set(example.labels)
                name = _name(example, self.facts["clips"])
                cells = [name, f"{example.start:g}", "; ".join(example.labels), "; ".join(said)]
                cells += ["yes" if right else "no", f"{float(row.max()):.6g}"]
                writer.writerow([harmless(cell) for cell in cells + _figures(row)])

    def _mistakes(self) -> list[Mistake]:
        """The wrong answers that were surest, the surest first."""
        wrong = torch.where(self.targets > 0, 1 - self.probabilities, self.probabilities)
        if self.multi_label:
            surest = wrong.max(1).values
        else:
            # How much likelier the false answer was thought than the true one.
            said = self.probabilities.max(1).values
            surest = said - (self.probabilities * self.targets).sum(1)
        found = [
            (float(surest[i]), i)
            for i in range(len(self.examples))
            if set(self.said(i)) != set(self.examples[i].labels)
        ]
        found.sort(key=lambda one: (-one[0], one[1]))
        return [self._mistake(i) for _, i in found[:_MISTAKES]]

    def _mistake(self, i: int) -> Mistake:
        example, row = self.examples[i], self.probabilities[i]
        column = {label: n for n, label in enumerate(self.labels)}
        said = [(label, float(row[column[label]])) for label in self.said(i)]
        true = [(label, float(row[column[label]])) for label in example.labels]
        name = _name(example, self.facts["clips"])
        return Mistake(example.path, name, example.start, example.seconds, true, said)


def measure_classifier(
    model: Classifier,
    clips: LabelledClips,
    out: Path,
    overwrite: bool = False,
    *,
    split: str = "",
    facts: Mapping[str, Any] | None = None,
) -> MeasuredClassifier:
    """Hear labelled clips, score what is said of them, and publish the report as ``out``.

    A clip longer than the model hears at once gets the mean over its windows.

    Args:
        model: what is measured.
        clips: with what they are.
        out: folder of the report.
        overwrite: replace it if it is there.
        split: only that published part, such as ``test``; all clips if empty.
        facts: more that the numbers were made with.

    Raises:
        InputError: a label that the model does not know, several labels for a model that gives
            one, no such part, or none of the clips can be heard.
        CheckFailed: the model's answers are not numbers.
    """
    examples = chosen_part(clips, split)
    check_labels(model, examples)
    sounds = [Sound(e.path, e.start, e.seconds) for e in examples]
    answers = list(track(name_sounds(model, sounds), "listening", len(sounds)))
    warnings = [f"left out: {one.error}" for one in answers if one.error]
    warnings += [f"left out: {reason}" for _, reason in clips.refused]
    silent = [
        _name(example, str(clips.source))
        for example, one in zip(examples, answers, strict=True)
        if one.silent and not one.error
    ]
    if silent:
        warnings.append(f"{len(silent)} of {len(examples)} clips are silent, such as {silent[0]}")
    heard = [(e, _row(a)) for e, a in zip(examples, answers, strict=True) if not a.error]
    if not heard:
        raise InputError(f"none of {len(examples)} clips can be heard; {answers[0].error}")
    kept = tuple(example for example, _ in heard)
    probabilities, true = torch.stack([row for _, row in heard]), targets(kept, model.labels)
    absent = [label for label, count in zip(model.labels, true.sum(0), strict=True) if not count]
    if absent:
        named = ", ".join(absent[:3]) + (" and others" if len(absent) > 3 else "")
        warnings.append(
            f"{len(absent)} of {len(model.labels)} classes have no clip here ({named}): means over "
            "classes leave them out"
        )
    measured = MeasuredClassifier(
        labels=model.labels,
        multi_label=model.multi_label,
        examples=kept,
        probabilities=probabilities,
        targets=true,
        scores=classification_scores(probabilities, true, model.multi_label, labels=model.labels),
        warnings=tuple(warnings),
        facts={
            "versions": versions(),
            "base": model.base,
            "clips": str(clips.source),
            "layout": clips.layout,
            "split": split or "all",
            "files": len(kept),
            "seconds_at_once": model.seconds,
            "labels": list(model.labels),
            "multi_label": model.multi_label,
            "run": "",
            "sha256": "",
            **(facts or {}),
        },
    )
    with publish_folder(out, overwrite=overwrite) as folder:
        measured.write(folder)
    for warning in warnings[:_NOTED]:
        note(f"warning: {warning}")
    if len(warnings) > _NOTED:
        note(f"warning: {len(warnings) - _NOTED} more are in {out / 'metrics.json'}")
    return measured


def chosen_part(clips: LabelledClips, split: str = "") -> tuple[Example, ...]:
    """The examples of a published part; all of them if ``split`` is empty.

    Raises:
        InputError: none are of that part.
    """
    examples = tuple(e for e in clips.examples if not split or e.split == split)
    if examples:
        return examples
    known = sorted({e.split for e in clips.examples if e.split})
    raise InputError(
        f"{clips.source} has no clips of split {split!r}; "
        + (f"choose from {', '.join(known)}" if known else "it is not split: leave --split out")
    )


def check_labels(model: Classifier, examples: Sequence[Example]) -> None:
    """Refuse clips that the model cannot be measured on.

    Raises:
        InputError: a label that it does not know, or not one label where it gives one.
    """
    known = set(model.labels)
    for example in examples:
        for label in example.labels:
            if label not in known:
                shown = ", ".join(model.labels[:8]) + (", ..." if len(known) > 8 else "")
                raise InputError(
                    f"clip {example.path} is labelled {label!r}, which the model does not know; it "
                    f"knows {shown}"
                )
        if not model.multi_label and len(example.labels) != 1:
            raise InputError(
                f"clip {example.path} has {len(example.labels)} labels, and the model gives one; "
                "leave it out, or measure a run that learned several"
            )


def parse_limits(wanted: Sequence[str]) -> dict[str, float]:
    """Of ``accuracy=0.8`` and the like: the least value of each score.

    Raises:
        InputError: no such score, or no number from 0 to 1.
    """
    known = tuple(dict.fromkeys((*SINGLE, *SEVERAL)))
    limits: dict[str, float] = {}
    for text in wanted:
        name, _, number = text.partition("=")
        if name not in known:
            raise InputError(f"--fail-below {text}: choose a score from {', '.join(known)}")
        try:
            limits[name] = float(number)
        except ValueError:
            limits[name] = math.nan
        if not 0 <= limits[name] <= 1:
            raise InputError(f"--fail-below {text} needs a number from 0 to 1: {name}=0.8")
    return limits


def check_limits(measured: MeasuredClassifier, limits: Mapping[str, float]) -> None:
    """Fail where a score is lower than it must be, or missing.

    Raises:
        CheckFailed: one is.
    """
    for name, limit in limits.items():
        score = measured.main.get(name, NotComputed("it is not defined for these labels"))
        if isinstance(score, NotComputed):
            raise CheckFailed(f"{name} was not computed: {score.reason}")
        if score.value < limit:
            raise CheckFailed(f"{name} is {score.value:.4g} of {score.n} clips, below {limit:g}")


def _row(answer: Answer) -> Tensor:
    assert answer.probabilities is not None
    return answer.probabilities


def _figures(row: Tensor) -> list[str]:
    return [f"{probability:.6g}" for probability in row.tolist()]


def _name(example: Example, source: str) -> str:
    """A clip's path as people see it: within the folder that was given."""
    for root in (Path(source), Path(source).parent):
        if example.path.is_relative_to(root):
            return str(example.path.relative_to(root))
    return str(example.path)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
