"""The concept benchmark: each concept learned by each method with each seed, and measured.

A cell is one concept, method and seed. It tunes on the concept's reference clips, plays the
concept's prompts with what was learned, and holds that music against clips of the concept that
were never trained on, beside what the untouched base makes of the class word at the same seeds.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musictune import console
from musictune.bench.asked import (
    NONE,
    Method,
    Plan,
    concept_digest,
    named,
    recipe_settings,
)
from musictune.bench.cells import Cells, versions
from musictune.bench.concept_set import BenchConcept
from musictune.bench.forgetting import (
    Forgetting,
    GeneralSet,
    embed,
    general_set,
    write_clips,
)
from musictune.bench.material import (
    PER_CLIP,
    SEEDS_APART,
    Material,
    Music,
    alignments,
    learnable_word,
    play,
    read_material,
    set_scores,
)
from musictune.errors import CheckFailed
from musictune.generation.engine import check_seconds
from musictune.methods import load_adapter
from musictune.metrics.embedders import ClapEmbedder
from musictune.models import load_model
from musictune.models.musicgen import MusicGen
from musictune.training.recipe import Recipe
from musictune.training.run import tune

Key = tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One concept, method and seed; ``method`` is None for the base."""

    concept: BenchConcept
    method: Method | None
    seed: int

    @property
    def key(self) -> Key:
        """The parts of its path."""
        method = self.method.slug if self.method else NONE
        return "cells", self.concept.name, method, f"seed{self.seed}"

    def __str__(self) -> str:
        method = self.method.text if self.method else f"{NONE} (the base)"
        return f"{self.concept.name}, {method}, seed {self.seed}"


