"""Alignment and self-similarity against plain loops, and the rewards made of them."""

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
from musictune.metrics.similarity import self_similarity


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


def test_self_similarity_is_the_mean_over_pairs_of_clips():
    made = clouds([1, 3, 2, 4], 4)
    centres = [F.normalize(clip.mean(0), dim=0) for clip in made]
    pairs = [float(centres[i] @ centres[j]) for i in range(4) for j in range(4) if i != j]
    score = self_similarity(made)
    assert score.value == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert score.low <= score.value <= score.high
    assert score.better == "lower"


def test_self_similarity_of_copies_is_one_and_of_one_clip_unknown():
    clip = clouds([2], 5)[0]
    assert self_similarity([clip] * 5).value == pytest.approx(1.0)
    with pytest.raises(InputError, match="two clips"):
        self_similarity([clip])


def test_self_similarity_interval_leaves_out_one_clip_at_a_time():
    from musictune.metrics.intervals import jackknife

    made = clouds([1] * 6, 6)
    without = torch.tensor([self_similarity(made[:i] + made[i + 1 :]).value for i in range(6)])
    score = self_similarity(made)
    assert (score.low, score.high) == pytest.approx(jackknife(without.numpy(), score.value))


def test_rewards_are_the_values_per_clip():
    embedder = ClapEmbedder.toy()
    generator = torch.Generator().manual_seed(0)
    clips = [
        Clip(torch.rand(1, 12_000, generator=generator) - 0.5, 8000, caption=text)
        for text in ("piano", "drums")
    ]
    reward = AudioAlignment(embedder, clips[:1])
    assert torch.equal(reward(clips), audio_alignment(embedder.audio(clips), reward.reference))
    followed = TextAlignment(embedder)(clips)
    assert torch.equal(
        followed, text_alignment(embedder.text(["piano", "drums"]), embedder.audio(clips))
    )
    with pytest.raises(InputError, match="no caption"):
        TextAlignment(embedder)([replace(clips[0], caption="")])
