"""How much the masks of several pivotal adapters have in common, beside what chance would give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from musictune.errors import InputError
from musictune.methods.adapter import is_sparse, read_sparse
from musictune.methods.sparse_change import SparseChange


@dataclass(frozen=True)
class Overlap:
    """Two masks compared.

    Attributes:
        first, second: entries that each trains.
        shared: entries in both.
        of_smaller: ``shared`` over the smaller of the two.
        jaccard: ``shared`` over the entries in either.
        expected: what ``of_smaller`` would be if each mask fell at random within each matrix, with
            as many entries in each matrix as it has.
        expected_anywhere: the same if it fell at random over all matrices together.
        sign_agreement: share of the shared entries, neither of them zero, that both move the same
            way; None if there is none.
        cosine: of the two changes as a whole: 0 if they do not touch each other.
    """

    first: int
    second: int
    shared: int
    of_smaller: float
    jaccard: float
    expected: float
    expected_anywhere: float
    sign_agreement: float | None
    cosine: float

    @property
    def sentence(self) -> str:
        """For people."""
        said = (
            f"{self.of_smaller:.1%} of the smaller mask's entries are in both, "
            f"{self.expected:.1%} expected by chance"
        )
        if self.sign_agreement is None:
            return said
        return f"{said}; {self.sign_agreement:.0%} of those move the same way"


@dataclass(frozen=True)
class Overlaps:
    """All pairs of several adapters.

    Attributes:
        names: of the adapters, each once.
        pairs: by their two positions in ``names``, the smaller first.
        layers: the same of each matrix that both of a pair train.
    """

    names: tuple[str, ...]
    pairs: Mapping[tuple[int, int], Overlap]
    layers: Mapping[tuple[int, int], Mapping[str, Overlap]]

    def plain(self) -> dict[str, Any]:
        """For JSON: names, and one object per pair."""
        return {
            "schema": 1,
            "adapters": list(self.names),
            "pairs": [
                {
                    "adapters": [self.names[i], self.names[j]],
                    **asdict(overlap),
                    "matrices": {name: asdict(each) for name, each in self.layers[i, j].items()},
                }
                for (i, j), overlap in self.pairs.items()
            ],
        }


def measure_overlap(folders: Sequence[Path]) -> Overlaps:
    """Compare the masks of each pair of adapters.

    Args:
        folders: two or more runs or adapter folders with pivotal weights.

    Raises:
        InputError: fewer than two, the same one twice, one without pivotal weights, or adapters of
            bases whose matrices differ.
    """
    if len(folders) < 2:
        raise InputError("an overlap needs two adapters or more; give their folders")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("an adapter is given twice; an overlap is of different ones")
    changes = [read_sparse(folder) for folder in folders]
    pairs, layers = {}, {}
    for i in range(len(folders)):
        for j in range(i + 1, len(folders)):
            one, other = changes[i], changes[j]
            for name in one.keys() & other.keys():
                if one[name].shape != other[name].shape:
                    raise InputError(
                        f"adapters {folders[i]} and {folders[j]} were made for different bases: "
                        f"{name} is {list(one[name].shape)} and {list(other[name].shape)}"
                    )
            pairs[i, j] = overlap(one, other)
            layers[i, j] = {
                name: overlap({name: one[name]}, {name: other[name]})
                for name in one
                if name in other
            }
    return Overlaps(_names(folders), pairs, layers)


def overlap_notes(folders: Sequence[Path]) -> list[str]:
    """A line for each pair of pivotal adapters among ``folders``.

    Raises:
        InputError: as :func:`measure_overlap`.
    """
    sparse = [folder for folder in folders if is_sparse(folder)]
    if len(sparse) < 2:
        return []
    found = measure_overlap(sparse)
    return [
        f"masks of {found.names[i]} and {found.names[j]}: {overlap.sentence}"
        for (i, j), overlap in found.pairs.items()
    ]


def overlap(one: Mapping[str, SparseChange], other: Mapping[str, SparseChange]) -> Overlap:
    """Compare two changes, each by the names of its matrices."""
    shared = agree = moved = 0
    expected = dot = 0.0
    for name in one.keys() & other.keys():
        a, b = one[name], other[name]
        left, right = a.positions, b.positions
        expected += len(left) * len(right) / (a.shape[0] * a.shape[1])
        both = left[torch.isin(left, right, assume_unique=True)]
        if not len(both):
            continue
        x = a.entries[torch.searchsorted(left, both)].double()
        y = b.entries[torch.searchsorted(right, both)].double()
        shared += len(both)
        moved += int(((x != 0) & (y != 0)).sum())
        agree += int((x * y > 0).sum())
        dot += float(x @ y)
    first, second = _size(one), _size(other)
    smaller, norms = max(min(first, second), 1), _norm(one) * _norm(other)
    weights = sum(
        c.shape[0] * c.shape[1] for name in one.keys() | other.keys()
        for c in [one.get(name) or other[name]]
    )  # fmt: skip
    return Overlap(
        first=first,
        second=second,
        shared=shared,
        of_smaller=shared / smaller,
        jaccard=shared / max(first + second - shared, 1),
        expected=expected / smaller,
        expected_anywhere=first * second / max(weights, 1) / smaller,
        sign_agreement=agree / moved if moved else None,
        cosine=dot / norms if norms else 0.0,
    )


def _size(changes: Mapping[str, SparseChange]) -> int:
    return sum(change.values.numel() for change in changes.values())


def _norm(changes: Mapping[str, SparseChange]) -> float:
    return sum(float(c.values.double().square().sum()) for c in changes.values()) ** 0.5


def _names(folders: Sequence[Path]) -> tuple[str, ...]:
    """What tells the paths apart: without the end that all share, and as short as can be."""
    paths = [list(folder.resolve().parts) for folder in folders]
    while min(map(len, paths)) > 1 and len({path[-1] for path in paths}) == 1:
        paths = [path[:-1] for path in paths]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return tuple(names)
