"""What a listener heard in a set of clips, in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from musictune.errors import InputError

Array = np.ndarray

_CHUNK_BYTES = 2**26  # read at a time, as float64, from what may lie on disk


@dataclass(frozen=True, eq=False)
class Features(Sequence[Array]):
    """Rows of numbers, those of each clip together: a sequence of ``(rows, width)`` per clip.

    Attributes:
        points: ``(rows, width)``; may be a memory map, so that a set need not fit into memory.
        lengths: ``(clips,)`` int64, rows of each clip.
        key: of the listener; features of different keys must not be compared.

    Raises:
        InputError: the shapes do not fit.
    """

    points: Array
    lengths: Array
    key: str = ""
    _starts: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or int(self.lengths.sum()) != len(self.points):
            raise InputError(
                f"features of shape {self.points.shape} do not fit clips of {self.lengths} rows"
            )
        object.__setattr__(self, "_starts", np.concatenate([[0], np.cumsum(self.lengths)]))

    @classmethod
    def of(cls, clips: Features | Sequence[Tensor] | Sequence[Array], key: str = "") -> Features:
        """From one ``(rows, width)`` per clip, kept in memory.

        Raises:
            InputError: no clips, or widths that differ.
        """
        if isinstance(clips, Features):
            return clips
        arrays = [np.asarray(clip) for clip in clips]
        if not arrays:
            raise InputError("there are no clips; give at least one")
        if len({array.shape[1:] for array in arrays}) > 1 or arrays[0].ndim != 2:
            raise InputError(
                "features of different widths cannot be compared; use one embedder for all"
            )
        lengths = np.array([len(array) for array in arrays], dtype=np.int64)
        return cls(np.concatenate(arrays), lengths, key)

    def __len__(self) -> int:
        """Clips."""
        return len(self.lengths)

    def __getitem__(self, index: int) -> Array:  # type: ignore[override]
        """``(rows, width)`` of one clip."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self.points[self._starts[index] : self._starts[index + 1]]

    def __iter__(self) -> Iterator[Array]:
        for index in range(len(self)):
            yield self[index]

    @property
    def width(self) -> int:
        """Size of a row."""
        return int(self.points.shape[1])

    @property
    def owners(self) -> Array:
        """``(rows,)`` which clip each row belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def chunks(self) -> Iterator[Array]:
        """The points in order as float64, 64 MiB at a time."""
        for first in range(0, len(self.points), self._rows):
            yield np.asarray(self.points[first : first + self._rows], dtype=np.float64)

    @property
    def _rows(self) -> int:
        return max(_CHUNK_BYTES // (8 * max(self.width, 1)), 1)

    def means(self) -> Array:
        """``(clips, width)`` float64, the mean row of each clip."""
        return np.stack([np.asarray(clip, np.float64).mean(0) for clip in self])

    def select(self, clips: Sequence[int] | Array) -> Features:
        """Some of the clips, in the order given, in memory."""
        chosen = [int(i) for i in clips]
        rows = np.concatenate([self[i] for i in chosen])
        return Features(rows, np.asarray(self.lengths)[chosen], self.key)


def comparable(made: Features, reference: Features) -> None:
    """Refuse to compare what different listeners heard, or what is not finite.

    Raises:
        InputError: other keys or widths, or a row that is not finite.
    """
    if made.width != reference.width:
        raise InputError(
            f"embeddings of {made.width} and {reference.width} dimensions cannot be compared; use "
            f"one embedder for both"
        )
    if made.key and reference.key and made.key != reference.key:
        raise InputError(
            f"embeddings of {made.key} and {reference.key} cannot be compared; use one embedder "
            f"for both"
        )
    for features in (made, reference):
        for index, chunk in enumerate(features.chunks()):
            bad = ~np.isfinite(chunk).all(1)
            if bad.any():
                row = index * features._rows + int(bad.argmax())
                raise InputError(
                    f"embeddings of clip {int(features.owners[row])} are not finite; make them anew"
                )
