"""The report's page: what is heard and seen on it, and the templates that lay it out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from musictune.metrics.folder import ClipFile, ClipSet
from musictune.metrics.pictures import LONGEST, Excerpt, excerpt
from musictune.metrics.plots import SIZE_HEIGHT, by_size
from musictune.metrics.report_copying import HEARD, Echo, echoes
from musictune.metrics.report_scores import (
    about,
    changes,
    entry,
    headline,
    leading,
    number,
    sections,
    without_change,
)
from musictune.metrics.suite import Evaluation

if TYPE_CHECKING:
    from jinja2 import Environment

_ROWS = 12  # prompts with players; a page with more is slow to open
_REFERENCES = 3
_WORST = 3  # clips of each kind
_ALARMS = 3
_TABLE = 500  # rows; clips.csv has all

_SHOWN = ("audio_alignment", "text_alignment")  # beside a clip's name


@dataclass(frozen=True)
class Player:
    """Something to hear and see.

    Attributes:
        label: whose it is.
        kind: ``made``, ``against`` or ``reference``; what colours it.
        title: what it is, for those who cannot see it.
        sound: None where it was not decoded.
        figures: short, beside the label.
    """

    label: str
    kind: str
    title: str
    sound: Excerpt | None
    figures: str = ""


@dataclass(frozen=True)
class Row:
    """Sounds side by side, under a title with a remark."""

    title: str
    remark: str
    players: tuple[Player, ...]


@dataclass(frozen=True)
class Sets:
    """The sets that a page is about; ``reference`` may have no files, the others may be missing."""

    made: ClipSet
    reference: ClipSet
    against: ClipSet | None = None
    training: ClipSet | None = None


def page(
    evaluation: Evaluation,
    sets: Sets,
    facts: dict[str, Any],
    columns: Sequence[str],
    rows: Sequence[dict[str, Any]],
) -> str:
    """The whole page as HTML.

    Args:
        evaluation: what was measured.
        sets: on what.
        facts: what it was made with.
        columns: names of the values in ``rows``.
        rows: the clips, as in ``clips.csv``.

    Raises:
        InputError: a clip that the page shows can no longer be read.
    """
    made, against = sets.made.name, sets.against.name if sets.against else ""
    listening = _listening(evaluation, sets)
    lead = leading(evaluation)
    changed = changes(evaluation)
    return (
        templates(Path(__file__).parent)
        .get_template("report.html.j2")
        .render(
            made=made,
            against=against,
            reference=sets.reference.name,
            counts={
                "made": len(sets.made.files),
                "against": len(sets.against.files) if sets.against else 0,
                "reference": len(sets.reference.files),
            },
            warnings=evaluation.warnings,
            copying=evaluation.copying,
            copied=_alarm(evaluation, sets),
            headline=headline(evaluation, made, against),
            cards=[entry(evaluation, name, made, against) for name in lead],
            changes=changed,
            ticks=next((change.plot.ticks for change in changed if change.plot), ()),
            unchanged=without_change(evaluation) if against else [],
            sections=sections(evaluation, made, against),
            sizes=by_size(*evaluation.by_size) if evaluation.by_size else None,
            size_height=SIZE_HEIGHT,
            references=_references(sets.reference, listening),
            listening=listening,
            worst=_worst(evaluation, sets),
            columns=[(name, about(evaluation, name).title) for name in columns],
            rows=rows[:_TABLE],
            total=len(rows),
            facts=facts,
            adapters=[_adapter(a) for a in facts["adapters"]],
        )
    )


def templates(folder: Path) -> Environment:
    """The page templates of a folder; what is put into them is escaped, what is missing raises."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = number
    environment.filters["clock"] = clock
    return environment


