"""The Gaussian of a set of embeddings: its moments, their roots, and those of parts of the set."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from musictune.errors import InputError
from musictune.metrics.features import Features

Array = np.ndarray

_GROUPS = 16  # parts whose moments are kept: 16 matrices of dim x dim


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean and covariance, in float64; what is costly to derive is derived once.

    Attributes:
        mu: ``(dim,)``.
        cov: ``(dim, dim)``, divided by ``n_frames - 1``; it may be singular.
        n_clips, n_frames: what it was measured on; 0 where that is not known.
        rows: ``(n_frames - 1, dim)`` with ``cov = rowsᵀ rows``, where that is thinner than a
            square; None where it is not.
    """

    mu: Array
    cov: Array
    n_clips: int = 0
    n_frames: int = 0
    rows: Array | None = None

    @classmethod
    def of_points(cls, points: Array, n_clips: int = 0) -> Gaussian:
        """Of ``(n, dim)`` finite points.

        Raises:
            InputError: fewer than two.
        """
        _need_two(len(points))
        mu = points.mean(0, dtype=np.float64)
        centred = points - mu
        if len(points) > len(mu):
            return cls(mu, centred.T @ centred / (len(points) - 1), n_clips, len(points))
        rows = without_mean(centred) / math.sqrt(len(points) - 1)
        return cls(mu, rows.T @ rows, n_clips, len(points), rows)

    @property
    def dim(self) -> int:
        """Size of a point."""
        return len(self.mu)

    @functools.cached_property
    def trace(self) -> float:
        """Of the covariance."""
        return float(np.trace(self.cov))

    @functools.cached_property
    def root(self) -> Array:
        """Some ``L`` of shape ``(dim, rank)`` with ``cov = L Lᵀ``.

        The rows if there are any, else Cholesky's, or by eigenvalues if the matrix is singular.
        """
        if self.rows is not None:
            return np.ascontiguousarray(self.rows.T)
        with one_thread():
            try:
                return np.linalg.cholesky(self.cov)
            except np.linalg.LinAlgError:
                values, vectors = np.linalg.eigh(self.cov)
        kept = above_rounding(values)
        return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))

    @functools.cached_property
    def whitening(self) -> Array:
        """``(rank, dim)``, the left inverse of `root`: it whitens centred points."""
        from scipy.linalg import solve_triangular

        with one_thread():
            if np.triu(self.root, 1).any() or self.root.shape[1] < self.dim:
                return np.asarray(np.linalg.pinv(self.root))
            return np.asarray(solve_triangular(self.root, np.eye(self.dim), lower=True))


def distance(made: Gaussian, reference: Gaussian) -> float:
    """Squared Fréchet distance; the root of the reference is found once, however often it is used.

    With at most ``dim`` points on a side the trace of the root is the nuclear norm of the product
    of the centred points: exact, and a thousandth of the work.
    """
    gap = made.mu - reference.mu
    with one_thread():
        if made.rows is None and reference.rows is None:
            root = reference.root
            overlap = np.sqrt(np.linalg.eigvalsh(root.T @ made.cov @ root).clip(0)).sum()
        else:
            overlap = _nuclear_norm(made.root.T @ reference.root)
    return max(float(gap @ gap + made.trace + reference.trace - 2 * overlap), 0.0)


def _nuclear_norm(matrix: Array) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False).sum()) if matrix.size else 0.0


class Groups:
    """A set of clips dealt at random into parts, so that each union of parts has known moments.

    The set is read once, however many unions are asked for, and may be too large for memory: what
    stays is a covariance per part, or the points themselves where they are no more than `dim`.
    Clips are dealt, never their rows, as rows of one clip are alike.

    Args:
        features: finite; clips without rows are left out.

    Attributes:
        clips: ``(parts,)`` how many clips each part has; sizes differ by one at most.
        whole: the Gaussian of all.

    Raises:
        InputError: fewer than two rows.
    """

    def __init__(self, features: Features) -> None:
        _need_two(len(features.points))
        lengths = np.asarray(features.lengths)
        filled = np.flatnonzero(lengths)
        count = min(_GROUPS, len(filled))
        parts = np.zeros(len(lengths), dtype=np.int64)
        parts[np.random.default_rng(0).permutation(filled)] = np.arange(len(filled)) % count
        self.clips: Array = np.bincount(parts[filled], minlength=count)
        self._owners = np.repeat(parts, lengths)
        self.frames: Array = np.bincount(self._owners, minlength=count)
        self._points: Array | None = None
        if len(features.points) <= features.width:
            self._points = np.concatenate(list(features.chunks()))
        else:
            self._accumulate(features)
        self.whole = self.gaussian(np.arange(count))

    def __len__(self) -> int:
        """Parts."""
        return len(self.clips)

    def gaussian(self, parts: Array) -> Gaussian:
        """Of the union of some parts.

        Raises:
            InputError: it has fewer than two rows.
        """
        clips, frames = int(self.clips[parts].sum()), int(self.frames[parts].sum())
        _need_two(frames)
        if self._points is not None:
            return Gaussian.of_points(self._points[np.isin(self._owners, parts)], clips)
        weights = self.frames[parts]
        mu = weights @ self._means[parts] / frames
        shifts = self._means[parts] - mu
        chosen = np.zeros(len(self))
        chosen[parts] = 1
        scatter = np.tensordot(chosen, self._scatters, 1) + (shifts.T * weights) @ shifts
        return Gaussian(mu, scatter / (frames - 1), clips, frames)

    def _accumulate(self, features: Features) -> None:
        """Means and scatters of the parts, merged chunk by chunk (Chan, Golub and LeVeque 1983)."""
        dim = features.width
        self._means = np.zeros((len(self), dim))
        self._scatters = np.zeros((len(self), dim, dim))
        seen = np.zeros(len(self))
        first = 0
        for chunk in features.chunks():
            owners = self._owners[first : first + len(chunk)]
            first += len(chunk)
            for part in np.unique(owners):
                points = chunk[owners == part]
                mean = points.mean(0)
                points -= mean
                total = seen[part] + len(points)
                shift = mean - self._means[part]
                self._scatters[part] += points.T @ points
                self._scatters[part] += np.outer(shift, shift * (seen[part] * len(points) / total))
                self._means[part] += shift * (len(points) / total)
                seen[part] = total


def without_mean(centred: Array) -> Array:
    """``(..., n - 1, dim)`` with the Gram matrix of columns of ``(..., n, dim)`` centred points.

    Householder's reflection that takes the mean to the first row, which is then nil: of centred
    rows one always follows from the others, and would have a singular value of nothing but noise.
    """
    count = centred.shape[-2]
    return np.asarray(centred[..., 1:, :] + centred[..., :1, :] / (math.sqrt(count) - 1))


def above_rounding(eigenvalues: Array) -> Array:
    """``(n,)`` which eigenvalues of a covariance are more than rounding."""
    least = eigenvalues.max(initial=0.0) * len(eigenvalues) * np.finfo(np.float64).eps
    return np.asarray(eigenvalues > least)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, BLAS uses one thread: small factorisations take many times longer on several.

    Without threadpoolctl, which scikit-learn brings, BLAS stays as it is.
    """
    controller = _controller()
    if controller is None:
        yield
        return
    with controller.limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _controller():  # type: ignore[no-untyped-def]
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()


def _need_two(count: int) -> None:
    if count < 2:
        raise InputError(
            f"a Fréchet distance needs two embeddings or more in each set, not {count}; give more "
            f"or longer clips"
        )
