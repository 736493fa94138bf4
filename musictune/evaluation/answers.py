"""What a classifier heard in recordings, for people and for programs: a table, JSON, CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musictune.data.sources import discover
from musictune.errors import InputError
from musictune.evaluation.naming import Answer, likeliest
from musictune.files import publish_file
from musictune.metrics.report import harmless
from musictune.metrics.report_page import clock

_SUFFIXES = (".json", ".csv")
_THRESHOLD = 0.5  # where several labels can be true

Labels = list[tuple[str, float]]


def find_recordings(paths: Sequence[Path]) -> list[Path]:
    """The recordings that files, folders and manifests stand for, each once, in order.

    Raises:
        InputError: a path does not exist, or a folder without audio.
    """
    found = [source.path for path in paths for source in discover(path)]
    return list(dict.fromkeys(found))


def check_file(path: Path, overwrite: bool, recordings: Sequence[Path]) -> None:
    """Refuse an output file before hours of listening.

    Raises:
        InputError: another suffix, no such folder, a folder, an input, or a file that is there.
    """
    if path.suffix not in _SUFFIXES:
        raise InputError(f"output {path} must end in .json or .csv; or - for standard output")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"output {path} cannot be; name a file in a folder that exists")
    if not os.access(path.absolute().parent, os.W_OK):
        raise InputError(f"output {path} cannot be written: no permission in {path.parent}")
    if path.resolve() in [recording.resolve() for recording in recordings]:
        raise InputError(f"output {path} would replace a recording; choose another name")
    if path.exists() and not overwrite:
        raise InputError(f"output {path} already exists; name another or pass --overwrite")


@dataclass(frozen=True)
class Naming:
    """Which labels are said of a recording.

    Args:
        labels: the model's.
        multi_label: whether several can be true.
        top: most labels; 0 for all.
        threshold: least probability; the usual one if not given.
        windows: whether windows are told in the table and the CSV.

    Raises:
        InputError: a number that cannot be.
    """

    labels: tuple[str, ...]
    multi_label: bool
    top: int = 3
    threshold: float | None = None
    windows: bool = False

    def __post_init__(self) -> None:
        check_numbers(self.top, self.threshold)

    @property
    def most(self) -> int:
        """Labels at most."""
        return self.top or len(self.labels)

    @property
    def least(self) -> float:
        """Probability from which on a label is said."""
        if self.threshold is not None:
            return self.threshold
        return _THRESHOLD if self.multi_label else 0.0

    def said(self, found: Sequence[tuple[int, float]]) -> Labels:
        """Labels of classes that are likely enough."""
        return [(self.labels[i], p) for i, p in found if p >= self.least]

    def of(self, answer: Answer) -> Labels:
        """What is said of a recording: nothing of a silent one."""
        if answer.probabilities is None or answer.silent:
            return []
        return self.said(likeliest(answer.probabilities, self.most))

    # --- for people ---

    def lines(self, answer: Answer, width: int = 0) -> list[str]:
        """A line for a recording, and below it one for each window where they are wanted."""
        name = str(answer.sound.path).ljust(width)
        if answer.error:
            return [f"{name}  not heard: {answer.error}"]
        text = "silent" if answer.silent else self._words(self.of(answer), answer)
        lines = [f"{name}  {answer.seconds:7.1f} s  {text}"]
        if self.windows and not answer.silent:
            for one in answer.windows:
                span = f"{clock(one.start)}-{clock(one.start + one.seconds)}"
                lines.append(f"    {span:>13}  {_shown(self.said(one.likeliest)) or '-'}")
        return lines

    def _words(self, labels: Labels, answer: Answer) -> str:
        if labels or answer.probabilities is None:
            return _shown(labels)
        ((best, p),) = likeliest(answer.probabilities, 1)
        return f"none from {self.least:g} on; likeliest {self.labels[best]} {p:.2f}"

    # --- for programs ---

    def plain(self, answer: Answer) -> dict[str, Any]:
        """As in the JSON."""
        found: dict[str, Any] = {"file": str(answer.sound.path)}
        if answer.error:
            return found | {"error": answer.error}
        windows = [] if answer.silent else answer.windows
        found |= {"seconds": round(answer.seconds, 3), "labels": _plain(self.of(answer))}
        if answer.silent:
            found["silent"] = True
        found["windows"] = [
            {"start": round(one.start, 3), "seconds": round(one.seconds, 3),
             "labels": _plain(self.said(one.likeliest))}
            for one in windows
        ]  # fmt: skip
        return found

    def json(self, answers: Sequence[Answer]) -> str:
        """A list with an object for each recording."""
        return json.dumps([self.plain(one) for one in answers], indent=1, ensure_ascii=False) + "\n"

    def csv(self, answers: Sequence[Answer]) -> str:
        """A row for each recording, or for each of its windows; labels and probabilities behind."""
        rows = [row for answer in answers for row in self._rows(answer)]
        most = max((len(labels) for *_, labels in rows), default=0)
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        pairs = [f"{what}_{i + 1}" for i in range(most) for what in ("label", "probability")]
        writer.writerow(["file", "start", "seconds", "remark", *pairs])
        for *cells, labels in rows:
            told = [cell for label, p in labels for cell in (label, f"{p:.6g}")]
            told += [""] * (2 * most - len(told))
            writer.writerow([harmless(cell) for cell in [*cells, *told]])
        return text.getvalue()

    def _rows(self, answer: Answer) -> list[tuple[str, str, str, str, Labels]]:
        name = str(answer.sound.path)
        if answer.error:
            return [(name, "", "", answer.error, [])]
        if not self.windows or answer.silent:
            remark = "silent" if answer.silent else ""
            return [(name, "0", f"{answer.seconds:.3f}", remark, self.of(answer))]
        return [
            (name, f"{one.start:.3f}", f"{one.seconds:.3f}", "", self.said(one.likeliest))
            for one in answer.windows
        ]

    def write(self, answers: Sequence[Answer], path: Path) -> None:
        """Write JSON or CSV, by the suffix, whole or not at all.

        Raises:
            InputError: the file cannot be written.
        """
        text = self.csv(answers) if path.suffix == ".csv" else self.json(answers)
        with publish_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def check_numbers(top: int, threshold: float | None) -> None:
    """Refuse what cannot be, before a model is loaded.

    Raises:
        InputError: fewer than no labels, or no probability.
    """
    if top < 0:
        raise InputError(f"top {top} must be at least 1, or 0 for all labels")
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"threshold {threshold:g} must be a probability from 0 to 1")


def failure(answers: Sequence[Answer]) -> str:
    """One line about the recordings that were not heard; empty if all were."""
    failed = [answer for answer in answers if answer.error]
    if not failed:
        return ""
    if len(failed) == 1:
        names = failed[0].error
    else:
        names = ", ".join(str(one.sound.path) for one in failed[:5])
        names += " and others" if len(failed) > 5 else ""
        names += f"; the first: {failed[0].error}"
    done = len(answers) - len(failed)
    rest = f"; the other {done} are done" if done > 1 else "; the other one is done" if done else ""
    return f"{len(failed)} of {len(answers)} recordings not heard: {names}{rest}"


def _shown(labels: Labels) -> str:
    return "  ".join(f"{label} {p:.2f}" for label, p in labels)


def _plain(labels: Labels) -> list[dict[str, Any]]:
    return [{"label": label, "probability": round(p, 6)} for label, p in labels]
