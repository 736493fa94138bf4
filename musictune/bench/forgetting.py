"""Does a model that learned one sound still play all others as it did?

A fixed set of clips in the composer's own styles stands for what a base knew before. Their captions
never name the concept, so a tuned model should find their tokens as likely as its base does, and
play their captions as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.bench.cells import Cells
from musictune.bench.material import SEEDS_APART, losses, play
from musictune.console import note, say, track
from musictune.data.clips import read_clips
from musictune.data.concepts import Concept, plain
from musictune.errors import InputError
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.frechet import frechet_between
from musictune.models.musicgen import MusicGen

FIRST_SEED = 60_000_000  # far from those of training corpora and concept sets
SECONDS = 6.0

_KEY = ("general", "clips")
_SEED = 5_000  # apart from those of the concepts' own prompts


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
    missing: list[InputError] = []

    def make(folder: Path) -> dict[str, Any]:
        try:
            made = _rendered(count)
        except InputError as error:
            missing.append(error)
            raise
        write_clips(made, folder, [{"seed": int(clip.source)} for clip in made])
        return {}

    try:
        cells.once(_KEY, settings, make)
    except InputError as error:
        if error not in missing:
            raise
        note(f"forgetting is not measured: {error}")
        return str(error)
    clips = tuple(read_clips(cells.place(_KEY)))
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(clip.caption.encode())
        digest.update(clip.wave.numpy().tobytes())
    return GeneralSet(clips, digest.hexdigest(), SECONDS)


class Forgetting:
    """Holds tuned models against their base.

    Args:
        general: what the base knew before.
        music: how many of its captions are played too, the first of them; 0 for the loss alone.
        base: untouched.
        embedder: what hears.
        cells: where the base's own part is kept.
        shared: settings that all cells have in common.
    """

    def __init__(
        self,
        general: GeneralSet,
        music: int,
        base: MusicGen,
        embedder: ClapEmbedder,
        cells: Cells,
        shared: Mapping[str, Any],
    ) -> None:
        self.general, self.music = general, music
        self._base, self._embedder, self._cells = base, embedder, cells
        self._shared = dict(shared)
        self._texts = [clip.caption for clip in general.clips]
        self._codes: list[Tensor] = []
        self._points: list[Tensor] = []

    @property
    def settings(self) -> dict[str, Any]:
        """What its figures depend on."""
        general = self.general
        return {"clips": len(general.clips), "digest": general.digest, "music": self.music}

    def measure(self, model: MusicGen | None, concept: Concept, seed: int) -> dict[str, Any]:
        """What ``model``, or the base, has lost of the clips that do not name ``concept``.

        Returns:
            As `forgetting` does.
        """
        base = self._of_base(seed)
        values, points = base["losses"], base["points"]
        if model is not None:
            values = losses(model, self._texts, self._tokens())
            points = self._played(model, seed)
        kept = self.general.without(concept)
        played = [i for i in kept if i < self.music]
        clips = self._heard() if played else []
        return forgetting(
            *([each[i] for i in kept] for each in (values, base["losses"])),
            *([each[i] for i in played] for each in (points, base["points"], clips)),
        )

    def _of_base(self, seed: int) -> dict[str, Any]:
        """What the base does with the general captions: the same for all concepts."""

        def make(_: Path) -> dict[str, Any]:
            say(f"the base, general captions, seed {seed}")
            values = losses(self._base, self._texts, self._tokens())
            points = self._played(self._base, seed)
            return {"losses": values, "points": [clip.tolist() for clip in points]}

        settings = {"general": self.settings, "seed": seed, **self._shared}
        found = self._cells.once(("general", f"seed{seed}"), settings, make)
        assert found is not None  # it was waited for
        points = [torch.tensor(clip, dtype=torch.float32) for clip in found["points"]]
        return {"losses": found["losses"], "points": points}

    def _played(self, model: MusicGen, seed: int) -> list[Tensor]:
        texts = self._texts[: self.music]
        if not texts:
            return []
        seconds = min(self.general.seconds, model.max_seconds)
        music = play(model, texts, texts, seconds, seed * SEEDS_APART + _SEED)
        return embed(self._embedder, music.clips)

    def _tokens(self) -> list[Tensor]:
        if not self._codes:
            clips = self.general.clips
            self._codes = [self._base.encode([clip]).codes[0].cpu() for clip in clips]
        return self._codes

    def _heard(self) -> list[Tensor]:
        if not self._points:
            self._points = embed(self._embedder, self.general.clips[: self.music])
        return self._points


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
        The last two are missing where fewer than two clips were made.
    """
    found = {
        "clips": len(tuned_losses),
        "loss": float(np.mean(tuned_losses)),
        "loss_change": float(np.mean(np.subtract(tuned_losses, base_losses))),
        "losses": [round(value, 5) for value in tuned_losses],
    }
    if len(clips) < 2:
        return found
    target = _points(clips)
    tuned, base = (frechet_between(_points(m), target) for m in (tuned_music, base_music))
    return found | {"frechet": tuned, "frechet_change": tuned - base}


def embed(embedder: ClapEmbedder, clips: Sequence[Clip]) -> list[Tensor]:
    """Per clip ``(windows, dim)``, with a bar."""
    return embedder.audio(track(clips, "listening", len(clips)))


def _rendered(count: int) -> list[Clip]:
    from musictune.compose.render import render_many

    seeds = range(FIRST_SEED, FIRST_SEED + count)
    made = track(render_many(seeds, seconds=SECONDS), "general clips", count)
    return [replace(clip, source=str(seed)) for seed, (_, clip) in zip(seeds, made, strict=True)]


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
