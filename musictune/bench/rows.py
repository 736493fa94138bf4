"""One measured figure as a row, beside a peer and a target, and the table people read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from musictune.console import say
from musictune.errors import InputError

_AT_LEAST, _AT_MOST = ">=", "<="


@dataclass(frozen=True)
class Row:
    """A figure of ours, if there is one with the same figure of a peer.

    Attributes:
        part: what was measured: ``codec``, ``language`` or ``clap``.
        case: the measure and the audio, such as ``mel distance, renders``.
        ours: our figure, in ``unit``.
        peer: the same measure of ``peer_name`` on the same audio.
        ratio: how many times better ours is than the peer; over 1 means that ours is better.
        unit: what the figure counts, such as ``share`` or ``kbit/s``; empty for a plain number.
        target: what is asked for: a number is a least value, a string names its side
            (``>= 0.9``, ``<= 3``, ``<= peer``).
        low, high: a 95 % interval of ``ours``.
        n: how many clips, frames or pairs the figure rests on.
        note: what one must know to read the figure.
        met: whether ``ours`` reaches ``target``; None without a target. Set by `judged`.
    """

    part: str
    case: str
    ours: float
    peer: float | None = None
    peer_name: str | None = None
    ratio: float | None = None
    unit: str = ""
    target: str | float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    note: str = ""
    met: bool | None = None

    @property
    def as_json(self) -> dict[str, Any]:
        """The fields as JSON takes them; a number that is not finite becomes null."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def judged(row: Row) -> Row:
    """``row`` with ``met`` set from its target; a figure that is not finite meets none.

    Raises:
        InputError: the target cannot be read, or names a peer that is not there.
    """
    if row.target is None:
        return replace(row, met=None)
    side, limit = _limit(row)
    reached = row.ours >= limit if side == _AT_LEAST else row.ours <= limit
    return replace(row, met=bool(reached))


def against(ours: float, peer: float, *, higher_is_better: bool) -> float | None:
    """How many times better ``ours`` is; None where a quotient says nothing."""
    better, worse = (ours, peer) if higher_is_better else (peer, ours)
    if not (math.isfinite(better) and math.isfinite(worse)) or worse <= 0 or better < 0:
        return None
    return better / worse


def print_table(rows: Sequence[Row], title: str = "") -> None:
    """Print rows as one aligned table, each note on a line of its own below its row."""
    if title:
        say(title)
    header = ("case", "ours", "95 %", "peer", "ratio", "target", "met", "n")
    lines = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    _say_line(header, widths)
    for row, cells in zip(rows, lines[1:], strict=True):
        _say_line(cells, widths)
        if row.note:
            say(f"    {row.note}")
    say()


def _limit(row: Row) -> tuple[str, float]:
    if isinstance(row.target, (int, float)):
        return _AT_LEAST, float(row.target)
    side, _, value = str(row.target).partition(" ")
    if value == "peer" and row.peer is not None:
        limit = row.peer
    else:
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
    if side not in (_AT_LEAST, _AT_MOST) or math.isnan(limit):
        raise InputError(
            f"target {row.target!r} of {row.case!r} is not understood; give a number or, for "
            f"example, '>= 0.9', '<= 3' or '<= peer'"
        )
    return side, limit


def _cells(row: Row) -> tuple[str, ...]:
    interval = ""
    if row.low is not None and row.high is not None:
        interval = f"{_number(row.low)} to {_number(row.high)}"
    peer = ""
    if row.peer is not None:
        peer = f"{_number(row.peer)} {row.peer_name or ''}".rstrip()
    return (
        row.case,
        f"{_number(row.ours)} {row.unit}".rstrip(),
        interval,
        peer,
        "" if row.ratio is None else _number(row.ratio),
        _target(row.target),
        "" if row.met is None else ("yes" if row.met else "no"),
        "" if row.n is None else str(row.n),
    )


def _target(target: str | float | None) -> str:
    if target is None:
        return ""
    return target if isinstance(target, str) else f"{_AT_LEAST} {_number(target)}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _say_line(cells: Sequence[str], widths: Sequence[int]) -> None:
    say("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
