"""Codec tokens: made once per clip and kept, then cropped in an order that can be repeated.

Everything random here is a pure function of (seed, epoch, index), so that an interrupted training
run goes on exactly as if it had not been.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.utils.data import Dataset

from musictune.audio import Clip
from musictune.console import track
from musictune.errors import InputError
from musictune.files import publish_file, readable

_TOGETHER = 8  # clips encoded at a time


class Encoded(Protocol):
    """What a model's ``encode`` returns, as far as it matters here."""

    @property
    def codes(self) -> Tensor: ...

    @property
    def lengths(self) -> Tensor: ...


class Item(TypedDict):
    """One training example: ``codes`` ``(codebooks, frames)`` int64, and its ``text``."""

    codes: Tensor
    text: str


class Collated(TypedDict):
    """Examples together: ``codes`` ``(clips, codebooks, frames)``, ``lengths``, ``texts``."""

    codes: Tensor
    lengths: Tensor
    texts: tuple[str, ...]


def cached_tokens(
    clips: Sequence[Clip],
    encode: Callable[[Sequence[Clip]], Encoded],
    key: str,
    folder: Path | str,
) -> list[Tensor]:
    """Codec tokens of each clip, ``(codebooks, frames)`` int64, from ``folder`` where known.

    A file there is named by the clip's samples, its rate and ``key``; a damaged one is made anew.

    Args:
        clips: what to encode.
        encode: the model's ``encode``.
        key: names the codec exactly, such as a hash of its weights.
        folder: where the cache lies; made if missing.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise readable(error, folder) from error
    found: list[Tensor] = []
    for at in track(range(0, len(clips), _TOGETHER), "codec tokens"):
        # One by one, because ``clips`` may load each only when asked.
        group = [clips[index] for index in range(at, min(at + _TOGETHER, len(clips)))]
        found += _group_tokens(group, encode, key, folder)
    return found


class TokenDataset(Dataset[Item]):
    """Crops of clips with captions, the same for the same (seed, epoch, index).

    Args:
        codes: ``(codebooks, frames)`` tokens of each clip; shorter ones are given whole.
        captions: one or more captions of each clip, one of which is drawn each time.
        frames: length of a crop.
        seed: of crops, captions and dropout.
        caption_dropout: share of examples with an empty caption, which guidance needs.

    Raises:
        InputError: no clips, or not as many captions as clips.
    """

    def __init__(
        self,
        codes: Sequence[Tensor],
        captions: Sequence[Sequence[str]],
        frames: int,
        seed: int = 0,
        caption_dropout: float = 0.1,
    ) -> None:
        if not codes:
            raise InputError("no clips to train on; prepare a folder with music first")
        if len(codes) != len(captions) or not all(captions):
            raise InputError(
                f"{len(captions)} lists of captions for {len(codes)} clips; give each clip its own"
            )
        self.codes = list(codes)
        self.captions = [tuple(texts) for texts in captions]
        self.frames = frames
        self.seed = seed
        self.caption_dropout = caption_dropout
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.codes)

    def set_epoch(self, epoch: int) -> None:
        """Make ``dataset[index]`` give the crops of this epoch."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> Item:
        return self.item(self.epoch, index)

    def item(self, epoch: int, index: int) -> Item:
        """The example at ``index`` in ``epoch``; changes nothing."""
        index = range(len(self))[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        # All three are always drawn, so that one choice never moves another.
        place, choice, drop = rng.random(3)
        codes, texts = self.codes[index], self.captions[index]
        spare = max(codes.shape[1] - self.frames, 0)
        first = int(place * (spare + 1))
        return {
            "codes": codes[:, first : first + self.frames].long(),
            "text": "" if drop < self.caption_dropout else texts[int(choice * len(texts))],
        }


def collate(items: Sequence[Item]) -> Collated:
    """Pad with zeros to the longest; ``lengths`` says what is real."""
    lengths = torch.tensor([item["codes"].shape[1] for item in items])
    codebooks = items[0]["codes"].shape[0]
    codes = torch.zeros(len(items), codebooks, int(lengths.max()), dtype=torch.long)
    for row, item in enumerate(items):
        codes[row, :, : item["codes"].shape[1]] = item["codes"]
    return {"codes": codes, "lengths": lengths, "texts": tuple(item["text"] for item in items)}


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """The shuffled order of ``n`` examples in one epoch."""
    return [int(index) for index in np.random.default_rng([seed, epoch]).permutation(n)]


def split(
    n: int, fraction: float, seed: int, sources: Sequence[str] | None = None
) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out, both in order.

    Neighbouring windows are alike, so the held-out ones are the last of each source rather than
    scattered ones. At least one is held out of four or more, unless ``fraction`` is 0.

    Args:
        n: how many clips there are.
        fraction: share to hold out, below 1.
        seed: decides between sources with equal claims.
        sources: the recording that each clip is from; one recording if not given.
    """
    if n < 4 or fraction <= 0:
        return list(range(n)), []
    members: dict[str, list[int]] = {}
    for index in range(n):
        members.setdefault(sources[index] if sources else "", []).append(index)
    wanted = min(max(round(n * fraction), 1), n - 1)
    groups = list(members.values())
    share = [len(group) * wanted / n for group in groups]
    counts = [int(part) for part in share]
    ties = np.random.default_rng(seed).random(len(groups))
    by_claim = sorted(range(len(groups)), key=lambda i: (counts[i] - share[i], ties[i]))
    for place in by_claim[: wanted - sum(counts)]:
        counts[place] += 1
    held_out = sorted(
        index
        for group, count in zip(groups, counts, strict=True)
        for index in group[len(group) - count :]
    )
    held = set(held_out)
    return [index for index in range(n) if index not in held], held_out


def _group_tokens(
    clips: list[Clip], encode: Callable[[Sequence[Clip]], Encoded], key: str, folder: Path
) -> list[Tensor]:
    paths = [folder / f"{_digest(clip, key)}.safetensors" for clip in clips]
    known = {path: codes for path in paths if (codes := _load(path)) is not None}
    missing = {path: clip for path, clip in zip(paths, clips, strict=True) if path not in known}
    if missing:
        batch = encode(list(missing.values()))
        for row, path in enumerate(missing):
            codes = batch.codes[row, :, : int(batch.lengths[row])].cpu()
            _save(codes, path)
            known[path] = codes.long()
    return [known[path] for path in paths]


def _digest(clip: Clip, key: str) -> str:
    digest = hashlib.sha256(f"{key} {clip.sample_rate} {clip.channels} ".encode())
    digest.update(clip.wave.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _load(path: Path) -> Tensor | None:
    try:
        codes = load(path.read_bytes())["codes"]
    except (OSError, SafetensorError, KeyError):
        return None
    if codes.dtype != torch.int16 or codes.ndim != 2 or codes.numel() == 0 or int(codes.min()) < 0:
        return None
    return codes.long()


def _save(codes: Tensor, path: Path) -> None:
    if int(codes.max()) > torch.iinfo(torch.int16).max:
        raise InputError(f"codec token {int(codes.max())} is too large to cache; 32767 is the most")
    with publish_file(path) as temporary:
        temporary.write_bytes(save({"codes": codes.to(torch.int16).contiguous()}))
