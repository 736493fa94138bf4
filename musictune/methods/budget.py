"""How many weights may be trained, and among which layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from musictune.errors import InputError

Scope = Literal["global", "matrix"]

# Self-attention is called self_attn in MusicGen and attention in audio encoders; those of CLAP have
# their projections a level deeper, and no _proj behind their names.
_SELF = r"(self_attn|(^|\.)attention)"
_CROSS = "encoder_attn"
_CLAP = r"(^|\.)attention"
_SHORT = {
    "query": rf"{_SELF}\.q_proj$|{_CLAP}\.self\.query$",
    "key": rf"{_SELF}\.k_proj$|{_CLAP}\.self\.key$",
    "value": rf"{_SELF}\.v_proj$|{_CLAP}\.self\.value$",
    "output": rf"{_SELF}\.(o|out)_proj$|{_CLAP}\.output\.dense$",
    "self_attention": rf"{_SELF}\.(q|k|v|o|out)_proj$"
    rf"|{_CLAP}\.(self\.(query|key|value)|output\.dense)$",
    "cross_attention": rf"{_CROSS}\.(q|k|v|out)_proj$",
    "feed_forward": r"\.fc[12]$|\.(intermediate|output)_dense$"
    r"|(?<!attention)\.(intermediate|output)\.dense$",
}
_SHORT["all"] = "|".join(_SHORT[name] for name in ("self_attention", "cross_attention"))
_SHORT["all"] += "|" + _SHORT["feed_forward"]


def target_pattern(targets: str) -> str:
    """A regular expression over layer names from ``targets``.

    Args:
        targets: ``value``, ``query``, ``key``, ``output`` (of self-attention), ``self_attention``,
            ``cross_attention``, ``feed_forward``, ``all``, several of them with commas between, or
            any regular expression, which is returned as it is.

    Raises:
        InputError: some of several are such names and others are not.
    """
    names = [name.strip() for name in targets.split(",")]
    if all(name in _SHORT for name in names):
        return "|".join(_SHORT[name] for name in names)
    if any(name in _SHORT for name in names):
        unknown = next(name for name in names if name not in _SHORT)
        raise InputError(
            f"targets {targets!r}: {unknown!r} is none of {', '.join(_SHORT)}; name only these, or "
            "write one regular expression"
        )
    return targets


@dataclass(frozen=True)
class Budget:
    """How many weights may be trained: exactly one of three.

    Attributes:
        fraction: share of the matched weights, above 0 and at most 1.
        count: number of weights.
        kilobytes: thousand bytes of the saved change: 8 per single entry (index and value); 4 per
            entry of a row or column, and 4 for the row's or column's index.

    Raises:
        InputError: none or several are given, or a value is out of range.
    """

    fraction: float | None = None
    count: int | None = None
    kilobytes: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            said = ", ".join(f"{name}={value}" for name, value in given.items()) or "none"
            raise InputError(
                f"budget {said} must be one of fraction, count and kilobytes; set the others to "
                "null"
            )
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise InputError(
                f"fraction {self.fraction} must lie above 0 and at most 1, such as 0.05"
            )
        if self.count is not None and not (isinstance(self.count, int) and self.count >= 1):
            raise InputError(f"count {self.count} must be a whole number of weights, at least 1")
        if self.kilobytes is not None and not 0 < self.kilobytes < math.inf:
            raise InputError(f"kilobytes {self.kilobytes} must be a number above 0, such as 200")

    def __str__(self) -> str:
        if self.fraction is not None:
            return f"fraction {self.fraction:g}"
        return f"count {self.count}" if self.count is not None else f"kilobytes {self.kilobytes:g}"

    def cost(self, entries: int, indices: int) -> int:
        """What ``entries`` saved under ``indices`` take of :meth:`limit`: weights or bytes."""
        return entries if self.kilobytes is None else 4 * (entries + indices)

    def limit(self, total: int) -> int:
        """The most that may be spent where ``total`` weights are matched: weights or bytes."""
        if self.fraction is not None:
            return round(self.fraction * total)
        return self.count if self.count is not None else math.floor(1000 * (self.kilobytes or 0))

    def share(self, total: int, *, single: bool) -> float:
        """The same as a share of ``total`` weights, about, at most 1; ``single`` entries or not."""
        whole = self.cost(total, total if single else 0)
        return min(1.0, self.limit(total) / whole)
