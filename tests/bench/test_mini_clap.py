"""CLAP's table: planted embeddings find each other, random ones do no better than chance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.audio import Clip
from musictune.bench import clap_quality
from musictune.bench.clap_quality import measure_clap, prefers, ranks, unrelated
from musictune.bench.rows import Row
from musictune.compose.render import SOUNDFONTS
from musictune.compose.score import write_score
from musictune.metrics.embedders import ClapEmbedder

playable = pytest.mark.skipif(
    not any(path.is_file() for path in SOUNDFONTS), reason="no General MIDI SoundFont installed"
)


def unit(rows: int, seed: int, dim: int = 32) -> Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_planted_captions_find_their_clips() -> None:
    points = unit(200, 0)
    assert (ranks(points, points) == 0).all()
    near = F.normalize(points + 0.05 * unit(200, 1), dim=1)
    assert (ranks(near, points) == 0).all()


def test_random_embeddings_find_them_by_chance() -> None:
    place = ranks(unit(400, 0), unit(400, 1))
    assert (place < 10).mean() == pytest.approx(10 / 400, abs=0.025)
    assert place.mean() == pytest.approx(199.5, abs=25)


def test_a_collapsed_embedder_finds_nothing() -> None:
    same = unit(1, 0).expand(50, -1)
    assert (ranks(same, same) == 49).all()
    assert (prefers(same, same, same) == 0.5).all()


def test_a_clip_prefers_the_nearer_text() -> None:
    clips, other = unit(6, 0), unit(6, 1)
    assert (prefers(clips, clips, other) == 1).all()
    assert (prefers(clips, other, clips) == 0).all()


def test_clips_that_share_an_instrument_or_a_speed_are_related() -> None:
    flute = write_score(0, program=73, texture="solo", style="jazz swing", tempo=70).truth
    fast = write_score(1, program=73, texture="solo", style="waltz", tempo=140).truth
    piano = write_score(2, program=0, texture="solo", style="waltz", tempo=140).truth
    slow = write_score(3, program=0, texture="solo", style="waltz", tempo=70).truth
    assert unrelated(flute, piano)
    assert not unrelated(flute, fast)
    assert not unrelated(flute, slow)
    assert not unrelated(piano, slow)


class Order:
    """Hears which half of a clip is louder, and reads whether the loud one is named first."""

    sample_rate = 16_000

    def __init__(self, sense: bool = True) -> None:
        self.sense = sense

    def audio(self, clips: Iterable[Clip]) -> list[Tensor]:
        halves = [clip.wave[0].square().reshape(2, -1).mean(1) for clip in clips]
        return [F.normalize(half, dim=0)[None] for half in halves]

    def text(self, texts: Sequence[str]) -> Tensor:
        first = [text.startswith("loud") or not self.sense for text in texts]
        return torch.tensor([[1.0, 0.0] if loud else [0.0, 1.0] for loud in first])


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tinysoundfont", reason="the extra 'compose' is not installed")
    monkeypatch.setattr(clap_quality, "SECONDS", 2.0)


@pytest.mark.parametrize(("sense", "share"), [(True, 1.0), (False, 0.5)])
def test_order_is_heard_or_left_to_chance(
    sense: bool, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    loud, soft = (Clip(level * torch.ones(1, 800), 16_000) for level in (0.9, 0.1))
    made = [(("loud", "soft"), (loud, soft)), (("soft", "loud"), (soft, loud))]
    monkeypatch.setattr(clap_quality, "_halves", lambda *_: iter(made))
    row = clap_quality._order_row(Order(sense), SimpleNamespace(sample_rate=16_000), 2, 0)  # type: ignore[arg-type]
    assert row.ours == share
    assert row.n == 2


@playable
def test_the_table_has_its_rows_and_repeats_itself(short: None) -> None:
    embedder = ClapEmbedder.toy()
    rows = measure_clap(embedder, count=10)
    cases = [row.case for row in rows]
    assert len(set(cases)) == len(cases)
    found = {row.case: row for row in rows}
    assert found["text to audio R@10"].ours == 1  # ten clips
    assert found["text to audio R@1"].target is None  # so few clips are another question
    assert found["one fact changed, all three"].n == 6
    assert found["one fact changed, tempo word"].target == 0.85
    assert {"cosine of unrelated captions", "caption changed, instrument"} <= set(cases)
    assert all(0 <= row.ours <= 1 for row in rows if row.unit.startswith("of "))
    assert [row.as_json for row in measure_clap(embedder, count=10)] == [
        row.as_json for row in rows
    ]


@playable
def test_captions_are_distinct_and_seeds_held_out(
    short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def spy(seed: int, **choices: object) -> object:
        seeds.append(seed)
        return write_score(seed, **choices)  # type: ignore[arg-type]

    monkeypatch.setattr(clap_quality, "write_score", spy)
    read: list[Row] = measure_clap(ClapEmbedder.toy(), count=5)
    assert read
    assert min(seeds) >= 70_000_000
    assert max(seeds) < 70_100_000
