"""Retrieval and order against what can be counted by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from musictune.metrics.base import NotComputed, Score
from musictune.metrics.retrieval import retrieval_scores, swap_score


def value(scores: dict[str, Score | NotComputed], name: str) -> float:
    score = scores[name]
    assert isinstance(score, Score)
    return score.value


def names(count: int) -> list[str]:
    return [f"caption {i}" for i in range(count)]


def test_what_is_found_at_once_is_perfect() -> None:
    points = torch.eye(12)
    scores = retrieval_scores(points, points, names(12))
    for way in ("text_to_audio", "audio_to_text"):
        assert value(scores, f"{way}_recall_at_1") == 1
        assert value(scores, f"{way}_median_rank") == 1
        assert value(scores, f"{way}_map_at_10") == pytest.approx(1)


def test_ranks_are_those_counted_by_hand() -> None:
    # Each text is nearest to the next clip, second nearest to its own.
    text = torch.eye(4)
    audio = 0.5 * torch.eye(4) + 0.8 * torch.eye(4).roll(1, 0)
    scores = retrieval_scores(audio, text, names(4))
    assert value(scores, "text_to_audio_recall_at_1") == 0
    assert value(scores, "text_to_audio_median_rank") == 2
    assert value(scores, "text_to_audio_map_at_10") == pytest.approx(0.5)
    assert isinstance(scores["text_to_audio_recall_at_5"], NotComputed)


def test_clips_that_share_a_caption_are_equally_right() -> None:
    captions = ["hum", "hum", "tone"]
    text = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    audio = torch.tensor([[0.9, 0], [0.2, 0], [0.5, 0.6]])
    scores = retrieval_scores(audio, text, captions)
    # "hum" ranks clips 0, 2, 1, of which 0 and 1 are right; "tone" finds clip 2 first.
    assert value(scores, "text_to_audio_recall_at_1") == 1
    assert value(scores, "text_to_audio_map_at_10") == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    first = scores["text_to_audio_recall_at_1"]
    assert isinstance(first, Score)
    assert first.n == 2
    assert value(scores, "audio_to_text_recall_at_1") == 1


def test_what_hears_nothing_finds_nothing() -> None:
    scores = retrieval_scores(torch.ones(20, 3), torch.ones(20, 3), names(20))
    assert value(scores, "text_to_audio_recall_at_10") == 0
    assert value(scores, "text_to_audio_median_rank") == 20
    assert value(scores, "audio_to_text_map_at_10") == 0


def test_one_caption_is_nothing_to_look_for() -> None:
    scores = retrieval_scores(torch.eye(3), torch.eye(3), ["hum"] * 3)
    assert len(scores) == 10
    assert all(isinstance(score, NotComputed) for score in scores.values())


def points(count: int) -> st.SearchStrategy[Tensor]:
    number = st.floats(-1, 1, allow_nan=False, width=32)
    return st.lists(st.lists(number, min_size=3, max_size=3), min_size=count, max_size=count).map(
        torch.tensor
    )


@settings(max_examples=25, deadline=None)
@given(points(7), points(7))
def test_scores_are_shares_and_recall_rises_with_depth(audio: Tensor, text: Tensor) -> None:
    scores = retrieval_scores(audio, text, names(7))
    for way in ("text_to_audio", "audio_to_text"):
        one, five = (value(scores, f"{way}_recall_at_{depth}") for depth in (1, 5))
        found = value(scores, f"{way}_map_at_10")
        assert 0 <= one <= five <= 1
        assert one - 1e-9 <= found <= 1 + 1e-9
        assert 1 <= value(scores, f"{way}_median_rank") <= 7


@settings(max_examples=25, deadline=None)
@given(points(6), points(6), st.permutations(range(6)))
def test_the_order_of_the_clips_does_not_matter(
    audio: Tensor, text: Tensor, order: list[int]
) -> None:
    captions = names(6)
    plain = retrieval_scores(audio, text, captions)
    other = retrieval_scores(audio[order], text[order], [captions[i] for i in order])
    for name, score in plain.items():
        if isinstance(score, Score):
            assert score.value == pytest.approx(value(other, name))


def test_order_is_a_share_with_ties_at_one_half() -> None:
    right, wrong = torch.tensor([0.5, 0.2, 0.3, 0.3]), torch.tensor([0.1, 0.4, 0.3, 0.3])
    score = swap_score(right, wrong, ["a", "a", "b", "b"])
    assert score.value == 0.5
    assert score.n == 2
    assert score.low <= 0.5 <= score.high
    assert swap_score(right + 1, wrong, ["a", "b", "c", "d"]).value == 1
