"""The Fréchet audio distance (arXiv 1812.08466): plain, freed of its bias, and extrapolated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from musictune.errors import InputError
from musictune.metrics.base import About, NotComputed, Score, SetMetric
from musictune.metrics.features import Features, comparable
from musictune.metrics.frechet_bias import by_size, halving_bias
from musictune.metrics.frechet_influence import Influence
from musictune.metrics.gaussian import Gaussian, Groups, distance
from musictune.metrics.intervals import NONE
from musictune.metrics.statistics_files import Statistics

Array = np.ndarray


class Frechet(SetMetric):
    """Fréchet distances between the Gaussians of two sets of embeddings, squared as is usual.

    The plain distance grows as clips get fewer (Chong and Forsyth 2020, arXiv 1911.07023), so that
    only sets of equal size compare. Halving the clips of both sets doubles that bias to first
    order, and so tells it. Intervals rest on whole clips, made and reference: rows of one clip are
    alike, and an interval that takes them for independent is far too narrow.
    """

    scores: ClassVar = {
        "frechet_distance": About(
            "Fréchet distance",
            "How unlike the reference the music sounds as a set; it also grows as clips get fewer, "
            "so compare sets of equal size only.",
            "lower",
        ),
        "frechet_distance_debiased": About(
            "Fréchet distance, debiased",
            "The same, freed of what too few clips add; near 0 the sets sound alike.",
            "lower",
        ),
        "frechet_distance_infinity": About(
            "Fréchet distance, extrapolated",
            "The plain distance drawn out to endlessly many made clips, the reference as it is; "
            "for comparison with papers that give it.",
            "lower",
        ),
    }

    def __call__(self, made: Features, reference: Features) -> dict[str, Score | NotComputed]:
        """All three.

        Raises:
            InputError: fewer than two embeddings in a set, other embedders, or values not finite.
        """
        comparable(made, reference)
        return _scores(made, Groups(made), reference, Groups(reference))


def frechet_distance(mu1: Array, cov1: Array, mu2: Array, cov2: Array) -> float:
    """Squared Fréchet distance of two Gaussians (Dowson and Landau 1982), in float64, at least 0.

    ``|mu1 - mu2|² + tr(cov1) + tr(cov2) - 2 tr((cov1 cov2)^½)``, where the last trace is the sum of
    the square roots of the eigenvalues of ``Lᵀ cov2 L`` with ``cov1 = L Lᵀ``: symmetric, so that no
    complex root, no added epsilon and no general matrix root is needed.

    Args:
        mu1, mu2: ``(dim,)`` means.
        cov1, cov2: ``(dim, dim)`` covariances, which may be singular.

    Raises:
        InputError: shapes that do not fit, or values that are not finite.
    """
    mu1, cov1 = np.asarray(mu1, np.float64), np.asarray(cov1, np.float64)
    mu2, cov2 = np.asarray(mu2, np.float64), np.asarray(cov2, np.float64)
    _check_shapes(mu1, cov1, mu2, cov2)
    _check_finite(mu1, cov1, mu2, cov2)
    return distance(Gaussian(mu2, cov2), Gaussian(mu1, cov1))


def frechet_between(one: Array, other: Array) -> float:
    """Squared Fréchet distance of two sets of embeddings, ``(n, dim)`` and ``(m, dim)``.

    Raises:
        InputError: fewer than two points on a side, other dimensions, or values not finite.
    """
    sets = [Features.of([np.asarray(points, np.float64)]) for points in (one, other)]
    comparable(*sets)
    return distance(*(Gaussian.of_points(features.points) for features in sets))


def frechet_score(
    made: Features | Sequence[Tensor] | Sequence[Array],
    reference: Features | Sequence[Tensor] | Sequence[Array],
) -> Score:
    """The plain distance alone; sets are given by the ``(windows, dim)`` of their clips.

    Raises:
        InputError: fewer than two windows in a set, other embedders, or values not finite.
    """
    made, reference = Features.of(made), Features.of(reference)
    comparable(made, reference)
    return _Spread.of(made, Groups(made).whole, reference, Groups(reference).whole).plain()


def frechet_to_statistics(made: Features, statistics: Statistics) -> dict[str, Score | NotComputed]:
    """The scores of `Frechet` against stored statistics, which count as given.

    Their bias and chance are not in the intervals, as the clips behind them are not known.

    Raises:
        InputError: fewer than two embeddings, statistics of another embedder or dimension, or
            values not finite.
    """
    statistics.check_fits(made)
    comparable(made, made)
    return _scores(made, Groups(made), None, statistics.gaussian)


@dataclass(frozen=True)
class _Spread:
    """The plain distance and what chance in the choice of clips does to it.

    Attributes:
        value: the distance.
        variance: of it, to first order; NaN if the made clips are fewer than two.
        freedom: degrees of freedom of ``variance`` (Satterthwaite 1946).
        n: made clips.
        short: how few clips there are; empty if they are enough to tell the bias.
        no_centre: whether they are so few that freeing the distance of its bias fails.
        as_given: whether chance in the reference is left out.
    """

    value: float
    variance: float
    freedom: float
    n: int
    short: str
    no_centre: bool
    as_given: bool

    @classmethod
    def of(
        cls, made: Features, one: Gaussian, reference: Features | None, other: Gaussian
    ) -> _Spread:
        sides = [
            (g.n_clips, side) for g, side in ((one, "made"), (other, "reference")) if g.n_clips
        ]
        parts = []
        if one.n_clips > 1:
            influence = Influence.between(one, other)
            parts.append(_variance(influence.of_made(made), one.n_clips))
            if reference is not None and other.n_clips > 1:
                parts.append(_variance(influence.of_reference(reference), other.n_clips))
        variance = sum(v for v, _ in parts) if parts else math.nan
        spread = sum(v * v / f for v, f in parts)
        # What too few clips add goes with this sum. Unless half the clips outnumber the dimensions
        # it is not twice that of the whole: in simulations the corrected distance is then still
        # too high, and its interval holds the truth far less often than it says.
        clips = 1 / sum(1 / n for n, _ in sides)
        names = " and ".join(f"{n} {side} clips" for n, side in sides)
        return cls(
            value=distance(one, other),
            variance=variance,
            freedom=variance**2 / spread if spread > 0 else math.inf,
            n=one.n_clips,
            short=f"{names} for {one.dim} dimensions" if clips <= 2 * one.dim else "",
            no_centre=clips <= one.dim,
            as_given=len(parts) == 1,
        )

    def plain(self) -> Score:
        """The interval of the plain distance itself, at this number of clips."""
        return self._score(self.value, 0.0, self.no_centre, False)

    def corrected(self, value: float, more: float = 0.0) -> Score:
        """Of the true distance, ``more`` being the variance that the correction adds."""
        return self._score(value, more, bool(self.short), self.no_centre)

    def _score(self, value: float, more: float, doubtful: bool, without: bool) -> Score:
        from scipy.special import stdtrit

        low, high = NONE
        notes = []
        if value < 0:
            notes.append("not to be told from the reference")
        if self.n < 2:
            notes.append("one clip has no interval")
        elif without:
            notes.append(
                f"{self.short}: too few to tell what they add, so there is no interval; a "
                f"kernel distance needs fewer clips"
            )
        else:
            reach = math.sqrt(self.variance + more) * float(stdtrit(self.freedom, 0.975))
            low, high = max(value - reach, 0.0), max(value + reach, 0.0)
            if doubtful:
                notes.append(
                    f"{self.short}: the interval is unreliable; a kernel distance needs fewer clips"
                )
            if self.as_given:
                notes.append("the reference counts as given")
        return Score(max(value, 0.0), low, high, self.n, "lower", "; ".join(notes))


def _scores(
    made: Features, one: Groups, reference: Features | None, other: Groups | Gaussian
) -> dict[str, Score | NotComputed]:
    target = other.whole if isinstance(other, Groups) else other
    spread = _Spread.of(made, one.whole, reference, target)
    scores: dict[str, Score | NotComputed] = {"frechet_distance": spread.plain()}
    corrections: dict[str, Callable[[], Score]] = {
        "frechet_distance_debiased": lambda: spread.corrected(
            spread.value - halving_bias(one, other, spread.value)
        ),
        "frechet_distance_infinity": lambda: _at_infinity(spread, one, target),
    }
    for name, correct in corrections.items():
        try:
            scores[name] = correct()
        except InputError as error:
            scores[name] = NotComputed(str(error))
    return scores


def _at_infinity(spread: _Spread, made: Groups, reference: Gaussian) -> Score:
    *_, fit = by_size(made, reference)
    return spread.corrected(fit.at_infinity, fit.error**2)


def _variance(influences: Array, clips: int) -> tuple[float, int]:
    """Of a sum of independent influences, and its degrees of freedom."""
    return clips / (clips - 1) * float(np.square(influences).sum()), clips - 1


def _check_shapes(mu1: Array, cov1: Array, mu2: Array, cov2: Array) -> None:
    dim = mu1.shape[0] if mu1.ndim == 1 else -1
    if mu2.shape != (dim,) or cov1.shape != (dim, dim) or cov2.shape != (dim, dim):
        raise InputError(
            f"means and covariances of shapes {mu1.shape}, {cov1.shape}, {mu2.shape} and "
            f"{cov2.shape} do not fit; (dim,) and (dim, dim) of one embedder are needed"
        )


def _check_finite(*arrays: Array) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise InputError(
            "embeddings or statistics hold numbers that are not finite; make them anew"
        )
