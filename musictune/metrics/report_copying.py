"""What the report tells of nearness to the training clips."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from musictune.metrics.pictures import LONGEST

if TYPE_CHECKING:
    from musictune.metrics.copying import CopyingReport, Kind, Nearest

HEARD = min(5.0, LONGEST)
"""Seconds that are played from where a likeness begins."""

_WORDS = {"clap": "likeness of sound {:.3f}", "chroma": "likeness of notes {:.3f}"}
_RUN = "{:.0f} equal codec tokens"
_ALMOST = 1e-6  # between a likeness and 1, where its logarithm ends
_PARTS = ("", "_start", "_training", "_training_start")


@dataclass(frozen=True)
class Echo:
    """A made clip and the training clip it comes nearest to.

    Attributes:
        clip: index of the made clip.
        start: seconds at which the likeness begins in it.
        training: index of the training clip.
        name: of the training clip.
        training_start: seconds at which the likeness begins there.
        figures: how near, in words.
        surplus: by how much it is nearer than held-out clips come, a logarithm: none at 0 or below,
            and NaN where held-out clips are not known.
    """

    clip: int
    start: float
    training: int
    name: str
    training_start: float
    figures: str
    surplus: float


def echoes(copying: CopyingReport | None) -> list[Echo]:
    """One for each made clip that sounds, by its most striking measure; the nearest first."""
    if copying is None:
        return []
    found = []
    for clip, kinds in enumerate(copying.nearest):
        ranked = [_echo(copying, clip, kind, near) for kind, near in kinds.items()]
        if ranked:
            found.append(min(ranked, key=_order))
    return sorted(found, key=_order)


def copying_columns(copying: CopyingReport | None) -> list[str]:
    """Names of the columns that `copying_cells` fills."""
    if copying is None:
        return []
    kinds = dict.fromkeys(kind for nearest in copying.nearest for kind in nearest)
    return [f"copying_{kind}{part}" for kind in kinds for part in _PARTS]


def copying_cells(copying: CopyingReport | None) -> list[dict[str, str]]:
    """Per made clip, by column: how near, where in it, to which training clip, where there."""
    if copying is None:
        return []
    return [
        {
            f"copying_{kind}{part}": cell
            for kind, near in nearest.items()
            for part, cell in zip(
                _PARTS,
                (f"{near.value:.6g}", f"{near.start:.6g}", near.name, f"{near.training_start:.6g}"),
                strict=True,
            )
        }
        for nearest in copying.nearest
    ]


def _echo(copying: CopyingReport, clip: int, kind: Kind, near: Nearest) -> Echo:
    threshold = copying.thresholds.get(kind)
    return Echo(
        clip=clip,
        start=max(near.start, 0.0),
        training=near.clip,
        name=near.name,
        training_start=max(near.training_start, 0.0),
        figures=_WORDS.get(kind, _RUN).format(near.value),
        surplus=math.nan if threshold is None else _surplus(kind, near.value, threshold),
    )


def _surplus(kind: Kind, value: float, threshold: float) -> float:
    if kind == "tokens":
        return math.log(max(value, 1.0) / max(threshold, 1.0))
    return math.log(max(1 - threshold, _ALMOST) / max(1 - value, _ALMOST))


def _order(echo: Echo) -> float:
    return math.inf if math.isnan(echo.surplus) else -echo.surplus