class Bench:
    """Makes cells, once each.

    Args:
        plan: how.
        cells: where they are kept.

    Raises:
        InputError: the base or the embedder cannot be loaded, or the clips are too long for it.
    """

    def __init__(self, plan: Plan, cells: Cells) -> None:
        self.plan = plan
        self.cells = cells
        self.embedder = ClapEmbedder.load(plan.embedder)
        base = load_model(plan.base, plan.device)
        check_seconds(plan.seconds, base.max_seconds)
        self.base_hash = weights_hash(base)
        self._base = base
        self._digests: dict[str, str] = {}
        self._materials: dict[tuple[str, float | None], Material] = {}
        general = general_set(cells, plan.general)
        self.no_general = general if isinstance(general, str) else ""
        self._forgetting: Forgetting | None = None
        if isinstance(general, GeneralSet):
            self._forgetting = Forgetting(
                general, plan.music, base, self.embedder, cells, self.shared_settings()
            )

    def settings(self, cell: Cell) -> dict[str, Any]:
        """All that the figures of a cell depend on.

        Raises:
            InputError: its recipe does not fit.
        """
        concept = cell.concept
        settings = {
            "concept": {"name": concept.name, "digest": self._digest(concept)},
            "seed": cell.seed,
            "prompts": [list(pair) for pair in self.plan.chosen(concept)],
            "class_word": concept.class_word,
            "general": self._forgetting.settings if self._forgetting else None,
            **self.shared_settings(),
        }
        if cell.method is None:
            return settings
        word = learnable_word(self._base, concept)
        recipe = self.plan.recipe(cell.method, concept, cell.seed, word.name)
        if cell.method.reference_seconds is not None:
            settings["reference_seconds"] = cell.method.reference_seconds
        return settings | {"method": cell.method.text, "recipe": recipe_settings(recipe)}

    def shared_settings(self) -> dict[str, Any]:
        """What is the same for every cell of the run."""
        return {
            "base": self.base_hash,
            "embedder": self.embedder.hash,
            "seconds": self.plan.seconds,
        }

    def record(self, cell: Cell, *, wait: bool = True) -> dict[str, Any] | None:
        """The cell's figures: found, or made now; None where another process makes it.

        Args:
            wait: for that process.

        Raises:
            InputError: bad input, a full disk, or a cell that was made with other settings.
        """

        def make(folder: Path) -> dict[str, Any]:
            console.say(str(cell))
            return self._make(cell, folder)

        return self.cells.once(cell.key, self.settings(cell), make, wait=wait)

    def made_with(self) -> dict[str, Any]:
        """Everything needed to make the same numbers again."""
        return {
            "versions": versions(),
            "base": self.plan.base,
            "base_hash": self.base_hash,
            "embedder": self.embedder.name,
            "embedder_hash": self.embedder.hash,
            "windows": {"seconds": self.embedder.window_seconds},
            "device": str(self._base.device),
        }

    def material(self, concept: BenchConcept, reference_seconds: float | None = None) -> Material:
        """The concept's clips, read once."""
        key = concept.name, reference_seconds
        if key not in self._materials:
            word = learnable_word(self._base, concept)
            self._materials[key] = read_material(
                concept,
                word,
                self._base,
                self.embedder,
                self.cells.out / "prepared",
                reference_seconds,
            )
        return self._materials[key]

    def learn(self, clips: Path | None, recipe: Recipe, run: Path) -> dict[str, Any]:
        """Tune a fresh base into the folder ``run``; the run's facts.

        Raises:
            InputError: bad clips or names, or a full disk.
            CheckFailed: a loss was no number, or the adapter has no effect.
        """
        model = self.fresh()
        _fresh_peak(model.device)
        result = tune(model, clips, recipe, run, report=False)
        shutil.rmtree(run / "tensorboard", ignore_errors=True)
        return dict(result.facts)

    def with_adapters(self, runs: Sequence[Path]) -> MusicGen:
        """A fresh base with adapters in it, merged one after the other."""
        model = self.fresh()
        for run in runs:
            load_adapter(model, run)
        return model

    def fresh(self) -> MusicGen:
        """The untouched base, to be changed."""
        return copy.deepcopy(self._base)  # faster than reading and hashing its files again

    def base(self) -> MusicGen:
        """The untouched base."""
        return self._base

    def _make(self, cell: Cell, folder: Path) -> dict[str, Any]:
        concept = cell.concept
        material = self.material(concept, cell.method.reference_seconds if cell.method else None)
        asked = self.plan.chosen(concept)
        texts = [named(prompt, concept.class_word) for _, prompt in asked]
        record: dict[str, Any] = {
            "concept": concept.name,
            "kind": concept.kind,
            "class_word": concept.class_word,
            "method": cell.method.text if cell.method else NONE,
            "seed": cell.seed,
            "made_with": self.made_with(),
        }
        if cell.method is None:
            model, prompts = self._base, texts
        else:
            try:
                recipe = self.plan.recipe(cell.method, concept, cell.seed, material.word.name)
                record["facts"] = self.learn(material.prepared, recipe, folder / "run")
            except CheckFailed as error:
                console.note(f"{cell}: failed: {error}")
                return record | {"failed": str(error)}
            model = self.with_adapters([folder / "run"])
            prompts = [named(prompt, material.word.trigger) for _, prompt in asked]
        first = cell.seed * SEEDS_APART
        music = play(model, prompts, texts, self.plan.seconds, first)
        lines = [
            {"prompt": prompt, "text": text, "seed": first + i, "base": self.plan.base}
            for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
        ]
        names = write_clips(music.clips, folder / "music", lines)
        parts = [part for part, _ in asked]
        record |= self._measured(material, music, parts)
        for name, line, clip in zip(names, lines, record["clips"], strict=True):
            clip |= {"file": f"music/{name}", **line}
        losses = material.unheard.losses(model, tuned=cell.method is not None)
        record["concept_loss"] = {
            "loss": float(np.mean(losses)),
            "losses": [round(value, 5) for value in losses],
        }
        if self._forgetting:
            tuned = model if cell.method else None
            record["forgetting"] = self._forgetting.measure(tuned, material.word, cell.seed)
        else:
            record["not_computed"] = {"forgetting": self.no_general}
        return record

    def _measured(self, material: Material, music: Music, parts: Sequence[str]) -> dict[str, Any]:
        made = embed(self.embedder, music.clips)
        texts = [clip.caption for clip in music.clips]
        values = alignments(self.embedder, made, texts, material.held_out)
        scores = {}
        for part in ("all", "keep", "move"):
            chosen = [i for i, name in enumerate(parts) if part in ("all", name)]
            per_clip = {name: [values[name][i] for i in chosen] for name in PER_CLIP}
            scores[part] = set_scores(per_clip, [made[i] for i in chosen], material.held_out)
        copies = material.copies.measure(music.clips, music.codes)
        nearest = copies.pop("nearest")
        clips = [
            {"part": part} | {name: round(values[name][i], 6) for name in PER_CLIP} | nearest[i]
            for i, part in enumerate(parts)
        ]
        return {"scores": scores, "copying": copies, "clips": clips}

    def _digest(self, concept: BenchConcept) -> str:
        if concept.name not in self._digests:
            self._digests[concept.name] = concept_digest(concept)
        return self._digests[concept.name]


def weights_hash(model: MusicGen) -> str:
    """Hex SHA-256 over all weights of a base."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.network.state_dict().items()):
        digest.update(f"{name} {list(weight.shape)}".encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C inside says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "stopped; finished cells are kept, run the same command to go on"
        ) from None


def _fresh_peak(device: torch.device) -> None:
    """Count peak memory from here on: else each run would report the largest one before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # Linux only
        Path("/proc/self/clear_refs").write_text("5")
