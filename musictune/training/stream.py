"""The endless stream of training batches, each a pure function of the seed and its place."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from torch.utils.data import IterableDataset

from musictune.data.tokens import Collated, TokenDataset, collate, epoch_order
from musictune.models.base import Batch


class BatchStream(IterableDataset[Collated]):
    """Batches from ``start`` on: a resumed run draws what the interrupted one would have drawn.

    Args:
        dataset: crops by epoch and index.
        size: clips per batch; an epoch may end within one.
        seed: of the order.
        start: place of the first batch.
    """

    def __init__(self, dataset: TokenDataset, size: int, seed: int, start: int = 0) -> None:
        self.dataset = dataset
        self.size = size
        self.seed = seed
        self.start = start
        self._order = lru_cache(maxsize=4)(
            lambda epoch: epoch_order(len(self.dataset), self.seed, epoch)
        )

    def __iter__(self) -> Iterator[Collated]:
        place = self.start
        while True:
            yield self.at(place)
            place += 1

    def at(self, place: int) -> Collated:
        """The batch at ``place``."""
        items = []
        for number in range(place * self.size, (place + 1) * self.size):
            epoch, position = divmod(number, len(self.dataset))
            items.append(self.dataset.item(epoch, self._order(epoch)[position]))
        return collate(items)

    def batches(self) -> Iterator[Batch]:
        """The same stream as the model's own type, for methods that look before training."""
        return (as_batch(collated) for collated in self)


def as_batch(collated: Collated) -> Batch:
    """What ``collate`` made, as what a model reads."""
    return Batch(collated["codes"], collated["lengths"], tuple(collated["texts"]))
