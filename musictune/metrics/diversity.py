"""How varied a set is in itself: a model that always plays the same piece has collapsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor

from musictune.errors import InputError
from musictune.metrics.base import About, NotComputed, Score, SetMetric
from musictune.metrics.distances import refuse_few_clips, unit_means
from musictune.metrics.features import Features
from musictune.metrics.intervals import NONE, jackknife

Array = np.ndarray

_GROUPS = 100  # left out one by one where leaving out each clip would take minutes


def self_similarity(made: Features | Sequence[Tensor] | Sequence[Array]) -> Score:
    """Mean cosine between the mean rows of different clips, with its jackknife interval.

    Raises:
        InputError: fewer than two clips, or rows without direction or not finite.
    """
    made = Features.of(made)
    refuse_few_clips(made, "made", 2, "self-similarity")
    clips = unit_means(made)
    count, total = len(clips), clips.sum(0)
    pairs = float(total @ total) - count
    value = pairs / (count * (count - 1))
    low, high = NONE
    if count > 2:
        without = pairs - 2 * (clips @ total - 1)
        low, high = jackknife(np.asarray(without / ((count - 1) * (count - 2))), value)
        low, high = max(low, -1.0), min(high, 1.0)
    return Score(value, low, high, count, "lower")


def vendi_score(made: Features | Sequence[Tensor] | Sequence[Array]) -> Score:
    """How many different clips there are in effect (Friedman and Dieng, arXiv 2210.02410).

    The exponential of the entropy of the eigenvalues of ``K / n``, where ``K`` holds the cosines
    between the mean rows of the clips: 1 if all are alike, n if all are at right angles. It grows
    with n: compare it at equal numbers of clips. The interval is a jackknife over clips, or over
    100 groups of them, for as many clips.

    Raises:
        InputError: no clips, or rows without direction or not finite.
    """
    made = Features.of(made)
    refuse_few_clips(made, "made", 1, "a Vendi score")
    clips = unit_means(made)
    count = len(clips)
    value = _effective_number(clips)
    if count < 3:
        return Score(value, *NONE, count, "higher")
    groups = np.arange(count) % min(count, _GROUPS)
    without = [_effective_number(clips[groups != group]) for group in range(groups.max() + 1)]
    low, high = jackknife(np.array(without), value)
    return Score(value, max(low, 1.0), min(high, float(count)), count, "higher")


def prompt_diversity(
    made: Features | Sequence[Tensor] | Sequence[Array], groups: Sequence[int]
) -> float:
    """How different clips of one prompt are: 1 minus their mean cosine, mean over prompts.

    Prompts with a single clip are left out; if there are no others, all clips count as of one.

    Args:
        made: of each clip, in the same order as ``groups``.
        groups: the prompt of each clip.

    Raises:
        InputError: fewer than two clips, or rows without direction or not finite.
    """
    made = Features.of(made)
    refuse_few_clips(made, "made", 2, "diversity")
    clips, labels = unit_means(made), np.asarray(groups)
    names, counts = np.unique(labels, return_counts=True)
    several = names[counts > 1]
    sets = [clips[labels == name] for name in several] if len(several) else [clips]
    apart = [1 - (np.square(one.sum(0)).sum() / len(one) - 1) / (len(one) - 1) for one in sets]
    return float(np.mean(apart))


class Diversity(SetMetric):
    """Self-similarity and Vendi score of the made set; the reference is not looked at."""

    needs_reference = False
    scores: ClassVar[Mapping[str, About]] = {
        "self_similarity": About(
            "Self-similarity",
            "Mean cosine between different made clips; near 1 the model always plays the same.",
            "lower",
        ),
        "vendi_score": About(
            "Vendi score",
            "How many different clips there are in effect, from 1 to the number of clips; compare "
            "it at equal numbers.",
            "higher",
        ),
    }

    def __call__(self, made: Features, reference: Features) -> dict[str, Score | NotComputed]:
        """The two scores."""
        found: dict[str, Score | NotComputed] = {}
        for name, measure in (("self_similarity", self_similarity), ("vendi_score", vendi_score)):
            try:
                found[name] = measure(made)
            except InputError as error:
                found[name] = NotComputed(str(error))
        return found


def _effective_number(clips: Array) -> float:
    """Of ``(clips, width)`` unit rows; the smaller Gram matrix has the same eigenvalues."""
    gram = clips @ clips.T if len(clips) <= clips.shape[1] else clips.T @ clips
    eigenvalues = np.linalg.eigvalsh(gram / len(clips))
    shares = eigenvalues[eigenvalues > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()).clip(1, len(clips)))
