"""The styles the composer writes in: adding a style is adding one row to a table."""

from __future__ import annotations

from musictune.compose.style import Style
from musictune.compose.styles_held_out import HELD_OUT
from musictune.compose.styles_popular import POPULAR
from musictune.compose.styles_traditional import TRADITIONAL
from musictune.errors import InputError

STYLES: dict[str, Style] = {style.name: style for style in (*POPULAR, *TRADITIONAL)}
"""What the composer draws from by itself, by plainest name."""

HELD_OUT_STYLES: dict[str, Style] = {style.name: style for style in HELD_OUT}
"""Composed only when asked for: the base model must never hear them."""


def find_style(name: str) -> Style:
    """The style called ``name``, held-out ones included.

    Raises:
        InputError: there is none.
    """
    found = STYLES.get(name) or HELD_OUT_STYLES.get(name)
    if found is None:
        known = ", ".join([*STYLES, *HELD_OUT_STYLES])
        raise InputError(f"style {name!r} is not known; choose one of {known}")
    return found
