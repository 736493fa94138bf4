"""A base, an embedder and a concept set small enough to run the concept benchmark in a test."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from musictune import audio
from musictune.__main__ import main
from musictune.audio import Clip
from musictune.bench.concept_set import BenchConcept, write_concept
from musictune.metrics.embedders import ClapEmbedder
from musictune.models.musicgen import MusicGen

RATE = 16_000
LORA = "lora:method.options={r: 2}"


def sound(pitch: float, seed: int, buzz: float = 0.0) -> Clip:
    """Three seconds of a tune of its own in half-second notes."""
    draw = torch.Generator().manual_seed(seed)
    steps = torch.randint(0, 12, (6,), generator=draw)
    time = torch.arange(RATE // 2) / RATE
    notes = [torch.sin(2 * math.pi * pitch * 2 ** (step / 12) * time) for step in steps.tolist()]
    wave = torch.cat(notes) + buzz * torch.randn(3 * RATE, generator=draw)
    return Clip(0.3 * wave[None], RATE)


def write_sounds(folder: Path, pitch: float, first: int, buzz: float) -> None:
    folder.mkdir(parents=True)
    for index in range(2):
        audio.write(sound(pitch, first + index, buzz), folder / f"{index}.wav")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A base, an embedder and a set of two concepts, none of which tests change."""
    root = tmp_path_factory.mktemp("toys")
    MusicGen.toy().save(root / "base")
    ClapEmbedder.toy().save(root / "clap")
    for index, (name, kind, word) in enumerate(
        [("zing", "instrument", "piano"), ("bop", "style", "rock")]
    ):
        place = root / "set" / name
        write_sounds(place / "reference", 220.0 * (1 + index), 10 * index, 0.1 * index)
        write_sounds(place / "heldout", 220.0 * (1 + index), 10 * index + 5, 0.1 * index)
        keep = ("a slow {concept} solo", "loud {concept}")
        move = ("{concept} with drums", "techno with {concept}")
        write_concept(
            BenchConcept(name, kind, word, keep, move, place / "reference", place / "heldout")
        )
    return SimpleNamespace(base=root / "base", clap=root / "clap", set=root / "set")


@pytest.fixture
def composer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips in place of rendered ones, so that no SoundFont is needed."""

    def rendered(seeds: range, *, seconds: float) -> Iterator[tuple[None, Clip]]:
        for seed in seeds:
            clip = sound(110.0, seed).crop(0, seconds)
            yield None, Clip(clip.wave, RATE, f"loud drums number {seed % 10}")

    monkeypatch.setattr("musictune.bench.forgetting.SECONDS", 0.5)
    monkeypatch.setattr("musictune.compose.render.render_many", rendered)


@pytest.fixture
def bench(
    toys: SimpleNamespace, composer: None, unpainted: None, tmp_path: Path
) -> Callable[..., Path]:
    def run(*more: str, methods: tuple[str, ...] = (LORA,), **changed: str) -> Path:
        out = tmp_path / "out"
        options = {
            "data": toys.set, "base": toys.base, "embedder": toys.clap, "steps": 2, "prompts": 2,
            "seconds": 0.5, "general": 2, "out": out,
        } | changed  # fmt: skip
        words = [f"--{name}={value}" for name, value in options.items() if value is not None]
        words += [f"--method={method}" for method in methods]
        with pytest.raises(SystemExit) as end:
            main(["bench", "concepts", *words, "--set=training.preview_seconds=0.2", *more])
        run.code = end.value.code  # type: ignore[attr-defined]
        return out

    return run
