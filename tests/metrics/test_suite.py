"""All scores at once: names, what cannot be computed, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from musictune.errors import InputError
from musictune.metrics.alignment import ABOUT_ALIGNMENT
from musictune.metrics.base import About, Score
from musictune.metrics.comparison import compare, forgetting
from musictune.metrics.embedders import ClapEmbedder, Embedder
from musictune.metrics.features import Features
from musictune.metrics.folder import ClipFile, ClipSet
from musictune.metrics.gaussian import Gaussian
from musictune.metrics.listening import Heard
from musictune.metrics.registry import clip_metrics, set_metrics
from musictune.metrics.statistics_files import Statistics
from musictune.metrics.suite import (
    EMBEDDER,
    Evaluation,
    HeardSet,
    clip_values,
    listeners,
    score_sets,
)

NAMES = set(ABOUT_ALIGNMENT)
NAMES |= {name for metric in set_metrics() for name in metric.scores}
NAMES |= {name for metric in clip_metrics().values() for name in metric.values}


class Deaf(Embedder):
    """An embedder that reads no text."""

    name = "deaf"


def heard(
    count: int, seed: int, texts: Sequence[str] | None = None, *, triggers: bool = True
) -> HeardSet:
    """``count`` clips of two random points each, with random values of every metric of clips."""
    rng = np.random.default_rng(seed)
    texts = [f"tone {i}" for i in range(count)] if texts is None else texts
    files = tuple(
        ClipFile(Path(f"{i}.wav"), f"{i}.wav", f"<x> {text}" if triggers else text, text, seed=i)
        for i, text in enumerate(texts)
    )
    points = rng.normal(size=(2 * count, 8)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    features = {EMBEDDER: Features(points, np.full(count, 2))}
    for name, metric in clip_metrics().items():
        rows = rng.random((count, len(metric.values)))
        features[name] = Features(rows, np.ones(count, np.int64))
    return HeardSet(ClipSet(f"set {seed}", files), Heard(features, ("",) * count))


@pytest.fixture(scope="module")
def embedder() -> ClapEmbedder:
    return ClapEmbedder.toy()


def test_every_metric_of_the_folder_is_scored_or_says_why(embedder: ClapEmbedder):
    assert {EMBEDDER, *clip_metrics()} == set(listeners(embedder))
    result = score_sets(embedder, heard(6, 0), heard(5, 1), heard(6, 2))
    for prefix in ("", "against/"):
        for name in NAMES:
            one = prefix + name
            assert (one in result.scores) != (one in result.not_computed), one
    assert all(name in result.about for name in NAMES)
    for name, score in result.scores.items():
        assert math.isfinite(score.value), name


def test_pairs_are_compared_with_their_partners(embedder: ClapEmbedder):
    pairs = [(0, 1), (1, 0)]
    result = score_sets(embedder, heard(4, 0), heard(3, 1), heard(3, 2), pairs)
    for name in ("audio_alignment", "text_alignment", *clip_values_names()):
        wanted = [float(result.made[name][i] - result.against[name][j]) for i, j in pairs]
        score = result.scores[f"difference/{name}"]
        assert score.value == pytest.approx(sum(wanted) / 2, abs=1e-6)
        assert score.n == 2
        assert result.p[f"difference/{name}"] in (0.5, 1.0)


def clip_values_names() -> list[str]:
    return [name for metric in clip_metrics().values() for name in metric.values]


def test_a_set_against_itself_differs_by_nothing(embedder: ClapEmbedder):
    one = heard(4, 0, triggers=False)
    result = score_sets(embedder, one, heard(3, 1), one, [(i, i) for i in range(4)])
    assert result.scores["difference/audio_alignment"].value == 0
    assert result.p["difference/audio_alignment"] == 1.0


def test_what_cannot_be_computed_says_why(embedder: ClapEmbedder):
    result = score_sets(embedder, heard(1, 0, [""]), heard(1, 1), heard(1, 2, [""]))
    assert "audio_alignment" in result.scores
    assert "no prompt" in result.not_computed["text_alignment"]
    assert "clips" in result.not_computed["self_similarity"]
    assert "clip" in result.not_computed["kernel_distance"]
    assert "prompt and a seed" in result.not_computed["difference/audio_alignment"]
    assert np.isnan(result.made["text_alignment"]).all()


def test_clips_without_a_prompt_do_not_count_for_text(embedder: ClapEmbedder):
    result = score_sets(embedder, heard(4, 0, ["", "a", "b", "c"]), heard(3, 1))
    assert result.scores["text_alignment"].n == 3
    assert np.isnan(result.made["text_alignment"]).tolist() == [True, False, False, False]


def test_an_embedder_without_text_says_so(embedder: ClapEmbedder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Deaf, "__abstractmethods__", frozenset())
    result = score_sets(Deaf(), heard(4, 0), heard(3, 1))
    assert "reads no text" in result.not_computed["text_alignment"]
    assert "audio_alignment" in result.scores


def test_against_statistics_only_what_needs_no_clips_is_scored(embedder: ClapEmbedder):
    made, reference = heard(30, 0), heard(40, 1)
    gaussian = Gaussian.of_points(reference.points.points)
    result = score_sets(embedder, made, Statistics(gaussian, "toy"))
    whole = score_sets(embedder, made, reference)
    for name in ("frechet_distance", "self_similarity", "text_alignment"):
        assert result.scores[name].value == pytest.approx(whole.scores[name].value, rel=1e-9)
    for name in ("audio_alignment", "kernel_distance", "precision"):
        assert "statistics" in result.not_computed[name]
    small = Statistics(Gaussian(np.zeros(3), np.eye(3)), "small")
    assert "3 dimensions" in score_sets(embedder, made, small).not_computed["frechet_distance"]


def test_what_is_not_finite_or_of_another_embedder_is_refused(embedder: ClapEmbedder):
    made, reference = heard(4, 0), heard(3, 1)
    points = np.array(made.points.points)
    points[3, 2] = np.nan
    broken = dict(made.heard.features) | {EMBEDDER: Features(points, made.points.lengths)}
    with pytest.raises(InputError, match="clip 1 are not finite"):
        score_sets(embedder, HeardSet(made.clips, Heard(broken, ("",) * 4)), reference)


def test_long_recordings_count_by_the_mean_of_what_is_known():
    metric = next(iter(clip_metrics().values()))
    width = len(metric.values)
    blocks = np.stack([np.full(width, 1.0), np.full(width, 3.0), np.full(width, np.nan)])
    rows = np.concatenate([blocks, np.full((1, width), np.nan)])
    values = clip_values(metric, Features(rows, np.array([3, 1])))
    name = next(iter(metric.values))
    assert values[name][0] == 2.0
    assert math.isnan(values[name][1])


def test_differences_leave_out_what_is_not_known():
    about = About("a", "b", "higher")
    made, against = np.array([1.0, np.nan, 5.0]), np.array([0.5, 1.0, 3.0])
    score, p = compare(made, against, [(0, 0), (1, 1), (2, 2)], about, ["a", "b", "c"])
    assert isinstance(score, Score)
    assert (score.value, score.n, p) == (1.25, 2, 0.5)
    nothing, p = compare(np.array([np.nan]), np.array([1.0]), [(0, 0)], about, ["a"])
    assert "no pair" in nothing.reason  # type: ignore[union-attr]
    assert math.isnan(p)


def test_forgetting_counts_lost_text_and_moved_sound():
    rng = np.random.default_rng(0)
    base = Features.of([rng.normal(size=(1, 4)) for _ in range(3)])
    turned = Features.of([-clip for clip in base])
    found, p = forgetting(
        np.full(3, 0.1), np.full(3, 0.4), turned, base, [(0, 0), (1, 1), (2, 2)], list("abc")
    )
    lost, shift = found["forgetting/text_alignment"], found["forgetting/shift"]
    assert isinstance(lost, Score) and isinstance(shift, Score)
    assert lost.value == pytest.approx(0.3)
    assert lost.better == "lower"
    assert shift.value == pytest.approx(2.0)
    assert p == {"forgetting/text_alignment": 0.25}


def test_seeds_of_one_prompt_count_as_one():
    about = About("a", "b", "higher")
    rng = np.random.default_rng(0)
    of_prompt = np.repeat(rng.normal(size=6), 4)
    made = of_prompt + 0.01 * rng.normal(size=24)
    pairs, prompts = [(i, i) for i in range(24)], [f"p{i // 4}" for i in range(24)]
    score, p = compare(made, np.zeros(24), pairs, about, prompts)
    means = made.reshape(6, 4).mean(1)
    once, wanted = compare(means, np.zeros(6), pairs[:6], about, prompts[::4])
    assert isinstance(score, Score) and isinstance(once, Score)
    assert (score.low, score.high, p) == pytest.approx((once.low, once.high, wanted))
    assert score.value == pytest.approx(made.mean())
    assert (score.n, score.note) == (24, "over 6 prompts, each counting once")
    alone, _ = compare(made, np.zeros(24), pairs, about, ["p"] * 24)
    assert "nothing of other prompts" in alone.note  # type: ignore[union-attr]


def test_an_interval_that_is_missing_has_a_reason():
    result = Evaluation()
    result.add({"alone": Score(1.0, math.nan, math.nan, 1, "higher")})
    result.add({"known": Score(1.0, math.nan, math.nan, 5, "higher", "too few")}, "against/")
    result.add({"theirs": Score(1.0, math.nan, math.nan, 5, "higher")})
    assert result.scores["alone"].note == "one clip has no interval"
    assert result.scores["against/known"].note == "too few"
    assert result.scores["theirs"].note.startswith("no interval")
