"""The styles the composer writes in: adding a style is adding one row to a table."""

from __future__ import annotations

from musictune.compose.style import Style
from musictune.compose.styles_popular import POPULAR
from musictune.compose.styles_traditional import TRADITIONAL

STYLES: dict[str, Style] = {style.name: style for style in (*POPULAR, *TRADITIONAL)}
"""Every style by its plainest name."""

# Kept for measuring how well a new style is learned: the base model must never hear them.
HELD_OUT_STYLES = frozenset(
    {
        "bossa nova",
        "reggae",
        "tango",
        "klezmer",
        "gamelan",
        "surf",
        "afrobeat",
        "ragtime",
        "chiptune",
        "waltz musette",
    }
)
