"""The kernel audio distance (KAD, arXiv 2502.15602), without pairs of rows from one clip."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from musictune.errors import InputError
from musictune.metrics.base import About, NotComputed, Score, SetMetric
from musictune.metrics.distances import (
    refuse_few_clips,
    sample_rows,
    sampled_note,
)
from musictune.metrics.features import Features, comparable
from musictune.metrics.kernel_sums import KernelSums

Array = np.ndarray
Block = tuple[int, int, int, int, Array]

_EXACT = 4_000  # rows up to which the median is over all pairs; above, over those of a sample
_SAMPLE = 20_000  # distances that tell where to look for the median
_MOST = 20_000  # rows of a set that are compared; seconds at 512 dimensions
_BLOCK = 384  # half a matrix in small squares wastes little on its diagonal
_ROUNDING = 1e-6  # of their mean: rows of float32 that differ by less are one
# Mean kernel between the sets. Between real sets it was 0.24 or more; from a single recording, to
# music of its own instrument and of others alike, under 0.03, and the distance ranked by luck.
_OUT_OF_REACH = 0.05
_ALIKE = 1e-3  # of the spread: a smaller median is rounding


@dataclass(frozen=True)
class KernelResult:
    """A kernel distance with what it takes to compare it with another.

    Attributes:
        value: a hundred times the squared maximum mean discrepancy; not biased, so that it may
            fall below 0 where the sets are alike.
        low, high: the 95 % interval over clips of both sets at this bandwidth; NaN where a set
            has fewer than three clips.
        bandwidth: sigma of the Gaussian kernel, in the units of the rows. Distances under
            different bandwidths must not be compared.
        made_rows, reference_rows: how many rows were compared.
        across: mean kernel between the sets, from 0 to 1. Near 0 the bandwidth does not reach
            from one set to the other, and the distance no longer tells near from far.
    """

    value: float
    low: float
    high: float
    bandwidth: float
    made_rows: int
    reference_rows: int
    across: float


def kernel_distance(
    made: Features, reference: Features, bandwidth: float | None = None
) -> KernelResult:
    """``100 (E k(x, x') + E k(y, y') - 2 E k(x, y))`` with ``k(a, b) = exp(-|a - b|² / 2 sigma²)``.

    Each mean is over pairs of rows of different clips: rows of one clip are alike, and counting
    their pairs makes any two sets look further apart. With one row per clip it is the published
    statistic. The interval is a two-sample jackknife over clips (Arvesen 1969) with the degrees
    of freedom of Welch (1947), the bandwidth held. Sets of over 20,000 rows are thinned to that
    many by a seed.

    Args:
        made, reference: what one listener heard; rows may lie on disk.
        bandwidth: sigma; the median distance of the rows of the reference if not given.

    Raises:
        InputError: fewer than two clips in a set, rows that cannot be compared or are not finite,
            or a bandwidth that is not above 0.
    """
    comparable(made, reference)
    return _compare(made, reference, bandwidth)


def median_distance(features: Features) -> float:
    """The median Euclidean distance between rows: of all pairs, or of 4,000 seeded rows' pairs.

    Raises:
        InputError: fewer than two rows, or most of them are alike.
    """
    drawn = sample_rows(features, _EXACT)
    if len(drawn.points) < 2:
        raise InputError(f"a median distance needs two rows or more, not {len(drawn.points)}")
    return _median(_Pairs.of(drawn, _Place.of(drawn)))


class KernelDistance(SetMetric):
    """`kernel_distance` as a score; its note holds the bandwidth."""

    scores: ClassVar[Mapping[str, About]] = {
        "kernel_distance": About(
            "Kernel audio distance",
            "How far the made set as a whole lies from the reference (KAD); about 0 if chance "
            "alone tells them apart, and to be trusted with few clips where Fréchet is not.",
            "lower",
        )
    }

    def __call__(self, made: Features, reference: Features) -> dict[str, Score | NotComputed]:
        """The score.

        Raises:
            InputError: the sets cannot be compared, or are too small or too alike.
        """
        comparable(made, reference)
        found = _compare(made, reference)
        notes = [
            f"bandwidth {found.bandwidth:.6g}",
            sampled_note(found.made_rows, len(made.points), "made rows"),
            sampled_note(found.reference_rows, len(reference.points), "reference rows"),
        ]
        if found.across < _OUT_OF_REACH:
            notes.append(
                "unreliable: the reference is so alike within itself that all that was made lies "
                "out of reach; go by audio alignment, or give a reference of several recordings"
            )
        note = "; ".join(filter(None, notes))
        score = Score(found.value, found.low, found.high, len(made), "lower", note)
        return {"kernel_distance": score}


def _compare(made: Features, reference: Features, bandwidth: float | None = None) -> KernelResult:
    made, reference = sample_rows(made, _MOST), sample_rows(reference, _MOST)
    refuse_few_clips(made, "made", 2, "a kernel distance")
    refuse_few_clips(reference, "reference", 2, "a kernel distance")
    places = _Place.of(made), _Place.of(reference)
    pairs = _Pairs.of(reference, places[1])
    if bandwidth is None and len(reference.points) <= _EXACT:
        pairs = replace(pairs, blocks=list(pairs.blocks))  # for the median and for the sums
        bandwidth = _median(pairs)
    elif bandwidth is None:
        bandwidth = median_distance(reference)
    if not (math.isfinite(bandwidth) and bandwidth > 0):
        raise InputError(f"bandwidth {bandwidth} is not allowed; give a number above 0")
    across = _across(made, reference, places, bandwidth)
    sums = KernelSums(
        made.lengths,
        reference.lengths,
        _by_clip(_within(_Pairs.of(made, places[0]), made.owners, bandwidth), made),
        _by_clip(_within(pairs, reference.owners, bandwidth), reference),
        _by_clip(across[0], made),
        _by_clip(across[1], reference),
    )
    rows = len(made.points), len(reference.points)
    return KernelResult(sums.distance(), *sums.interval(), bandwidth, *rows, sums.mean_across)


def _by_clip(rows: Array, features: Features) -> Array:
    return np.bincount(features.owners, weights=rows, minlength=len(features))


def _blocks(rows: int) -> Iterator[tuple[int, int]]:
    for start in range(0, rows, _BLOCK):
        yield start, min(start + _BLOCK, rows)


@dataclass(frozen=True)
class _Place:
    """Where a set lies and how wide it is.

    Attributes:
        mean: ``(width,)``.
        spread: root mean square distance of the rows from it; exactly 0 if all are equal.
    """

    mean: Array
    spread: float

    @classmethod
    def of(cls, features: Features) -> _Place:
        """In one pass over the rows."""
        first = np.asarray(features.points[0], np.float64)
        total, squares = np.zeros(features.width), 0.0
        for start, stop in _blocks(len(features.points)):
            # Without the offset common to all, which would cost digits.
            near = features.points[start:stop] - first
            total += near.sum(0)
            squares += float(np.einsum("ij,ij->", near, near))
        offset = total / len(features.points)
        square = squares / len(features.points) - float(offset @ offset)
        return cls(first + offset, math.sqrt(max(square, 0.0)))


@dataclass(frozen=True)
class _Pairs:
    """``-d² / 2`` of all pairs of rows of one set, each pair once, in squares of the matrix.

    Attributes:
        unit: of d: how wide the set is, where that is not nil.
        alike: whether all rows are one, but for rounding.
        rows: how many.
        blocks: ``(start, stop, begin, end, exponents)``, on and above the diagonal.
    """

    unit: float
    alike: bool
    rows: int
    blocks: Iterable[Block]

    @classmethod
    def of(cls, features: Features, place: _Place) -> _Pairs:
        """About the set's mean and in its own unit: rounding stays small wherever it lies."""
        alike = place.spread <= _ROUNDING * float(np.linalg.norm(place.mean))
        unit = place.spread or 1.0
        blocks = _upper_blocks(_factors(features, place.mean, unit))
        return cls(unit, alike, len(features.points), blocks)


