"""What the policy plays for itself: prompts and seeds by round, codes and rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from musictune.data.tokens import epoch_order
from musictune.generation import Engine, Request, Sampling
from musictune.methods.storage import load_json, load_tensors, save_json, save_tensors
from musictune.metrics.base import Reward
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen
from musictune.training.pairs import as_batch
from musictune.training.stepped import seed_at

_TOGETHER = 32  # clips played at once


@dataclass(frozen=True)
class Round:
    """Clips that the policy played, and what they were worth.

    Attributes:
        number: which round.
        batch: the clips; those of one prompt follow each other.
        rewards: ``(clips,)`` float32.
        groups: ``(clips,)`` int64, which prompt of the round each is of.
        sampled: ``(clips, codebooks, steps)`` log-probabilities when they were played; None where
            they are learned from only once, and the policy is still the one that played.
    """

    number: int
    batch: Batch
    rewards: Tensor
    groups: Tensor
    sampled: Tensor | None = None

    def save(self, folder: Path) -> None:
        """Write it, for a run that stops between two steps of one round."""
        tensors = {"codes": self.batch.codes, "rewards": self.rewards, "groups": self.groups}
        if self.sampled is not None:
            tensors["sampled"] = self.sampled
        save_tensors(tensors, folder / "round.safetensors")
        save_json({"number": self.number, "texts": list(self.batch.texts)}, folder / "round.json")

    @classmethod
    def load(cls, folder: Path) -> Round | None:
        """What :meth:`save` wrote; None if nothing was."""
        if not (folder / "round.json").is_file():
            return None
        facts, found = load_json(folder / "round.json"), load_tensors(folder / "round.safetensors")
        batch = as_batch(list(found["codes"]), facts["texts"])
        return cls(
            int(facts["number"]), batch, found["rewards"], found["groups"], found.get("sampled")
        )


class Rollouts:
    """Plays rounds, each a pure function of its number, the seed and the policy.

    Args:
        model: the policy.
        prompts: played in an order shuffled anew whenever all have been.
        count: prompts per round.
        group: clips per prompt.
        seconds: of each clip.
        seed: of order and luck.
        sampling: the policy as a distribution: no top-k, no top-p, temperature 1.
        spoken: what a reward reads in place of a prompt.
    """

    def __init__(
        self,
        model: MusicGen,
        prompts: Sequence[str],
        count: int,
        group: int,
        seconds: float,
        seed: int,
        sampling: Sampling,
        spoken: Callable[[str], str] = str,
    ) -> None:
        self.model, self.prompts = model, list(prompts)
        self.count, self.group, self.seconds, self.seed = count, group, seconds, seed
        self.sampling, self.spoken = sampling, spoken

    def texts(self, number: int) -> list[str]:
        """The prompts of a round."""
        found = []
        for place in range(number * self.count, (number + 1) * self.count):
            epoch, position = divmod(place, len(self.prompts))
            order = epoch_order(len(self.prompts), self.seed, epoch)
            found.append(self.prompts[int(order[position])])
        return found

    def sound(self, number: int) -> Batch:
        """Play a round."""
        texts = [text for text in self.texts(number) for _ in range(self.group)]
        first = number * len(texts)
        asked = [
            Request(text, self.seconds, seed_at(self.seed, first + place), self.sampling)
            for place, text in enumerate(texts)
        ]
        codes = dict(Engine(self.model).play(asked, min(len(asked), _TOGETHER)))
        return as_batch([codes[place].cpu() for place in range(len(asked))], texts)

    def play(self, number: int, reward: Reward) -> Round:
        """Play and value a round."""
        batch = self.sound(number)
        read = replace(batch, texts=tuple(self.spoken(text) for text in batch.texts))
        rewards = reward(self.model.decode(read))
        groups = torch.arange(self.count).repeat_interleave(self.group)
        return Round(number, batch, rewards, groups)


class Parts(IterableDataset[list[int]]):
    """Endless places of clips within a round, a pass at a time.

    Args:
        clips: of a round.
        size: clips per pass; divides ``clips``.
        start: the first pass.
    """

    def __init__(self, clips: int, size: int, start: int = 0) -> None:
        self.clips, self.size, self.start = clips, size, start

    def __iter__(self) -> Iterator[list[int]]:
        place = self.start
        while True:
            first = place % (self.clips // self.size) * self.size
            yield list(range(first, first + self.size))
            place += 1
