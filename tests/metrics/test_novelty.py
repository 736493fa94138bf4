"""Novelty by sound: copies have none, and what sounds otherwise has more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.novelty import Novelty

RATE = 16_000


def tune(seed: int, low: float = 220.0, harmonics: int = 2, seconds: float = 3.75) -> Clip:
    """Four notes a second of one instrument."""
    time = np.arange(round(seconds * RATE)) / RATE
    steps = np.random.default_rng(seed).choice([0, 2, 3, 5, 7, 8, 10], 64)
    pitch = low * 2 ** (steps[(time * 4).astype(int) % 64] / 12)
    wave = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in range(1, harmonics + 1))
    wave = 0.3 * wave * np.exp(-6 * (time % 0.25))
    return Clip(torch.from_numpy(wave)[None].float(), RATE)


def noise(seed: int) -> Clip:
    wave = 0.2 * np.random.default_rng(seed).standard_normal((1, 15 * RATE // 4))
    return Clip(torch.from_numpy(wave).float(), RATE)


def shifted(clip: Clip, seconds: float) -> Clip:
    return replace(clip, wave=clip.wave.roll(round(seconds * RATE), 1))


@pytest.fixture(scope="module")
def clap() -> ClapEmbedder:
    return ClapEmbedder.load()


def test_copies_shifted_copies_the_style_another_style(clap: ClapEmbedder) -> None:
    training = [tune(0), tune(1)]
    found = Novelty(clap, training)([tune(0), shifted(tune(0), 0.1), tune(7), noise(0)])
    assert found[0] == pytest.approx(0, abs=1e-5)
    assert (found.diff() > 0).all(), found


def test_a_copied_part_is_found_in_a_longer_clip(clap: ClapEmbedder) -> None:
    part = replace(noise(3), wave=torch.cat([noise(3).wave, tune(0).wave], 1))
    found = Novelty(clap, [tune(0)])([part, noise(3)])
    assert found[0] < 0.05 < found[1]


def test_held_out_clips_say_what_is_novel_enough(clap: ClapEmbedder) -> None:
    training, held_out = [tune(0), tune(1)], [tune(5), tune(6), tune(8)]
    plain, scaled = Novelty(clap, training), Novelty(clap, training, held_out)
    clips = [tune(0), shifted(tune(0), 0.1), noise(0)]
    found = scaled(clips)
    assert found[0] == pytest.approx(0, abs=1e-3)
    assert found[1] >= plain(clips)[1]
    assert found[2] == 1.0, "sounding unlike the concept earns no more than enough"


def test_silence_is_not_novel(clap: ClapEmbedder) -> None:
    silent = Clip(torch.zeros(1, 3 * RATE), RATE)
    assert Novelty(clap, [tune(0)])([silent]).tolist() == [0.0]


def test_nothing_to_compare_with_is_refused() -> None:
    toy = ClapEmbedder.toy()
    with pytest.raises(InputError, match="at least one"):
        Novelty(toy, [])
    silent = Clip(torch.zeros(1, 3 * RATE), RATE)
    with pytest.raises(InputError, match="training clips are silent"):
        Novelty(toy, [silent])
    for held_out in ([silent], [tune(0)]):
        with pytest.raises(InputError, match="held-out"):
            Novelty(toy, [tune(0)], held_out)
