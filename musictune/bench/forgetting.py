"""Does a model that learned one sound still play all others as it did?

A fixed set of clips in the composer's own styles stands for what a base knew before. Their captions
never name the concept, so a tuned model should find their tokens as likely as its base does, and
play their captions as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.bench.cells import Cells
from musictune.console import note, track
from musictune.data.clips import read_clips
from musictune.data.concepts import Concept, plain
from musictune.errors import InputError
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.frechet import frechet_between
from musictune.models.base import Batch, MusicModel

FIRST_SEED = 60_000_000  # far from those of training corpora and concept sets
SECONDS = 6.0

_KEY = ("general", "clips")
_TOGETHER = 8  # clips in one forward pass


@dataclass(frozen=True)
class GeneralSet:
    """Clips of what a base knew before, with their captions.

    Attributes:
        clips: the music.
        digest: of samples and captions: equal digests, equal sets.
        seconds: length of each.
    """

    clips: tuple[Clip, ...]
    digest: str
    seconds: float

    def without(self, concept: Concept) -> list[int]:
        """Indices of the clips whose captions do not name ``concept``."""
        texts = [clip.caption for clip in self.clips]
        return [i for i, text in enumerate(texts) if plain(text, [concept]) == text]


def general_set(cells: Cells, count: int) -> GeneralSet | str:
    """The set, rendered once and kept with the cells, or why there is none.

    Args:
        cells: where it is kept.
        count: how many clips of `SECONDS`; 0 for none.

    Raises:
        InputError: one of another size is there, or it cannot be written.
    """
    if count == 0:
        return "no general clips were asked for"
    settings = {"count": count, "seconds": SECONDS, "first_seed": FIRST_SEED}
    if cells.find(_KEY, settings) is None:
        try:
            made = _rendered(count)
        except InputError as error:
            note(f"forgetting is not measured: {error}")
            return str(error)
        _keep(cells, settings, made)
    clips = tuple(read_clips(cells.place(_KEY)))
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(clip.caption.encode())
        digest.update(clip.wave.numpy().tobytes())
    return GeneralSet(clips, digest.hexdigest(), SECONDS)


@torch.no_grad()
def losses(model: MusicModel, clips: Sequence[Clip], codes: Sequence[Tensor]) -> list[float]:
    """Nats per token of each clip's true tokens under its own caption.

    Args:
        model: in evaluation mode.
        clips: their captions are the texts.
        codes: per clip ``(codebooks, frames)``.
    """
    found: list[float] = []
    for first in range(0, len(clips), _TOGETHER):
        rows = list(codes[first : first + _TOGETHER])
        lengths = torch.tensor([row.shape[1] for row in rows])
        longest = int(lengths.max())
        padded = [torch.nn.functional.pad(row, (0, longest - row.shape[1])) for row in rows]
        texts = tuple(clip.caption for clip in clips[first : first + _TOGETHER])
        found += model.nll(Batch(torch.stack(padded), lengths, texts)).tolist()
    return found


def forgetting(
    tuned_losses: Sequence[float],
    base_losses: Sequence[float],
    tuned_music: Sequence[Tensor],
    base_music: Sequence[Tensor],
    clips: Sequence[Tensor],
) -> dict[str, Any]:
    """What a tuned model has lost of what its base knew.

    Args:
        tuned_losses, base_losses: of the same clips, in nats per token.
        tuned_music, base_music: embeddings of music made from their captions with equal seeds,
            per clip ``(windows, dim)``.
        clips: embeddings of the clips themselves.

    Returns:
        ``loss`` and ``loss_change`` (tuned minus base, mean over clips), ``losses`` per clip, and
        ``frechet`` and ``frechet_change`` against the clips; more of either means more forgotten.
    """
    target = _points(clips)
    tuned, base = (frechet_between(_points(m), target) for m in (tuned_music, base_music))
    return {
        "clips": len(tuned_losses),
        "loss": float(np.mean(tuned_losses)),
        "loss_change": float(np.mean(np.subtract(tuned_losses, base_losses))),
        "losses": [round(value, 5) for value in tuned_losses],
        "frechet": tuned,
        "frechet_change": tuned - base,
    }


def embed(embedder: ClapEmbedder, clips: Sequence[Clip]) -> list[Tensor]:
    """Per clip ``(windows, dim)``, with a bar."""
    return embedder.audio(track(clips, "listening", len(clips)))


def _rendered(count: int) -> list[Clip]:
    from musictune.compose.render import render_many

    seeds = range(FIRST_SEED, FIRST_SEED + count)
    made = track(render_many(seeds, seconds=SECONDS), "general clips", count)
    return [replace(clip, source=str(seed)) for seed, (_, clip) in zip(seeds, made, strict=True)]


def _keep(cells: Cells, settings: dict[str, Any], clips: Sequence[Clip]) -> None:
    with cells.make(_KEY, settings) as (folder, keep):
        write_clips(clips, folder, [{"seed": int(clip.source)} for clip in clips])
        keep({})


def write_clips(clips: Sequence[Clip], folder: Path, lines: Sequence[dict[str, Any]]) -> list[str]:
    """Write ``NNN.flac`` and a ``manifest.jsonl`` that ``evaluate`` reads; returns the names.

    Each line of ``lines`` is said about the clip in its place, whose caption is its prompt unless
    the line has another.
    """
    import json

    from musictune import audio

    folder.mkdir(exist_ok=True)
    names, manifest = [], []
    for index, (clip, line) in enumerate(zip(clips, lines, strict=True)):
        names.append(f"{index:03d}.flac")
        audio.write(clip, folder / names[-1])
        entry = {"file": names[-1], "prompt": clip.caption, **line}
        manifest.append(json.dumps(entry, ensure_ascii=False) + "\n")
    (folder / "manifest.jsonl").write_text("".join(manifest), encoding="utf-8")
    return names


def _points(clips: Sequence[Tensor]) -> np.ndarray:
    return np.concatenate([clip.double().numpy() for clip in clips])
