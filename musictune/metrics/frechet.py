"""The Fréchet audio distance (arXiv 1812.08466) between two sets of embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from musictune.errors import InputError
from musictune.metrics.base import Score
from musictune.metrics.intervals import NONE, basic_bootstrap

Array = np.ndarray

_ROUNDS = 200


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
    return _distance(mu1, np.trace(cov1), root(cov1), mu2, cov2)


def root(covariance: Array) -> Array:
    """Some ``L`` with ``covariance = L Lᵀ``: Cholesky's, or by eigenvalues if it is singular."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return vectors * np.sqrt(values.clip(0))


def frechet_between(one: Array, other: Array) -> float:
    """Squared Fréchet distance of two sets of embeddings, ``(n, dim)`` and ``(m, dim)``.

    With at most ``dim`` points on a side the trace of the root is the nuclear norm of the product
    of the centred points: exact, and a thousandth of the work.

    Raises:
        InputError: fewer than two points on a side, other dimensions, or values not finite.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    for points in (one, other):
        if points.ndim != 2 or len(points) < 2:
            raise InputError(
                f"a Fréchet distance needs two embeddings or more in each set, not {len(points)}"
            )
    if one.shape[1] != other.shape[1]:
        raise InputError(
            f"embeddings of {one.shape[1]} and {other.shape[1]} dimensions cannot be compared; "
            f"use one embedder for both"
        )
    _check_finite(one, other)
    if min(len(one), len(other)) > one.shape[1]:
        return frechet_distance(*_moments(one), *_moments(other))
    mu1, mu2 = one.mean(0), other.mean(0)
    x = _thin((one - mu1) / np.sqrt(len(one) - 1))
    y = _thin((other - mu2) / np.sqrt(len(other) - 1))
    overlap = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    gap = np.square(mu1 - mu2).sum()
    return max(float(gap + np.square(x).sum() + np.square(y).sum() - 2 * overlap), 0.0)


def frechet_score(made: Sequence[Tensor], reference: Sequence[Tensor]) -> Score:
    """Distance of the made clips from the reference, clips given by their ``(windows, dim)``.

    The interval resamples made clips, never windows, as windows of one clip are alike; the
    reference counts as given. With no more clips than dimensions none can be trusted: it is NaN.

    Raises:
        InputError: fewer than two windows in a set.
    """
    points = np.concatenate([clip.double().numpy() for clip in made])
    target = np.concatenate([clip.double().numpy() for clip in reference])
    value = frechet_between(points, target)
    low, high = NONE
    if len(made) > points.shape[1]:
        low, high = _interval([len(clip) for clip in made], points, target)
    return Score(value, low, high, len(made), "lower")


def _interval(lengths: list[int], points: Array, target: Array) -> tuple[float, float]:
    mu, covariance = _moments(target)
    trace, factor = float(np.trace(covariance)), root(covariance)
    owner = np.repeat(np.arange(len(lengths)), lengths)

    def distance(counts: Array) -> float:
        return _distance(mu, trace, factor, *_moments(np.repeat(points, counts[owner], axis=0)))

    low, high = basic_bootstrap(distance, len(lengths), rounds=_ROUNDS)
    return max(low, 0.0), max(high, 0.0)


def _distance(mu1: Array, trace1: float, root1: Array, mu2: Array, cov2: Array) -> float:
    eigenvalues = np.linalg.eigvalsh(root1.T @ cov2 @ root1).clip(0)
    gap = np.square(mu1 - mu2).sum()
    return max(float(gap + trace1 + np.trace(cov2) - 2 * np.sqrt(eigenvalues).sum()), 0.0)


def _thin(points: Array) -> Array:
    """At most ``dim`` rows with the same Gram matrix of columns."""
    if len(points) <= points.shape[1]:
        return points
    triangle = np.linalg.qr(points, mode="r")
    return np.asarray(triangle)


def _moments(points: Array) -> tuple[Array, Array]:
    return points.mean(0), np.atleast_2d(np.cov(points, rowvar=False))


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
