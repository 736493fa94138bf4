"""What the language model is judged by: prompts that are true, ears that hear, rows that add up."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from musictune.audio import Clip
from musictune.bench.hearing import key_of, tempo_fits, tempo_of
from musictune.bench.language_quality import PEER, measure_language
from musictune.bench.prompts import Prompt, write_prompts
from musictune.bench.rows import Row, judged
from musictune.compose.instruments import FAMILIES
from musictune.compose.render import SOUNDFONTS, Renderer
from musictune.compose.score import write_score
from musictune.errors import InputError
from musictune.metrics.embedders import ClapEmbedder
from musictune.models.judge import Judge, JudgeConfig
from musictune.models.musicgen import MusicGen

RATE = 32_000
playable = pytest.mark.skipif(
    not any(path.is_file() for path in SOUNDFONTS), reason="no General MIDI SoundFont installed"
)


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return write_prompts(200)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    pytest.importorskip("tinysoundfont", reason="the extra 'compose' is not installed")
    return Renderer(sample_rate=RATE)


def clicks(bpm: float, seconds: float = 10.0) -> Clip:
    """A decaying burst of noise on every beat."""
    rng = np.random.default_rng(0)
    wave = np.zeros(round(seconds * RATE), np.float32)
    burst = 0.5 * rng.uniform(-1, 1, 1600) * np.exp(-np.arange(1600) / 300)
    for beat in np.arange(0.1, seconds - 0.1, 60 / bpm):
        wave[round(beat * RATE) :][:1600] += burst
    return Clip(torch.from_numpy(wave)[None], RATE)


def chords(*pitches: tuple[int, ...]) -> Clip:
    """A second of each chord, four partials to a note."""
    time = np.arange(RATE) / RATE
    parts = []
    for chord in pitches:
        hertz = [440 * 2 ** ((pitch - 69) / 12) for pitch in chord]
        parts.append(sum(np.sin(2 * np.pi * h * k * time) / k for h in hertz for k in (1, 2, 3, 4)))
    wave = np.concatenate(parts) * np.tile(np.exp(-2 * time), len(pitches)) * 0.05
    return Clip(torch.from_numpy(wave.astype(np.float32))[None], RATE)


@pytest.mark.parametrize("bpm", [63, 80, 97.5, 120, 143, 177])
def test_the_tempo_of_clicks(bpm: float) -> None:
    assert tempo_fits(tempo_of(clicks(bpm)), bpm)


def test_what_has_no_tempo_is_not_given_one() -> None:
    assert math.isnan(tempo_of(Clip(torch.zeros(1, 5 * RATE), RATE)))
    assert math.isnan(tempo_of(clicks(120, seconds=1.5)))
    assert not tempo_fits(math.nan, 100)


def test_a_tempo_fits_within_four_percent_and_octaves() -> None:
    assert tempo_fits(103.9, 100) and not tempo_fits(104.1, 100)
    assert tempo_fits(50, 100) and tempo_fits(200, 100) and not tempo_fits(150, 100)
    assert not tempo_fits(300, 100) and tempo_fits(300, 100, (1, 3))


def test_the_key_of_cadences() -> None:
    c, f, g = (48, 60, 64, 67), (53, 60, 65, 69), (55, 59, 62, 67)
    assert key_of(chords(c, f, g, c)) == "C major"
    assert key_of(chords(*[tuple(p + 6 for p in chord) for chord in (c, f, g, c)])) == "F# major"
    a, d, e = (45, 60, 64, 69), (50, 62, 65, 69), (52, 64, 68, 71)
    assert key_of(chords(a, d, e, a)) == "A minor"


@playable
def test_tempi_of_renders_are_right_nine_times_in_ten(renderer: Renderer) -> None:
    right = []
    for seed in range(72_000_000, 72_000_020):
        score = write_score(seed, seconds=10.0)
        heard = tempo_of(renderer.render(score, effects_seed=seed))
        right.append(tempo_fits(heard, score.truth.tempo))
    assert np.mean(right) >= 0.8


@playable
def test_the_bundled_judge_knows_who_plays(renderer: Renderer) -> None:
    judge = Judge.load()
    asked = {"piano": 0, "flute": 73, "choir": 52}
    for family, program in asked.items():
        scores = [write_score(72_100_000 + i, program=program, texture="solo") for i in range(4)]
        heard = judge.hear([renderer.render(score) for score in scores])
        assert sum(h.lead == family for h in heard) >= 3, family
        assert not any(h.drums for h in heard)
    band = write_score(72_100_009, seconds=10.0, program=0, texture="band", style="rock")
    assert judge.hear([renderer.render(band)])[0].drums == band.truth.has_drums


def test_prompts_are_even_over_families_and_textures(prompts: list[Prompt]) -> None:
    kinds = Counter((p.truth.lead_family, p.truth.texture) for p in prompts)
    wanted = {(family, texture) for family in FAMILIES for texture in ("solo", "duo", "band")}
    assert kinds == dict.fromkeys(wanted | {("drums", "solo")}, 5)
    first = Counter(p.truth.lead_family for p in prompts[:26])
    assert set(first.values()) == {2}
    assert sum(p.says_tempo for p in prompts) == 160
    assert 0.75 < np.mean([p.says_key for p in prompts if p.truth.key]) < 0.85
    named = Counter(p.truth.lead_family for p in prompts if p.says_tempo)
    assert min(named.values()) >= 4


def test_prompts_say_what_is_true_and_only_that(prompts: list[Prompt]) -> None:
    for prompt in prompts:
        text, truth = prompt.text, prompt.truth
        assert truth.lead in text
        assert (f"{round(truth.tempo)} bpm" in text) == prompt.says_tempo == (" bpm" in text)
        assert prompt.says_key == any(mode in text for mode in (" major", " minor"))
        assert not prompt.says_key or f" in {truth.key}" in text
        assert ("no drums" in text) == (prompt.says_drums and not truth.has_drums)
        if prompt.says_drums and truth.has_drums:
            assert "drums" in text
        assert all(name in text for name in truth.instruments)
        assert write_score(
            prompt.seed,
            seconds=10.0,
            texture=truth.texture,
            program=None if truth.lead == "drums" else prompt.score.parts[0].program,
        ).truth == truth  # fmt: skip


def test_prompts_are_the_same_each_time_and_others_for_other_seeds() -> None:
    assert write_prompts(12) == write_prompts(12)
    assert [p.text for p in write_prompts(12)] != [p.text for p in write_prompts(12, seed=1)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    MusicGen.toy().save(folder)
    return str(folder)


def measured(base: str, count: int = 4) -> list[Row]:
    torch.manual_seed(0)
    config = JudgeConfig(families=(*sorted(FAMILIES), "drums"), channels=(4, 4, 4, 4), width=8)
    judge = Judge(config).eval()
    return measure_language(
        base, count=count, seconds=1.0, judge=judge, embedder=ClapEmbedder.toy(), seed=72_200_000
    )


@playable
def test_rows_of_a_toy_are_whole_and_always_the_same(base: str) -> None:
    pytest.importorskip("tinysoundfont", reason="the extra 'compose' is not installed")
    rows = measured(base)
    assert rows == measured(base)
    cases = {row.case: row for row in rows}
    assert len(cases) == len(rows) >= 9
    family = cases["lead family is the one heard, all prompts"]
    assert family.n == 4 and family.peer_name == PEER and "chance" in family.note
    assert all(row.part == "language" for row in rows)
    for row in rows[:-1]:
        assert 0 <= row.ours <= 1 and row.peer is not None and 0 <= row.peer <= 1
        assert row.low is not None and row.low <= row.ours <= row.high  # type: ignore[operator]
    # A second of a toy has no tempo, and a judge that knows nothing is no better than its luck.
    assert cases["tempo within 4 %, octaves allowed"].ours == 0
    targets = {row.case: row.target for row in rows if row.target is not None}
    assert sorted(targets.values()) == ["<= 3", ">= 0.5", ">= 0.6", ">= 0.7", ">= 0.9"]
    assert judged(rows[-1]).met == (rows[-1].ours <= 3)
    assert rows[-1].ours > 0


def test_what_cannot_be_measured_is_refused(base: str) -> None:
    with pytest.raises(InputError, match="count 1"):
        measure_language(base, count=1)
