"""Two sets clip by clip: what changed between a base and what was tuned from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from musictune.metrics.base import About, NotComputed, Score
from musictune.metrics.features import Features
from musictune.metrics.intervals import mean_interval, sign_flip_p

Array = np.ndarray
Pairs = Sequence[tuple[int, int]]

ABOUT_FORGETTING = {
    "forgetting/text_alignment": About(
        "Forgotten: text alignment",
        "What prompts without the concept lost in text alignment, base minus tuned.",
        "lower",
    ),
    "forgetting/shift": About(
        "Forgotten: shift",
        "How far the music of prompts without the concept moved: 1 - cosine to the base's.",
        "lower",
    ),
}


def compare(
    made: Array, against: Array, pairs: Pairs, about: About
) -> tuple[Score | NotComputed, float]:
    """Mean of made minus against over pairs, its interval over pairs, and p.

    Args:
        made, against: values per clip, NaN where there is none.
        pairs: indices into both.
        about: which way is better.

    Returns:
        the score, and the two-sided p of swapping the sets within pairs (NaN without a score).
    """
    mine, theirs = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    differences = made[mine] - against[theirs]
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return NotComputed("the value is known of no pair of clips"), np.nan
    score = Score(*mean_interval(differences), n=len(differences), better=about.better)
    return score, sign_flip_p(differences)


def forgetting(
    made_text: Array, against_text: Array, made: Features, against: Features, pairs: Pairs
) -> tuple[dict[str, Score | NotComputed], dict[str, float]]:
    """What a tuned model has lost where its concept was not asked for.

    Args:
        made_text, against_text: text alignment per clip of the tuned model and of its base.
        made, against: what an embedder heard in the same clips.
        pairs: indices into both of clips of one prompt and seed that do not call the concept.

    Returns:
        ``forgetting/text_alignment`` (base minus tuned) and ``forgetting/shift`` (1 minus the
        cosine of both clips' mean points), with the p of the first.
    """
    if not pairs:
        reason = NotComputed(
            "no pair of clips has a prompt without the concept; generate plain prompts with both"
        )
        return dict.fromkeys(ABOUT_FORGETTING, reason), {}
    name = "forgetting/text_alignment"
    lost, p = compare(-made_text, -against_text, pairs, ABOUT_FORGETTING[name])
    mine, theirs = (
        features.select([pair[side] for pair in pairs]).means()
        for side, features in enumerate((made, against))
    )
    lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
    shift = 1 - (mine * theirs).sum(1) / np.maximum(lengths, 1e-12)
    value, low, high = mean_interval(shift)
    low, high = (float(np.clip(end, 0, 2)) for end in (low, high))
    moved = Score(value, low, high, n=len(shift), better="lower")
    found: dict[str, Score | NotComputed] = {name: lost, "forgetting/shift": moved}
    return found, {name: p} if isinstance(lost, Score) else {}
