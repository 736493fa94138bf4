"""Alignment against plain loops, and the rewards made of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.alignment import (
    AudioAlignment,
    TextAlignment,
    audio_alignment,
    audio_alignment_score,
    text_alignment,
    text_alignment_score,
)
from musictune.metrics.embedders import ClapEmbedder


def clouds(lengths: list[int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(n, 5, generator=generator), dim=1) for n in lengths]


def test_audio_alignment_is_the_mean_over_all_pairs_of_windows():
    made, reference = clouds([1, 4, 2], 0), clouds([3, 2], 1)
    targets = [row for clip in reference for row in clip]
    cosines = [[float(w @ t) for w in clip for t in targets] for clip in made]
    wanted = [sum(values) / len(values) for values in cosines]
    assert audio_alignment(made, reference).tolist() == pytest.approx(wanted, abs=1e-6)
    score = audio_alignment_score(made, reference)
    flat = [value for values in cosines for value in values]
    assert score.value == pytest.approx(sum(flat) / len(flat), abs=1e-6)
    assert (score.n, score.better) == (3, "higher")
    assert score.low <= score.value <= score.high


def test_text_alignment_is_each_clip_with_its_own_text():
    made = clouds([2, 1, 3], 2)
    texts = torch.cat(clouds([3], 3))
    wanted = [sum(float(w @ t) for w in clip) / len(clip) for t, clip in zip(texts, made)]  # noqa: B905
    assert text_alignment(texts, made).tolist() == pytest.approx(wanted, abs=1e-6)
    score = text_alignment_score(texts, made)
    assert score.value == pytest.approx(sum(wanted) / 3, abs=1e-6)


def test_one_clip_has_a_value_and_no_interval():
    score = audio_alignment_score(clouds([2], 0), clouds([2], 1))
    assert score.low != score.low
    assert score.as_json()["low"] is None


def test_rewards_are_the_values_per_clip():
    embedder = ClapEmbedder.toy()
    generator = torch.Generator().manual_seed(0)
    clips = [
        Clip(torch.rand(1, 12_000, generator=generator) - 0.5, 8000, caption=text)
        for text in ("piano", "drums")
    ]
    reward = AudioAlignment(embedder, clips[:1])
    wanted = audio_alignment(embedder.audio(clips), reward.reference)
    assert torch.equal(reward(clips), torch.from_numpy(wanted).float())
    followed = TextAlignment(embedder)(clips)
    wanted = text_alignment(embedder.text(["piano", "drums"]), embedder.audio(clips))
    assert torch.equal(followed, torch.from_numpy(wanted).float())
    with pytest.raises(InputError, match="no caption"):
        TextAlignment(embedder)([replace(clips[0], caption="")])
