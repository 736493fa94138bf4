"""Two sets clip by clip: what changed between a base and what was tuned from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
    made: Array, against: Array, pairs: Pairs, about: About, prompts: Sequence[str]
) -> tuple[Score | NotComputed, float]:
    """Mean of made minus against over pairs, with an interval and p over prompts.

    Pairs of one prompt are alike: what another prompt would give is only seen by counting each
    prompt once. Where all pairs have one prompt, they count themselves.

    Args:
        made, against: values per clip, NaN where there is none.
        pairs: indices into both.
        about: which way is better.
        prompts: of each clip of ``made``.

    Returns:
        the score, and the two-sided p of swapping the sets within prompts (NaN without a score).
    """
    mine, theirs = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    differences = made[mine] - against[theirs]
    known = ~np.isnan(differences)
    differences, texts = differences[known], np.asarray(prompts)[mine[known]]
    count = len(differences)
    if not count:
        return NotComputed("the value is known of no pair of clips"), np.nan
    names = list(dict.fromkeys(texts.tolist()))
    note = ""
    if len(names) == 1 < count:
        note = "all pairs have one prompt: it says nothing of other prompts"
    elif len(names) < count:
        differences = np.array([differences[texts == name].mean() for name in names])
        note = f"over {len(names)} prompts, each counting once"
    score = Score(*mean_interval(differences), n=count, better=about.better, note=note)
    return score, sign_flip_p(differences)


def forgetting(
    made_text: Array,
    against_text: Array,
    made: Features,
    against: Features,
    pairs: Pairs,
    prompts: Sequence[str],
) -> tuple[dict[str, Score | NotComputed], dict[str, float]]:
    """What a tuned model has lost where its concept was not asked for.

    Args:
        made_text, against_text: text alignment per clip of the tuned model and of its base.
        made, against: what an embedder heard in the same clips.
        pairs: indices into both of clips of one prompt and seed that do not call the concept.
        prompts: of each clip of ``made``.

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
    lost, p = compare(-made_text, -against_text, pairs, ABOUT_FORGETTING[name], prompts)
    mine, theirs = (
        features.select([pair[side] for pair in pairs]).means()
        for side, features in enumerate((made, against))
    )
    lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
    shift = 1 - (mine * theirs).sum(1) / np.maximum(lengths, 1e-12)
    everywhere = np.arange(len(shift))
    moved, _ = compare(
        shift,
        np.zeros(len(shift)),
        list(zip(everywhere, everywhere, strict=True)),
        ABOUT_FORGETTING["forgetting/shift"],
        [prompts[pair[0]] for pair in pairs],
    )
    if isinstance(moved, Score):
        moved = replace(moved, low=max(moved.low, 0.0), high=min(moved.high, 2.0))
    found: dict[str, Score | NotComputed] = {name: lost, "forgetting/shift": moved}
    return found, {name: p} if isinstance(lost, Score) else {}
