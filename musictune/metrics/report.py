"""The report: ``metrics.json``, ``clips.csv`` and one ``report.html`` that needs nothing else."""

from __future__ import annotations

import csv
import json
import math
import platform
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from musictune.metrics.base import Score
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.folder import ClipFile, ClipSet
from musictune.metrics.pictures import excerpt
from musictune.metrics.suite import PER_CLIP, Evaluation

if TYPE_CHECKING:
    from jinja2 import Environment

SCHEMA = 1
MEANINGS = {
    "audio_alignment": (
        "Audio alignment",
        "How close it sounds to the reference: mean cosine over all pairs of windows.",
    ),
    "text_alignment": (
        "Text alignment",
        "How well it follows its prompts: mean cosine of each clip with its own prompt.",
    ),
    "frechet_distance": (
        "Fréchet audio distance",
        "How far the whole set lies from the reference, in sound and in variety.",
    ),
    "self_similarity": (
        "Self-similarity",
        "How alike its clips are: near 1, the model plays one piece whatever it is asked.",
    ),
}

_ROWS = 12  # prompts with players; a page with more is slow to open
_REFERENCES = 3


def write_report(
    folder: Path,
    evaluation: Evaluation,
    embedder: ClapEmbedder,
    made: ClipSet,
    reference: ClipSet,
    against: ClipSet | None = None,
) -> None:
    """Write the three files into ``folder``, which must exist.

    Args:
        folder: where to.
        evaluation: what `score_sets` measured on these sets.
        embedder: what measured it.
        made, reference, against: the sets.

    Raises:
        InputError: a clip that the page shows can no longer be read.
    """
    facts = made_with(embedder, made, reference, against)
    (folder / "metrics.json").write_text(
        json.dumps(metrics(evaluation, facts), indent=2, ensure_ascii=False, allow_nan=False)
        + "\n",
        encoding="utf-8",
    )
    rows = _clip_rows(evaluation, made, against)
    with (folder / "clips.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["file", "prompt", "seed", "set", *PER_CLIP])
        writer.writeheader()
        writer.writerows(rows)
    page = _page(evaluation, facts, made, reference, against, rows)
    (folder / "report.html").write_text(page, encoding="utf-8")


def metrics(evaluation: Evaluation, facts: dict[str, Any]) -> dict[str, Any]:
    """What ``metrics.json`` holds."""
    scores: dict[str, dict[str, Any]] = {
        name: score.as_json() for name, score in evaluation.scores.items()
    }
    for name, p in evaluation.p.items():
        scores[name]["p"] = p
    return {
        "schema": SCHEMA,
        "scores": scores,
        "not_computed": evaluation.not_computed,
        "made_with": facts,
    }


def made_with(
    embedder: ClapEmbedder, made: ClipSet, reference: ClipSet, against: ClipSet | None
) -> dict[str, Any]:
    """Everything needed to make the same numbers again."""
    packages = ("musictune", "torch", "transformers", "numpy", "soxr")
    facts: dict[str, Any] = {
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in packages},
        "embedder": embedder.name,
        "checkpoint_hashes": {"embedder": embedder.hash},
        "windows": {"seconds": embedder.window_seconds, "hop": embedder.window_seconds / 2},
        **_origin(made),
        "reference": {"name": reference.name, "files": len(reference.files)},
    }
    if against:
        facts["against"] = _origin(against)
    return facts


def headline(evaluation: Evaluation, made: str, against: str) -> list[tuple[str, str]]:
    """What the paired differences say: a sentence and its figures; nothing without pairs."""
    words = {
        "audio_alignment": ("sounds {} the reference {}", "closer to", "less like", "as near"),
        "text_alignment": ("follows its prompts {} {}", "better", "less well", "as well"),
    }
    found = []
    for name, (frame, better, worse, same) in words.items():
        score = evaluation.scores.get(f"difference/{name}")
        if not score:
            continue
        if score.low > 0 or score.high < 0:
            claim = frame.format(better if score.low > 0 else worse, f"than {against}")
        else:
            claim = frame.format(f"about {same}", f"as {against}")
        pairs = "pair" if score.n == 1 else "pairs"
        figures = (
            f"{MEANINGS[name][0]} {_number(score.value, '+')} {_interval(score)} over {score.n} "
            f"{pairs} of one prompt and seed, p = {evaluation.p[f'difference/{name}']:.2g}"
        )
        found.append((f"{made} {claim}.", figures))
    return found


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
    sets = [(made, evaluation.made)] + ([(against, evaluation.against)] if against else [])
    return [
        {
            "file": file.file,
            "prompt": file.prompt,
            "seed": file.seed,
            "set": clips.name,
            **{name: _cell(values[name], i) for name in PER_CLIP},
        }
        for clips, values in sets
        for i, file in enumerate(clips.files)
    ]


def _cell(values: Tensor, index: int) -> str:
    value = float(values[index])
    return "" if math.isnan(value) else f"{value:.6f}"


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}".replace("-", "−")


