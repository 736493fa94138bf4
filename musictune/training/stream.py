"""The endless stream of training batches, each a pure function of the seed and its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from torch.utils.data import IterableDataset

from musictune.data.tokens import Collated, Item, TokenDataset, collate, epoch_order
from musictune.models.base import Batch

_APART = 7919  # between the seeds of datasets, so that equal places are not shuffled alike


class Mixed(Collated, total=False):
    """A batch whose last ``prior`` rows are the base's own music; none if the key is missing."""

    prior: int


class BatchStream(IterableDataset[Mixed]):
    """Batches from ``start`` on: a resumed run draws what the interrupted one would have drawn.

    Several datasets take turns row by row, so each is heard equally often whatever its size, and
    each is shuffled by itself.

    Args:
        datasets: crops by epoch and index; one, or one per concept.
        size: rows per batch of these; an epoch may end within one.
        seed: of the order.
        start: place of the first batch.
        prior: as many rows of these are put behind them in every batch.
    """

    def __init__(
        self,
        datasets: TokenDataset | Sequence[TokenDataset],
        size: int,
        seed: int,
        start: int = 0,
        prior: Sequence[TokenDataset] = (),
    ) -> None:
        self.size = size
        self.start = start
        own = [datasets] if isinstance(datasets, TokenDataset) else list(datasets)
        self._own = _Turns(own, seed)
        self._prior = _Turns(prior, seed + _APART * len(own)) if prior else None

    def __iter__(self) -> Iterator[Mixed]:
        place = self.start
        while True:
            yield self.at(place)
            place += 1

    def at(self, place: int) -> Mixed:
        """The batch at ``place``."""
        numbers = range(place * self.size, (place + 1) * self.size)
        items = [self._own.item(number) for number in numbers]
        if self._prior is None:
            return {**collate(items)}
        items += [self._prior.item(number) for number in numbers]
        return {**collate(items), "prior": self.size}

    def batches(self) -> Iterator[Batch]:
        """The same stream as the model's own type, for methods that look before training."""
        return (as_batch(collated) for collated in self)


class _Turns:
    """Datasets one after the other, each shuffled anew whenever it has been through."""

    def __init__(self, datasets: Sequence[TokenDataset], seed: int) -> None:
        self.datasets = datasets
        self._order = lru_cache(maxsize=4 * len(datasets))(
            lambda turn, epoch: epoch_order(len(datasets[turn]), seed + _APART * turn, epoch)
        )

    def item(self, number: int) -> Item:
        """The ``number``-th item of all that are ever drawn."""
        drawn, turn = divmod(number, len(self.datasets))
        dataset = self.datasets[turn]
        epoch, position = divmod(drawn, len(dataset))
        return dataset.item(epoch, self._order(turn, epoch)[position])


def as_batch(collated: Collated) -> Batch:
    """What ``collate`` made, as what a model reads."""
    return Batch(collated["codes"], collated["lengths"], tuple(collated["texts"]))
