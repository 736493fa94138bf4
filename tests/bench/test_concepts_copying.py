"""Copies are found, other music is not; forgetting is zero where nothing changed."""

from __future__ import annotations

import math

import pytest
import torch

from musictune.audio import Clip
from musictune.bench.copying import CopyCheck
from musictune.bench.forgetting import FIRST_SEED, GeneralSet, forgetting, losses
from musictune.data.concepts import Concept
from musictune.metrics.embedders import ClapEmbedder
from musictune.models.musicgen import MusicGen

RATE = 16_000


def tune(seed: int, seconds: int = 6) -> Clip:
    """Notes of a quarter second with two partials, another order for each seed."""
    draw = torch.Generator().manual_seed(seed)
    steps = torch.randint(0, 24, (4 * seconds,), generator=draw).tolist()
    time = torch.arange(RATE // 4) / RATE
    notes = []
    for step in steps:
        pitch = 220 * 2 ** (step / 12)
        partials = torch.sin(2 * math.pi * pitch * time)
        notes.append(partials + 0.5 * torch.sin(4 * math.pi * pitch * time))
    return Clip(0.3 * torch.cat(notes)[None], RATE)


def codes(clip: Clip, model: MusicGen) -> torch.Tensor:
    return model.encode([clip]).codes[0]


def test_a_copied_clip_stands_out_and_honest_music_does_not() -> None:
    model, embedder = MusicGen.toy(), ClapEmbedder.toy()
    training, held_out = [tune(i) for i in range(3)], [tune(10 + i) for i in range(3)]
    check = CopyCheck(
        embedder,
        50,
        training,
        [codes(clip, model) for clip in training],
        held_out,
        [codes(clip, model) for clip in held_out],
    )
    # A copy that begins in the middle of the second training clip.
    copied = training[1].crop(1.25, 3.0)
    found = check.measure([copied], [codes(training[1], model)[:, 60:200]])
    assert found["chroma"]["median"] > 0.9
    assert found["chroma"]["above_held_out"] == 1.0
    assert found["clap"]["p95"] > 0.999
    assert found["tokens"]["longest"] > 5 * found["tokens"]["held_out_longest"]
    (nearest,) = found["nearest"]
    assert nearest["nearest_chroma"]["training_clip"] == 1
    assert nearest["nearest_chroma"]["training_start"] == pytest.approx(1.25, abs=0.1)

    honest = [tune(30), tune(31)]
    found = check.measure(honest, [codes(clip, model) for clip in honest])
    assert found["chroma"]["above_held_out"] < 0.5
    assert found["chroma"]["p95"] < 0.9
    assert found["chroma"]["excerpts"] == 6


def test_silence_is_no_copy() -> None:
    embedder = ClapEmbedder.toy()
    quiet = Clip(torch.zeros(1, 3 * RATE), RATE)
    zeros = torch.zeros(4, 50, dtype=torch.long)
    check = CopyCheck(embedder, 50, [tune(0), quiet], [zeros, zeros], [tune(1)], [zeros])
    found = check.measure([quiet], [zeros])
    assert found["clap"]["excerpts"] == 0 and "above_held_out" not in found["clap"]
    assert found["tokens"]["longest"] == 0
    assert found["nearest"][0]["nearest_clap"] is None


def test_losses_do_not_depend_on_the_batch_and_see_a_change() -> None:
    model = MusicGen.toy()
    clips = [Clip(tune(i, 1 + i % 2).wave, RATE, caption=f"slow piano {i}") for i in range(10)]
    texts = [clip.caption for clip in clips]
    rows = [codes(clip, model) for clip in clips]
    together = losses(model, texts, rows)
    alone = [losses(model, [t], [r])[0] for t, r in zip(texts, rows, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    with torch.no_grad():
        for weight in model.backbone.parameters():
            weight.mul_(1.1)
    assert losses(model, texts, rows) != pytest.approx(together, abs=1e-4)


def test_forgetting_is_zero_for_the_base_itself() -> None:
    points = [torch.randn(1, 8) for _ in range(12)]
    same = forgetting([5.0, 6.0], [5.0, 6.0], points[:6], points[:6], points[6:])
    assert same["loss_change"] == same["frechet_change"] == 0
    worse = forgetting([5.5, 6.0], [5.0, 6.0], [p + 9 for p in points[:6]], points[:6], points[6:])
    assert worse["loss_change"] == pytest.approx(0.25)
    assert worse["frechet_change"] > 100


def test_general_clips_that_name_the_concept_are_left_out() -> None:
    texts = ("slow piano", "a koto solo", "kotos")
    clips = tuple(Clip(torch.ones(1, 10), RATE, caption=text) for text in texts)
    general = GeneralSet(clips, "", 6.0)
    assert general.without(Concept("koto", "harp")) == [0, 2]
    assert FIRST_SEED >= 60_000_000