def _page(
    evaluation: Evaluation,
    facts: dict[str, Any],
    made: ClipSet,
    reference: ClipSet,
    against: ClipSet | None,
    rows: list[dict[str, Any]],
) -> str:
    environment = templates(Path(__file__).parent)
    listening = _listening(evaluation, made, against)
    longest = max(row["made"].seconds for row in listening)
    references = [
        (file.file, excerpt(file.path, longest)) for file in _spread(reference.files, _REFERENCES)
    ]
    return environment.get_template("report.html.j2").render(
        made=made.name,
        against=against.name if against else "",
        reference=reference.name,
        counts={
            "made": len(made.files),
            "against": len(against.files) if against else 0,
            "reference": len(reference.files),
        },
        headline=headline(evaluation, made.name, against.name if against else ""),
        cards=[_card(name, evaluation, made, against) for name in MEANINGS],
        listening=listening,
        references=references,
        rows=rows,
        facts=facts,
        adapters=[_adapter(a) for a in facts["adapters"]],
    )


def templates(folder: Path) -> Environment:
    """The page templates of a folder; what is put into them is escaped, what is missing raises."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _card(
    name: str, evaluation: Evaluation, made: ClipSet, against: ClipSet | None
) -> dict[str, Any]:
    """One score of each set with where its bar and its interval go, in percent of the width."""
    title, meaning = MEANINGS[name]
    sets = ([(against.name, "against", f"against/{name}")] if against else []) + [
        (made.name, "made", name)
    ]
    found = [evaluation.scores[key] for _, _, key in sets if key in evaluation.scores]
    ends = [end for s in found for end in (s.value, s.low, s.high) if not math.isnan(end)]
    low, high = min([0.0, *ends]), max([1e-9, *ends])

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    bars = []
    for label, kind, key in sets:
        score = evaluation.scores.get(key)
        bar: dict[str, Any] = {"label": label, "kind": kind, "score": score}
        if score:
            start, end = sorted((place(0.0), place(score.value)))
            bar |= {"start": start, "width": round(end - start, 2), "interval": None}
            bar["text"] = f"{_number(score.value)} {_interval(score)}".strip()
            if not math.isnan(score.low):
                left, right = place(score.low), place(score.high)
                bar["interval"] = {"start": left, "width": round(right - left, 2)}
        else:
            bar["text"] = evaluation.not_computed.get(key, "")
        bars.append(bar)
    difference = evaluation.scores.get(f"difference/{name}")
    return {
        "title": title,
        "meaning": meaning,
        "better": "lower" if name in ("frechet_distance", "self_similarity") else "higher",
        "bars": bars,
        "zero": place(0.0) if low < 0 else None,
        "n": max((score.n for score in found), default=0),
        "without_interval": any(math.isnan(score.low) for score in found),
        "difference": f"{_number(difference.value, '+')} {_interval(difference)}".strip()
        if difference
        else "",
        "p": evaluation.p.get(f"difference/{name}"),
    }


def _listening(
    evaluation: Evaluation, made: ClipSet, against: ClipSet | None
) -> list[dict[str, Any]]:
    """The clips with players: pairs where there are any, of as many prompts as possible."""
    partner = dict(evaluation.pairs)
    indices = sorted(partner) or list(range(len(made.files)))
    rows = []
    for i in _one_of_each(indices, made.files)[:_ROWS]:
        file = made.files[i]
        row: dict[str, Any] = {
            "title": file.prompt or file.file,
            "seed": file.seed,
            "made": excerpt(file.path),
            "made_file": file.file,
            "made_scores": _shown(evaluation.made, i),
            "against": None,
        }
        if against and i in partner:
            other = partner[i]
            row["against"] = excerpt(against.files[other].path)
            row["against_file"] = against.files[other].file
            row["against_scores"] = _shown(evaluation.against, other)
        rows.append(row)
    return rows


def _shown(values: dict[str, Tensor], index: int) -> list[str]:
    """Both alignments of a clip as people read them, leaving out what is not known."""
    numbers = (float(values[name][index]) for name in PER_CLIP)
    return [_number(number) for number in numbers if not math.isnan(number)]


def _one_of_each(indices: list[int], files: tuple[ClipFile, ...]) -> list[int]:
    """The same indices, the first of each prompt before the second of any."""
    seen: Counter[str] = Counter()
    turns = []
    for i in indices:
        key = files[i].prompt or files[i].file
        turns.append((seen[key], i))
        seen[key] += 1
    return [i for _, i in sorted(turns)]


def _spread(files: tuple[ClipFile, ...], most: int) -> list[ClipFile]:
    """At most ``most`` files, evenly from all."""
    count = min(len(files), most)
    return [files[i * len(files) // count] for i in range(count)]


def _interval(score: Score) -> str:
    if math.isnan(score.low):
        return ""
    return f"({_number(score.low)} to {_number(score.high)})"


def _adapter(adapter: Any) -> str:
    if not isinstance(adapter, dict) or "path" not in adapter:
        return str(adapter)
    return f"{adapter['path']}, weight {adapter.get('weight', 1)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return ""