def _upper_blocks(left: Array) -> Iterator[Block]:
    right = _turned(left)
    for start, stop in _blocks(len(left)):
        for begin, end in _blocks(len(left)):
            if begin >= start:
                yield start, stop, begin, end, _exponents(left[start:stop], right[begin:end])


def _median(pairs: _Pairs) -> float:
    parts = []
    for start, _, begin, _, exponents in pairs.blocks:
        apart = exponents if begin > start else exponents[~np.tri(len(exponents), dtype=bool)]
        parts.append(apart.ravel())
    median = sum(math.sqrt(-2 * value) for value in _middle(parts)) / 2
    if pairs.alike or median < _ALIKE:
        raise InputError("most rows of the reference are alike; give clips that differ")
    return pairs.unit * median


def _middle(parts: list[Array]) -> tuple[float, float]:
    """The two middle values of all parts, one twice if they are odd in number.

    A sample tells between which bounds they lie, so that few values need sorting; should it be
    wrong, which the counts show, all are looked at.
    """
    count = sum(len(part) for part in parts)
    ranks = (count - 1) // 2, count // 2
    sample = np.concatenate([part[:: count // _SAMPLE + 1] for part in parts])
    low, high = np.quantile(sample, [0.485, 0.515])
    above = [part >= low for part in parts]
    below = count - sum(int(np.count_nonzero(held)) for held in above)
    inside = np.concatenate([p[h & (p <= high)] for p, h in zip(parts, above, strict=True)])
    if not below <= ranks[0] <= ranks[1] < below + len(inside):
        below, inside = 0, np.concatenate(parts)
    places = [rank - below for rank in ranks]
    inside.partition(places)
    return float(inside[places[0]]), float(inside[places[1]])


def _factors(features: Features, centre: Array, unit: float) -> Array:
    """``(rows, width + 2)`` float32: each row z about a centre in some unit, ``-|z|² / 2``, 1.

    With two columns more one product gives the exponents: see `_exponents`.
    """
    width = features.width
    factors = np.ones((len(features.points), width + 2), dtype=np.float32)
    for start, stop in _blocks(len(factors)):
        rows = factors[start:stop, :width]
        np.multiply(features.points[start:stop] - centre, 1 / unit, out=rows, casting="same_kind")
        factors[start:stop, width] = -0.5 * np.einsum("ij,ij->i", rows, rows)
    return factors


def _turned(factors: Array) -> Array:
    """The factors for the right side of the product."""
    turned = factors.copy()
    turned[:, -2], turned[:, -1] = factors[:, -1], factors[:, -2]
    return turned


def _exponents(left: Array, right: Array) -> Array:
    """``-|a - b|² / 2`` of rows given by their factors, the right ones turned."""
    found = left @ right.T
    return np.asarray(np.minimum(found, 0, out=found))


def _scale(unit: float, bandwidth: float) -> np.float32:
    """From a unit to the bandwidth; bounded, as infinity times nothing is not a number."""
    return np.float32(min(unit / bandwidth, 1e15) ** 2)


def _within(pairs: _Pairs, owners: Array, bandwidth: float) -> Array:
    """``(rows,)`` sums of the kernel over the rows of other clips."""
    sums = np.zeros(pairs.rows)
    scale = _scale(pairs.unit, bandwidth)
    for start, stop, begin, end, exponents in pairs.blocks:
        kernel = exponents * scale
        np.exp(kernel, out=kernel)
        if owners[begin] <= owners[stop - 1]:
            kernel[owners[start:stop, None] == owners[None, begin:end]] = 0
        of_rows, of_columns = _sums(kernel)
        sums[start:stop] += of_rows
        if begin > start:
            sums[begin:end] += of_columns
    return sums


def _across(
    made: Features, reference: Features, places: tuple[_Place, _Place], bandwidth: float
) -> tuple[Array, Array]:
    """Sums of the kernel over the rows of the other set, for each row of both."""
    mine, theirs = places
    middle = (mine.mean + theirs.mean) / 2
    gap = float(np.linalg.norm(mine.mean - middle))
    unit = max(mine.spread, theirs.spread, gap) or 1.0
    scale = _scale(unit, bandwidth)
    left = _factors(made, middle, unit)
    right = _turned(_factors(reference, middle, unit))
    of_made, of_reference = np.zeros(len(left)), np.zeros(len(right))
    for start, stop in _blocks(len(left)):
        for begin, end in _blocks(len(right)):
            kernel = _exponents(left[start:stop], right[begin:end])
            kernel *= scale
            np.exp(kernel, out=kernel)
            of_rows, of_columns = _sums(kernel)
            of_made[start:stop] += of_rows
            of_reference[begin:end] += of_columns
    return of_made, of_reference


def _sums(kernel: Array) -> tuple[Array, Array]:
    """Of the rows and columns of a block, by products, which take a tenth of the time of `sum`.

    In float32 a few hundred values from 0 to 1 keep seven digits; blocks are added in float64.
    """
    ones = np.ones(max(kernel.shape), dtype=np.float32)
    return kernel @ ones[: kernel.shape[1]], ones[: kernel.shape[0]] @ kernel