def clock(seconds: float) -> str:
    """Minutes and seconds, as players show them."""
    whole = math.floor(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


def _listening(evaluation: Evaluation, sets: Sets) -> list[Row]:
    """The clips with players: pairs where there are any, of as many prompts as possible."""
    partner = dict(evaluation.pairs) if sets.against else {}
    files = sets.made.files
    indices = sorted(partner) or list(range(len(files)))
    rows = []
    for i in _one_of_each(indices, files)[:_ROWS]:
        players = [_made(evaluation, sets, i)]
        if sets.against and i in partner:
            players.insert(0, _against(evaluation, sets.against, partner[i]))
        seed = files[i].seed
        remark = "" if seed is None else f"seed {seed}"
        rows.append(Row(files[i].prompt or files[i].file, remark, tuple(players)))
    return rows


def _references(reference: ClipSet, listening: list[Row]) -> list[Player]:
    lengths = [p.sound.seconds for row in listening for p in row.players if p.sound]
    longest = max(lengths, default=LONGEST)
    return [
        Player(file.file, "reference", f"the reference {file.file}", excerpt(file.path, longest))
        for file in _spread(reference.files, _REFERENCES)
    ]


def _worst(evaluation: Evaluation, sets: Sets) -> list[tuple[str, str, list[Row]]]:
    """Title, meaning and clips of each kind of worst clip; nothing with few clips."""
    count = min(_WORST, len(sets.made.files) // 2)
    near = {echo.clip: echo for echo in echoes(evaluation.copying)}
    kinds = []
    shown: set[int] = set()

    def add(title: str, meaning: str, what: str, values: np.ndarray, worst: Iterable[int]) -> None:
        chosen = [i for i in worst if i not in shown][:count]
        shown.update(chosen)
        rows = [
            Row(
                sets.made.files[i].prompt or sets.made.files[i].file,
                what.format(number(float(values[i]))),
                (_made(evaluation, sets, i), *_nearest(sets, near.get(i))),
            )
            for i in chosen
        ]
        if rows:
            kinds.append((title, meaning, rows))

    if evaluation.influence is not None:
        influence = np.asarray(evaluation.influence)
        # NaN sorts last; a clip that draws the sets together is not among the worst.
        order = [int(i) for i in np.argsort(-influence, kind="stable") if influence[i] > 0]
        add(
            "Furthest from the reference",
            "The clips that push the Fréchet distance up most.",
            "adds {} to it",
            influence,
            order,
        )
    alignment = evaluation.made.get("text_alignment")
    if alignment is not None:
        order = [
            int(i) for i in np.argsort(alignment, kind="stable") if alignment[i] == alignment[i]
        ]
        add(
            "Least like their prompts",
            "The clips of the lowest text alignment.",
            "text alignment {}",
            alignment,
            order,
        )
    return kinds


def _alarm(evaluation: Evaluation, sets: Sets) -> list[Row]:
    """The clips nearest to training beside what they are nearest to, where that is too near."""
    if evaluation.copying is None or not evaluation.copying.alarm:
        return []
    rows = []
    for echo in echoes(evaluation.copying)[:_ALARMS]:
        if not echo.surplus > 0:
            break
        file = sets.made.files[echo.clip]
        where = f"from {clock(echo.start)}"
        player = Player(
            f"{sets.made.name}, {where}",
            "made",
            f"{file.file} of {sets.made.name} {where}",
            excerpt(file.path, HEARD, echo.start),
        )
        rows.append(Row(file.prompt or file.file, file.file, (player, *_nearest(sets, echo))))
    return rows


def _nearest(sets: Sets, echo: Echo | None) -> list[Player]:
    """The training clip that a made one comes nearest to."""
    if echo is None:
        return []
    sound = None
    if sets.training:
        path = sets.training.files[echo.training].path
        sound = excerpt(path, HEARD, echo.training_start)
    label = f"training clip {echo.name}, from {clock(echo.training_start)}"
    figures = f"{echo.figures} at {clock(echo.start)}"
    return [Player(label, "reference", f"the {label}", sound, figures)]


def _made(evaluation: Evaluation, sets: Sets, index: int) -> Player:
    file = sets.made.files[index]
    title = f"{file.file} of {sets.made.name}"
    figures = _figures(evaluation.made, index)
    return Player(sets.made.name, "made", title, excerpt(file.path), figures)


def _against(evaluation: Evaluation, against: ClipSet, index: int) -> Player:
    file = against.files[index]
    title = f"{file.file} of {against.name}"
    figures = _figures(evaluation.against, index)
    return Player(against.name, "against", title, excerpt(file.path), figures)


def _figures(values: dict[str, np.ndarray], index: int) -> str:
    """Both alignments of a clip as people read them, leaving out what is not known."""
    numbers = (float(values[name][index]) for name in _SHOWN if name in values)
    return " · ".join(number(value) for value in numbers if not math.isnan(value))


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


def _adapter(adapter: Any) -> str:
    if not isinstance(adapter, dict) or "path" not in adapter:
        return str(adapter)
    return f"{adapter['path']}, weight {adapter.get('weight', 1)}"
