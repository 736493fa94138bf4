"""How surprising is it to lie far above what was held out? Two answers, for clips of excerpts."""

from __future__ import annotations

import itertools
import math

import numpy as np

Array = np.ndarray

_TAIL = 10  # values at least, if there are twice as many, that tell how a tail falls
_PRIOR = 6  # values that the usual scale is worth
_ROUNDS = 4000


def tail_p(values: Array, held_out: Array, usual_scale: float) -> Array:
    """The chance that another held-out value would lie as high as each of ``values``.

    Above the held-out values it goes on as an exponential tail does. Nearness as
    ``-log(1 - cosine)`` has such a tail where points lie smoothly in any number of dimensions, and
    so has the length of runs of equal tokens. The scale is learned from few values: the answer is
    the predictive distribution under a gamma prior on the rate (Gelman et al. 2013, Bayesian Data
    Analysis, 2.6), which is worth six values of the usual scale and allows for what is not known.

    Args:
        values: ``(values,)``.
        held_out: ``(held_out,)``; of none nothing is known, and the chance is 1.
        usual_scale: how fast such tails fall; half of it is the least that is believed, for whole
            numbers tie.

    Returns:
        ``(values,)`` above 0, at most 1.
    """
    count = len(held_out)
    if not count:
        return np.ones(len(values))
    ordered = np.sort(held_out)[::-1]
    size = min(max(count // 10, _TAIL), count // 2)
    start = ordered[size]
    learned = float((ordered[:size] - start).sum())
    room = _PRIOR * usual_scale + max(learned, size * usual_scale / 2)
    beyond = (1 + np.maximum(values - start, 0) / room) ** -(size + _PRIOR)
    # Up to there the held-out values themselves are the better answer.
    within = (np.searchsorted(-ordered, -values, "right") + 1) / (count + 1)
    return np.where(values > start, (size + 1) / (count + 1) * beyond, within)


def exceedance_p(made: list[Array], held_out: list[Array]) -> float:
    """One-sided p of how many made values lie above all held-out ones, if clips could be swapped.

    The held-out maximum is itself luck, and values of one clip are alike; swapping whole clips
    between the two sets allows for both. All choices of held-out clips are tried, or 4,000 of
    them at random.

    Args:
        made, held_out: per clip its values.
    """
    clips = [clip for clip in (*held_out, *made) if len(clip)]
    chosen = sum(len(clip) > 0 for clip in held_out)
    if chosen == 0 or chosen == len(clips):
        return 1.0
    highest = np.array([clip.max() for clip in clips])
    sizes = np.array([len(clip) for clip in clips])
    values = np.sort(np.concatenate(clips))

    def share(held: Array) -> float:
        above = len(values) - np.searchsorted(values, highest[held].max(), "right")
        return float(above / (len(values) - sizes[held].sum()))

    if math.comb(len(clips), chosen) <= _ROUNDS:
        picks = [np.array(pick) for pick in itertools.combinations(range(len(clips)), chosen)]
    else:
        rng = np.random.default_rng(0)
        picks = [np.arange(chosen)]  # the choice that was seen is one of those possible
        picks += [rng.choice(len(clips), chosen, replace=False) for _ in range(_ROUNDS - 1)]
    seen = share(np.arange(chosen))
    return float(np.mean([share(pick) >= seen - 1e-12 for pick in picks]))
