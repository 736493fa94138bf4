"""The report: ``metrics.json``, ``clips.csv`` and one ``report.html`` that needs nothing else."""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from musictune.metrics.embedders import Embedder
from musictune.metrics.folder import ClipSet
from musictune.metrics.report_copying import copying_cells, copying_columns
from musictune.metrics.report_page import Sets, page
from musictune.metrics.suite import Evaluation

SCHEMA = 1

_PACKAGES = (
    "musictune",
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "soxr",
    "librosa",
    "mir_eval",
)
_INFLUENCE = "influence"
_NAMES = "backslashreplace"  # paths may hold bytes that are no text; JSON knows these escapes


def write_report(
    folder: Path,
    evaluation: Evaluation,
    embedder: Embedder,
    made: ClipSet,
    reference: ClipSet,
    against: ClipSet | None = None,
    extra: Mapping[str, Any] | None = None,
    training: ClipSet | None = None,
) -> None:
    """Write the three files into ``folder``, which must exist.

    Args:
        folder: where to.
        evaluation: what `score_sets` measured on these sets.
        embedder: what measured it.
        made, reference, against: the sets; the reference has no files where it is statistics.
        extra: further facts that are needed to make the numbers again.
        training: the clips that ``evaluation.copying`` speaks of, to hear them.

    Raises:
        InputError: a clip that the page shows can no longer be read.
    """
    facts = made_with(embedder, made, reference, against, extra)
    if evaluation.copying is not None:
        facts["copying"] = {"thresholds": evaluation.copying.thresholds}
    (folder / "metrics.json").write_text(
        json.dumps(metrics(evaluation, facts), indent=2, ensure_ascii=False, allow_nan=False)
        + "\n",
        encoding="utf-8",
        errors=_NAMES,
    )
    columns = [*dict.fromkeys([*evaluation.made, *evaluation.against])]
    if evaluation.influence is not None:
        columns.append(_INFLUENCE)
    rows = _clip_rows(evaluation, made, against)
    with (folder / "clips.csv").open("w", encoding="utf-8", errors=_NAMES, newline="") as file:
        names = ["file", "prompt", "seed", "set", *columns, *copying_columns(evaluation.copying)]
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows({name: harmless(cell) for name, cell in row.items()} for row in rows)
    sets = Sets(made, reference, against, training)
    text = page(evaluation, sets, facts, columns, rows)
    (folder / "report.html").write_text(text, encoding="utf-8", errors=_NAMES)


def metrics(evaluation: Evaluation, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What ``metrics.json`` holds; numbers that are not finite become None, as JSON has none."""
    scores: dict[str, dict[str, Any]] = {
        name: dict(score.as_json()) for name, score in evaluation.scores.items()
    }
    for name in scores.keys() & evaluation.p.keys():
        scores[name]["p"] = evaluation.p[name]
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "scores": scores,
        "not_computed": evaluation.not_computed,
        "warnings": evaluation.warnings,
        "made_with": dict(facts),
    }
    if evaluation.copying is not None:
        found["copying"] = {
            "alarm": evaluation.copying.alarm,
            "reason": evaluation.copying.alarm_reason,
        }
    return dict(_plain(found))


def made_with(
    embedder: Embedder,
    made: ClipSet,
    reference: ClipSet,
    against: ClipSet | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything needed to make the same numbers again; ``extra`` is added to it."""
    facts: dict[str, Any] = {
        "versions": versions(),
        "embedder": embedder.name,
        "checkpoint_hashes": {"embedder": embedder.hash},
        "dim": embedder.dim,
        "windows": {
            "seconds": embedder.window_seconds,
            "hop": embedder.hop_seconds,
            "sample_rate": embedder.sample_rate,
        },
        **_origin(made),
        "reference": {"name": reference.name, "files": len(reference.files)},
    }
    if against:
        facts["against"] = _origin(against)
    for name, more in (extra or {}).items():
        known = facts.get(name)
        # Two tables of one name, such as hashes of checkpoints, are one.
        if isinstance(known, Mapping) and isinstance(more, Mapping):
            more = {**known, **more}
        facts[name] = more
    return facts


def _origin(clips: ClipSet) -> dict[str, Any]:
    adapters = {json.dumps(a, sort_keys=True): a for file in clips.files for a in file.adapters}
    return {
        "name": clips.name,
        "files": len(clips.files),
        "base": ", ".join(sorted({file.base for file in clips.files if file.base})),
        "adapters": list(adapters.values()),
        "seeds": sorted({file.seed for file in clips.files if file.seed is not None}),
    }


def _clip_rows(
    evaluation: Evaluation, made: ClipSet, against: ClipSet | None
) -> list[dict[str, Any]]:
    """One for each clip of both sets; values as text of six digits, empty where not known."""
    mine = dict(evaluation.made)
    if evaluation.influence is not None:
        mine[_INFLUENCE] = np.asarray(evaluation.influence)
    sets = [(made, mine)] + ([(against, evaluation.against)] if against else [])
    rows = [
        {"file": file.file, "prompt": file.prompt, "seed": file.seed, "set": clips.name}
        | {name: _cell(float(column[i])) for name, column in values.items()}
        for clips, values in sets
        for i, file in enumerate(clips.files)
    ]
    # The made clips come first.
    for row, cells in zip(rows, copying_cells(evaluation.copying), strict=False):
        row |= cells
    return rows


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def harmless(cell: Any) -> Any:
    """Words that a spreadsheet would run as a formula, marked as text; numbers as they are."""
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@")) or _number(cell):
        return cell
    return f"'{cell}"


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _plain(thing: Any) -> Any:
    if isinstance(thing, Mapping):
        return {str(name): _plain(value) for name, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [_plain(value) for value in thing]
    if isinstance(thing, (bool, str, int)) or thing is None:
        return thing
    if isinstance(thing, (float, np.floating)):
        return float(thing) if math.isfinite(thing) else None
    if isinstance(thing, np.integer):
        return int(thing)
    return str(thing)  # a path


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what numbers come out."""
    return {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return ""
