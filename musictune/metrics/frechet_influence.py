"""What each clip does to the Fréchet distance: its influence, and its distance all alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from musictune.errors import InputError
from musictune.metrics.features import Features, comparable
from musictune.metrics.gaussian import Gaussian, Groups, above_rounding, one_thread, without_mean

Array = np.ndarray

_BATCH = 2**22  # numbers of the clips measured together, so that memory stays flat


@dataclass(frozen=True)
class Influence:
    """How the squared distance changes, to first order, as one frame is given more weight.

    With ``z = y - mu2`` and ``T`` the map that carries the second Gaussian onto the first, a frame
    ``y`` of the second set moves the distance by ``2 z·(mu2 - mu1) + zᵀ (I - T) z``, less the mean
    of that over the set (Dowson and Landau 1982 give the distance, of which this is the
    derivative; Rippl, Munk and Sturm 2016 its normal limit). ``T`` needs no
    root of the second covariance, which may be singular.

    Attributes:
        made, other: of the second and of the first set: mean, twice the gap, and the factor ``W``
            with ``T = W Wᵀ``.
    """

    made: tuple[Array, Array, Array]
    other: tuple[Array, Array, Array]

    @classmethod
    def between(cls, made: Gaussian, reference: Gaussian) -> Influence:
        """Of the frames of ``made``, and of those of ``reference``."""
        root = reference.root
        with one_thread():
            values, vectors = np.linalg.eigh(root.T @ made.cov @ root)
        kept = above_rounding(values)
        roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
        gap = made.mu - reference.mu
        return cls(
            (made.mu, 2 * gap, root @ (vectors / np.sqrt(roots))),
            (reference.mu, -2 * gap, reference.whitening.T @ (vectors * np.sqrt(roots))),
        )

    def of_made(self, features: Features) -> Array:
        """``(clips,)``: sums over the frames of each clip, divided by all frames."""
        return _sums(features, *self.made)

    def of_reference(self, features: Features) -> Array:
        """As `of_made`, for the clips of the reference."""
        return _sums(features, *self.other)


def clip_influence(made: Features, reference: Features) -> Array:
    """How far each made clip pushes the plain Fréchet distance up; it pulls it down if negative.

    To first order it is the distance minus what it would be without the clip, in units of the
    squared distance.

    Returns:
        ``(clips,)``; 0 for a clip without embeddings.

    Raises:
        InputError: fewer than two made clips, fewer than two embeddings in a set, other embedders,
            or values that are not finite.
    """
    if len(made) < 2:
        raise InputError(f"influence of a clip needs two made clips or more, not {len(made)}")
    comparable(made, reference)
    influence = Influence.between(Groups(made).whole, Groups(reference).whole)
    sums = influence.of_made(made) * len(made.points)
    return np.asarray(sums / np.maximum(len(made.points) - np.asarray(made.lengths), 1))


def clip_distances(made: Features, reference: Features | Gaussian) -> Array:
    """Squared Fréchet distance of each made clip alone from the reference (fadtk's ``--indiv``).

    A clip has fewer embeddings than dimensions as a rule, and then the trace of the root is the
    nuclear norm of its centred embeddings times the reference's root: clips of one length are
    measured together.

    Returns:
        ``(clips,)``; NaN for a clip of fewer than two embeddings, which has no covariance.

    Raises:
        InputError: fewer than two embeddings in the reference, other embedders, or values that are
            not finite.
    """
    if isinstance(reference, Features):
        comparable(made, reference)
        reference = Groups(reference).whole
    distances = np.full(len(made), math.nan)
    lengths = np.asarray(made.lengths)
    for length in np.unique(lengths[lengths > 1]):
        clips = np.flatnonzero(lengths == length)
        step = max(_BATCH // (int(length) * made.width), 1)
        for first in range(0, len(clips), step):
            batch = clips[first : first + step]
            points = np.stack([np.asarray(made[int(i)], np.float64) for i in batch])
            distances[batch] = _alone(points, reference)
    return distances


def _alone(points: Array, reference: Gaussian) -> Array:
    """``(clips,)`` squared distances of ``(clips, frames, dim)``, two frames or more."""
    clips, frames, dim = points.shape
    means = points.mean(1, keepdims=True)
    rows = without_mean(points - means) / math.sqrt(frames - 1)
    products = (rows.reshape(-1, dim) @ reference.root).reshape(clips, frames - 1, -1)
    if frames - 1 <= products.shape[2]:
        gram = products @ products.transpose(0, 2, 1)
    else:
        gram = products.transpose(0, 2, 1) @ products
    with one_thread():
        values = np.linalg.eigvalsh(gram).clip(0)
    gaps = np.square(means[:, 0] - reference.mu).sum(1)
    traces = np.square(rows).sum((1, 2)) + reference.trace
    return np.asarray((gaps + traces - 2 * np.sqrt(values).sum(1)).clip(0))


def _sums(features: Features, mu: Array, slope: Array, factor: Array) -> Array:
    owners = features.owners
    sums = np.zeros(len(features))
    first = 0
    for chunk in features.chunks():
        for block in np.array_split(chunk, math.ceil(chunk.size / _BATCH)):
            z = block - mu
            carried = z @ factor
            moves = z @ slope + np.einsum("ij,ij->i", z, z)
            moves -= np.einsum("ij,ij->i", carried, carried)
            sums += np.bincount(owners[first : first + len(block)], moves, len(features))
            first += len(block)
    rows = len(features.points)
    return np.asarray((sums - sums.sum() * np.asarray(features.lengths) / rows) / rows)
