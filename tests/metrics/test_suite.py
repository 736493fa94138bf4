"""All scores at once: names, what cannot be computed, and paired differences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.suite import PER_CLIP, ClapMetric, score_sets

NAMES = {"audio_alignment", "text_alignment", "frechet_distance", "self_similarity"}


def tone(hertz: float, caption: str = "", seconds: float = 1.5) -> Clip:
    time = torch.arange(round(seconds * 8000)) / 8000
    return Clip(0.3 * torch.sin(2 * math.pi * hertz * time)[None], 8000, caption=caption)


@pytest.fixture(scope="module")
def embedder() -> ClapEmbedder:
    return ClapEmbedder.toy()


@pytest.fixture
def made() -> list[Clip]:
    return [tone(hertz, f"tone {hertz}") for hertz in (220, 330, 440, 1200)]


def test_each_clip_is_embedded_once_and_read_as_a_stream(
    embedder: ClapEmbedder, made: list[Clip], monkeypatch: pytest.MonkeyPatch
):
    count = 0
    embed = embedder._embed

    def counted(clip: Clip) -> torch.Tensor:
        nonlocal count
        count += 1
        return embed(clip)

    monkeypatch.setattr(embedder, "_embed", counted)
    result = score_sets(embedder, iter(made), iter([tone(200), tone(300)]), iter(made))
    assert count == 4 + 2 + 4
    assert NAMES | {f"against/{name}" for name in NAMES} == set(result.scores)


def test_pairs_are_compared_with_their_partners(embedder: ClapEmbedder, made: list[Clip]):
    against = [tone(2000, "tone 330"), tone(700, "tone 220"), tone(50, "unrelated")]
    pairs = [(0, 1), (1, 0)]
    result = score_sets(embedder, made, [tone(210)], against, pairs)
    for name in PER_CLIP:
        wanted = [float(result.made[name][i] - result.against[name][j]) for i, j in pairs]
        score = result.scores[f"difference/{name}"]
        assert score.value == pytest.approx(sum(wanted) / 2, abs=1e-6)
        assert score.n == 2
        assert result.p[f"difference/{name}"] in (0.5, 1.0)


def test_a_set_against_itself_differs_by_nothing(embedder: ClapEmbedder, made: list[Clip]):
    result = score_sets(embedder, made, [tone(210)], made, [(i, i) for i in range(4)])
    assert result.scores["difference/audio_alignment"].value == 0
    assert result.p["difference/audio_alignment"] == 1.0


def test_what_cannot_be_computed_says_why(embedder: ClapEmbedder):
    silent_about = tone(220, seconds=1.0)
    result = score_sets(embedder, [silent_about], [tone(300)], [silent_about])
    assert set(result.scores) == {"audio_alignment", "against/audio_alignment"}
    assert "no prompt" in result.not_computed["text_alignment"]
    assert "two embeddings" in result.not_computed["frechet_distance"]
    assert "two clips" in result.not_computed["self_similarity"]
    assert "prompt and a seed" in result.not_computed["difference/audio_alignment"]
    assert result.made["text_alignment"].isnan().all()


def test_clips_without_a_prompt_do_not_count_for_text(embedder: ClapEmbedder, made: list[Clip]):
    some = [replace(made[0], caption=""), *made[1:]]
    result = score_sets(embedder, some, [tone(300)])
    assert result.scores["text_alignment"].n == 3
    assert result.made["text_alignment"].isnan().tolist() == [True, False, False, False]


def test_empty_sets_are_refused(embedder: ClapEmbedder, made: list[Clip]):
    with pytest.raises(InputError, match="reference holds no clips"):
        score_sets(embedder, made, [])
    with pytest.raises(InputError, match="no clips to score"):
        score_sets(embedder, [], made)


def test_is_a_metric(embedder: ClapEmbedder, made: list[Clip]):
    scores = ClapMetric(embedder)(made, made)
    assert set(scores) == NAMES
    assert scores["frechet_distance"].value == pytest.approx(0, abs=1e-6)
