"""The concept benchmark: each concept learned by each method with each seed, and measured.

A cell is one concept, method and seed. It tunes on the concept's reference clips, plays the
concept's prompts with what was learned, and holds that music against clips of the concept that
were never trained on, beside what the untouched base makes of the class word at the same seeds.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    GeneralSet,
    embed,
    forgetting,
    general_set,
    losses,
    write_clips,
)
from musictune.bench.material import (
    PER_CLIP,
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
from musictune.training.run import tune

_SEEDS_APART = 10_000  # so that no clip of one seed is made with the luck of another's
_GENERAL_SEED = 5_000
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
        self.general = general_set(cells, plan.general)
        self._base = base
        self._digests: dict[str, str] = {}
        self._materials: dict[str, Material] = {}
        self._general_codes: list[Tensor] = []
        self._general_points: list[Tensor] = []

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
            "general": self._general_settings(),
            **self.shared_settings(),
        }
        if cell.method is None:
            return settings
        word = learnable_word(self._base, concept)
        recipe = self.plan.recipe(cell.method, concept, cell.seed, word.name)
        return settings | {"method": cell.method.text, "recipe": recipe_settings(recipe)}

    def shared_settings(self) -> dict[str, Any]:
        """What is the same for every cell of the run."""
        return {
            "base": self.base_hash,
            "embedder": self.embedder.hash,
            "seconds": self.plan.seconds,
        }

    def record(self, cell: Cell) -> dict[str, Any]:
        """The cell's figures: found, or made now.

        Raises:
            InputError: bad input, a full disk, or a cell that was made with other settings.
        """
        settings = self.settings(cell)
        if found := self.cells.find(cell.key, settings):
            return found
        console.say(str(cell))
        with self.cells.make(cell.key, settings) as (folder, keep):
            keep(self._make(cell, folder))
        found = self.cells.find(cell.key, settings)
        assert found is not None
        return found

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

    def material(self, concept: BenchConcept) -> Material:
        """The concept's clips, read once."""
        if concept.name not in self._materials:
            word = learnable_word(self._base, concept)
            self._materials[concept.name] = read_material(
                concept, word, self._base, self.embedder, self.cells.out / "prepared"
            )
        return self._materials[concept.name]

    def forget(self, concept: BenchConcept) -> None:
        """Free the memory of a concept that is done."""
        self._materials.pop(concept.name, None)

    def tuned(self, cells: Sequence[Cell]) -> MusicGen:
        """A fresh base with the adapters of finished cells in it."""
        model = load_model(self.plan.base, self.plan.device)
        for cell in cells:
            load_adapter(model, self.cells.place(cell.key) / "run")
        return model

    def base(self) -> MusicGen:
        """The untouched base."""
        return self._base

    def _make(self, cell: Cell, folder: Path) -> dict[str, Any]:
        concept = cell.concept
        material = self.material(concept)
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
                record["facts"] = self._tune(cell, material, folder / "run")
            except CheckFailed as error:
                console.note(f"{cell}: failed: {error}")
                return record | {"failed": str(error)}
            model = load_model(self.plan.base, self.plan.device)
            load_adapter(model, folder / "run")
            prompts = [named(prompt, material.word.trigger) for _, prompt in asked]
        first = cell.seed * _SEEDS_APART
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
        if isinstance(self.general, GeneralSet):
            record["forgetting"] = self._forgetting(cell, model, self.general, material)
        else:
            record["not_computed"] = {"forgetting": self.general}
        return record

    def _tune(self, cell: Cell, material: Material, run: Path) -> dict[str, Any]:
        """Learn the concept into ``run``; the run's facts."""
        assert cell.method is not None
        recipe = self.plan.recipe(cell.method, cell.concept, cell.seed, material.word.name)
        model = load_model(self.plan.base, self.plan.device)
        _fresh_peak(model.device)
        result = tune(model, material.prepared, recipe, run)
        shutil.rmtree(run / "tensorboard", ignore_errors=True)
        return dict(result.facts)

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

    # --- forgetting ---

    def _forgetting(
        self, cell: Cell, model: MusicGen, general: GeneralSet, material: Material
    ) -> dict[str, Any]:
        """Of the clips that do not name the concept."""
        base = self._general_base(general, cell.seed)
        if cell.method is None:
            tuned_losses, tuned = base["losses"], base["points"]
        else:
            codes = self._codes(general)
            tuned_losses = losses(model, general.clips, codes)
            tuned = self._general_music(model, general, cell.seed)
        kept = general.without(material.word)
        points = self._points(general)
        return forgetting(
            *([values[i] for i in kept] for values in (tuned_losses, base["losses"])),
            *([values[i] for i in kept] for values in (tuned, base["points"], points)),
        )

    def _general_base(self, general: GeneralSet, seed: int) -> dict[str, Any]:
        """What the base does with the general captions: the same for all concepts."""
        key = ("general", f"seed{seed}")
        settings = {"general": self._general_settings(), "seed": seed, **self.shared_settings()}
        found = self.cells.find(key, settings)
        if found is None:
            console.say(f"the base, general captions, seed {seed}")
            with self.cells.make(key, settings) as (_, keep):
                values = losses(self._base, general.clips, self._codes(general))
                points = self._general_music(self._base, general, seed)
                keep({"losses": values, "points": [clip.tolist() for clip in points]})
            found = self.cells.find(key, settings)
            assert found is not None
        points = [torch.tensor(clip, dtype=torch.float32) for clip in found["points"]]
        return {"losses": found["losses"], "points": points}

    def _general_music(self, model: MusicGen, general: GeneralSet, seed: int) -> list[Tensor]:
        texts = [clip.caption for clip in general.clips]
        seconds = min(general.seconds, model.max_seconds)
        first = seed * _SEEDS_APART + _GENERAL_SEED
        return embed(self.embedder, play(model, texts, texts, seconds, first).clips)

    def _general_settings(self) -> dict[str, Any] | None:
        if not isinstance(self.general, GeneralSet):
            return None
        return {"clips": len(self.general.clips), "digest": self.general.digest}

    def _codes(self, general: GeneralSet) -> list[Tensor]:
        if not self._general_codes:
            self._general_codes = [self._base.encode([c]).codes[0].cpu() for c in general.clips]
        return self._general_codes

    def _points(self, general: GeneralSet) -> list[Tensor]:
        if not self._general_points:
            self._general_points = embed(self.embedder, general.clips)
        return self._general_points


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
