"""Methods that differ in one number only: how many weights they train, how much they hear."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from musictune.bench.contrast import Contrast, Where, difference, mean_of
from musictune.bench.finished import Entry, Finished

Number = Literal["fraction", "reference_seconds"]
LOSS = "concept_loss_change"

_LEAST = 3  # points of a curve
_CHANGE = re.compile(r"[:,](method\.(init_args\.)?fraction|reference\.seconds)=[^,]*")


@dataclass(frozen=True)
class Sweep:
    """A curve.

    Attributes:
        label: of the method without its change of the number.
        rule: how it chooses weights; None if it does not.
        points: by the number, smallest first.
        shared: concepts and seeds that all points have.
    """

    label: str
    rule: str | None
    points: dict[float, Entry]
    shared: frozenset[Where]

    def values(self, finished: Finished, column: str) -> dict[float, Contrast]:
        """A column of the table along the curve, over the shared cells."""
        found = {}
        for x, entry in self.points.items():
            values = finished.values(entry, column)
            mean = mean_of({where: v for where, v in values.items() if where in self.shared})
            if mean is not None:
                found[x] = mean
        return found

    def against(self, other: Sweep, finished: Finished) -> dict[float, Contrast]:
        """The difference of held-out loss from another curve, where both have the number."""
        found = {}
        for x in self.points.keys() & other.points.keys():
            one, two = (finished.values(each.points[x], LOSS) for each in (self, other))
            if (mean := difference(one, two)) is not None:
                found[x] = mean
        return dict(sorted(found.items()))


def find_sweeps(finished: Finished, number: Number) -> list[Sweep]:
    """Curves of three points or more."""
    sweeps = []
    for members in _families(finished, number).values():
        points: dict[float, Entry] = {}
        for x, entry in members:
            if x not in points or len(entry.cells) > len(points[x].cells):
                points[x] = entry
        shared = frozenset.intersection(*(frozenset(e.cells) for e in points.values()))
        if len(points) < _LEAST or not shared:
            continue
        anchor = _anchor(list(points.values()))
        label = _CHANGE.sub("", anchor.label)
        sweeps.append(Sweep(label, anchor.rule, dict(sorted(points.items())), shared))
    return sweeps


def main_methods(finished: Finished) -> list[Entry]:
    """The methods without those that are there for a curve."""
    left_out: set[str] = set()
    numbers: tuple[Number, ...] = ("fraction", "reference_seconds")
    for number in numbers:
        for sweep in find_sweeps(finished, number):
            members = list(sweep.points.values())
            left_out |= {e.label for e in members} - {_anchor(members).label}
    # A single shorter reference is no method of its own either.
    left_out |= {e.label for e in finished.methods if e.reference_seconds is not None}
    return [entry for entry in finished.methods if entry.label not in left_out and entry.cells]


def _families(finished: Finished, number: Number) -> dict[str, list[tuple[float, Entry]]]:
    of: Callable[[Entry], float | None]
    if number == "fraction":

        def of(entry: Entry) -> float | None:
            fraction = entry.options.get("fraction")
            others = entry.options.get("count") or entry.options.get("kilobytes")
            return float(fraction) if fraction is not None and not others else None

    else:

        def of(entry: Entry) -> float | None:
            return entry.reference_seconds or finished.reference_seconds

    found: dict[str, list[tuple[float, Entry]]] = {}
    for entry in finished.methods:
        if entry.cells and (x := of(entry)) is not None:
            found.setdefault(entry.family(number), []).append((x, entry))
    return found


def _anchor(entries: Sequence[Entry]) -> Entry:
    """The one that was made most often, of several the one with the shortest name."""
    return min(entries, key=lambda entry: (-len(entry.cells), len(entry.label)))
