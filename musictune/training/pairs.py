"""Pairs of clips as codec tokens: what offline objectives train on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from musictune import audio, console
from musictune.data.kept_tokens import kept_tokens
from musictune.data.preferences import Comparison
from musictune.data.tokens import epoch_order
from musictune.errors import InputError
from musictune.generation import Engine, Request, Sampling
from musictune.methods.storage import load_tensors, save_json, save_tensors
from musictune.metrics.base import Reward
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen
from musictune.training.stepped import seed_at

_LEAST = 2
_PLAYED = 32  # clips at once


@dataclass(frozen=True)
class Pairs:
    """Comparisons as tokens.

    Attributes:
        prompts: of each pair.
        chosen, rejected: ``(codebooks, frames)`` int64 of each pair, of any lengths.
    """

    prompts: tuple[str, ...]
    chosen: tuple[Tensor, ...]
    rejected: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, places: Sequence[int]) -> Pairs:
        """Some of them."""
        return Pairs(
            tuple(self.prompts[i] for i in places),
            tuple(self.chosen[i] for i in places),
            tuple(self.rejected[i] for i in places),
        )

    def apart(self, prompts: Sequence[str]) -> tuple[Pairs, Pairs]:
        """Those of other prompts, and those of ``prompts``."""
        inside = [prompt in set(prompts) for prompt in self.prompts]
        places = range(len(self))
        return (
            self.take([i for i in places if not inside[i]]),
            self.take([i for i in places if inside[i]]),
        )

    def batch(self, places: Sequence[int], marks: tuple[str, str] = ("", "")) -> Batch:
        """The chosen clips of some pairs, then the rejected ones.

        Args:
            places: which pairs.
            marks: put before the prompts of chosen and of rejected clips.
        """
        rows = [self.chosen[i] for i in places] + [self.rejected[i] for i in places]
        texts = [f"{mark} {self.prompts[i]}".strip() for mark in marks for i in places]
        return as_batch(rows, texts)

    def save(self, folder: Path) -> None:
        """Write them, so that a run that goes on has the same ones."""
        tensors = {f"chosen.{i:06d}": codes for i, codes in enumerate(self.chosen)}
        tensors |= {f"rejected.{i:06d}": codes for i, codes in enumerate(self.rejected)}
        save_tensors(tensors, folder / "pairs.safetensors")
        save_json({"prompts": list(self.prompts)}, folder / "pairs.json")

    @classmethod
    def load(cls, folder: Path) -> Pairs | None:
        """What :meth:`save` wrote; None if nothing was."""
        path = folder / "pairs.json"
        if not path.is_file():
            return None
        prompts = json.loads(path.read_text(encoding="utf-8"))["prompts"]
        found = load_tensors(folder / "pairs.safetensors")
        places = range(len(prompts))
        return cls(
            tuple(prompts),
            tuple(found[f"chosen.{i:06d}"] for i in places),
            tuple(found[f"rejected.{i:06d}"] for i in places),
        )


class PairStream(IterableDataset[list[int]]):
    """Endless places of pairs, each epoch in an order of its own.

    Args:
        count: how many pairs there are.
        size: pairs per batch; an epoch may end within one.
        seed: of the order.
        start: place of the first batch.
    """

    def __init__(self, count: int, size: int, seed: int, start: int = 0) -> None:
        self.count, self.size, self.seed, self.start = count, size, seed, start

    def __iter__(self) -> Iterator[list[int]]:
        place = self.start
        while True:
            yield self.at(place)
            place += 1

    def at(self, place: int) -> list[int]:
        """The batch at ``place``."""
        found = []
        for number in range(place * self.size, (place + 1) * self.size):
            epoch, position = divmod(number, self.count)
            found.append(int(epoch_order(self.count, self.seed, epoch)[position]))
        return found


def as_batch(rows: Sequence[Tensor], texts: Sequence[str]) -> Batch:
    """Codes of any lengths, padded at the end."""
    lengths = torch.tensor([row.shape[-1] for row in rows])
    codes = torch.zeros(len(rows), rows[0].shape[0], int(lengths.max()), dtype=torch.long)
    for place, row in enumerate(rows):
        codes[place, :, : row.shape[-1]] = row
    return Batch(codes, lengths, tuple(texts))


def pairs_of(model: MusicGen, comparisons: Sequence[Comparison], seconds: float) -> Pairs:
    """Tokens of compared recordings: those kept when they were made, else the codec's.

    Args:
        model: whose codec it is.
        comparisons: whose files are there.
        seconds: of longer clips only the beginning is used.

    Raises:
        InputError: fewer than two comparisons, or a recording that cannot be read.
    """
    if len(comparisons) < _LEAST:
        raise InputError(
            f"{len(comparisons)} comparisons are too few to learn from; give 2 or more"
        )
    frames = model.frames(min(seconds, model.max_seconds))
    paths = dict.fromkeys(path for c in comparisons for path in (c.chosen, c.rejected))
    known: dict[Path, Tensor] = {}
    for path in console.track(list(paths), "codec tokens"):
        codes = kept_tokens(path, model.codec_key)
        if codes is None:
            codes = model.encode([audio.read(path)]).codes[0].cpu()
        known[path] = codes[:, :frames]
    return Pairs(
        tuple(c.prompt for c in comparisons),
        tuple(known[c.chosen] for c in comparisons),
        tuple(known[c.rejected] for c in comparisons),
    )


def made_pairs(
    model: MusicGen,
    prompts: Sequence[str],
    reward: Reward,
    count: int,
    samples: int,
    seconds: float,
    seed: int,
    sampling: Sampling = Sampling(),
    spoken: Callable[[str], str] = str,
) -> Pairs:
    """What the model plays, compared by a reward: the best and the worst of a few clips.

    Args:
        model: what plays.
        prompts: played in turn.
        reward: what compares; pairs it finds equal are left out.
        count: pairs to make.
        samples: clips of each, two or more.
        seconds: their length.
        seed: of their luck.
        sampling: how they are played.
        spoken: what the reward reads in place of a prompt.

    Raises:
        InputError: the reward finds all pairs equal.
    """
    engine = Engine(model)
    wanted = [prompts[i % len(prompts)] for i in range(count)]
    texts, chosen, rejected = [], [], []
    together = max(1, _PLAYED // samples)
    for first in console.track(range(0, count, together), "pairs"):
        asked = wanted[first : first + together]
        requests = [
            Request(text, seconds, seed_at(seed, (first + place) * samples + i), sampling)
            for place, text in enumerate(asked)
            for i in range(samples)
        ]
        codes = dict(engine.play(requests, len(requests)))
        made = as_batch(
            [codes[i].cpu() for i in range(len(requests))],
            [spoken(request.prompt) for request in requests],
        )
        values = reward(model.decode(made)).view(len(asked), samples)
        for place, text in enumerate(asked):
            best, worst = int(values[place].argmax()), int(values[place].argmin())
            if values[place, best] == values[place, worst]:
                continue
            texts.append(text)
            chosen.append(made.codes[place * samples + best])
            rejected.append(made.codes[place * samples + worst])
    if len(texts) < _LEAST:
        raise InputError(
            f"the reward finds {count - len(texts)} of {count} pairs equal: there is nothing to "
            "learn from it; take another reward or other prompts"
        )
    return Pairs(tuple(texts), tuple(chosen), tuple(rejected))
