"""``musictune reward`` from votes to a folder that scores new clips."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from musictune.__main__ import main
from musictune.audio import read
from musictune.data.preferences import Pair, Rating, Vote, write_ratings, write_votes
from musictune.metrics.embedders import ClapEmbedder
from musictune.models.musicgen import MusicGen
from musictune.training.reward import LearnedReward, reward_needs

PROMPTS = 16


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy CLAP, a toy base, and two tones of each prompt: one of them clearly higher."""
    root = tmp_path_factory.mktemp("reward")
    ClapEmbedder.toy().save(root / "clap")
    MusicGen.toy().save(root / "base")
    chance = np.random.default_rng(0)
    time = np.arange(16_000) / 16_000
    for index in range(PROMPTS):
        for side, low, high in (("low", 150, 400), ("high", 1500, 3000)):
            tone = 0.4 * np.sin(2 * np.pi * chance.uniform(low, high) * time)
            sf.write(root / f"{index:02d}-{side}.wav", tone, 16_000)
    return root


def votes(parts: Path, count: int = PROMPTS, choice: str = "high") -> list[Vote]:
    found = []
    for index in range(count):
        sides = ("low", "high") if index % 2 else ("high", "low")
        a, b = (parts / f"{index:02d}-{side}.wav" for side in sides)
        pair = Pair(str(index), f"prompt {index}", a, b, *sides)
        answer = choice if choice in ("tie", "skip") else "ab"[sides.index(choice)]
        found.append(Vote(pair, answer, "me", "a"))  # type: ignore[arg-type]
    return found


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["reward", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_from_votes_to_scores(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_votes(votes(parts), tmp_path / "votes.jsonl")
    out = tmp_path / "out"
    clap, base = parts / "clap", parts / "base"
    given = (tmp_path / "votes.jsonl", "--out", out, "--features", "codec", "--held-out", 0.3)
    assert run(*given, "--embedder", clap, "--base", base, "--members", 3) == 0
    printed = capsys.readouterr()
    assert f"{out}: learned from 11 of 16 comparisons of 16 prompts" in printed.out
    assert "held-out accuracy" in printed.out and "on 5 comparisons" in printed.out
    assert "all 16 decided votes" in printed.err  # one system always wins
    names = {path.name for path in out.iterdir()}
    wanted = {"README.md", "curve.png", "metrics.csv", "model.safetensors", "reward.json"}
    assert names == wanted
    assert reward_needs(out) == (None, str(base))
    loaded = LearnedReward.load(out, model=MusicGen.load(base))
    high, low = (
        loaded([read(parts / f"{i:02d}-{side}.wav") for i in range(PROMPTS)])
        for side in ("high", "low")
    )
    assert float((high > low).float().mean()) >= 0.9
    figures = json.loads((out / "reward.json").read_text())["figures"]
    assert figures["pairs"] == 16 and figures["held_out"] == 5
    assert f"{figures['held_out_accuracy']['value']:.1%}" in (out / "README.md").read_text()
    with (out / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    best = min(rows, key=lambda row: float(row["validation_loss"]))
    assert float(best["weight_decay"]) == figures["weight_decay"]

    assert run(*given, "--embedder", clap, "--base", base) == 2
    assert "already exists" in capsys.readouterr().err


def test_ratings_make_comparisons(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ratings = [
        Rating(parts / f"{i:02d}-{side}.wav", f"p{i}", side, "me", value)
        for i in range(PROMPTS)
        for side, value in (("low", 20.0), ("high", 80.0))
    ]
    write_ratings(ratings, tmp_path / "ratings.csv")
    out = tmp_path / "out"
    more = ("--embedder", parts / "clap", "--base", parts / "base")
    code = run(tmp_path / "ratings.csv", "--out", out, *more)
    assert code == 0, capsys.readouterr().err
    keys = json.loads((out / "reward.json").read_text())["keys"].keys()
    assert keys == {"embedder", "codec", "language"}, "by default it hears with both"
    assert reward_needs(out) == (str(parts / "clap"), str(parts / "base"))


@pytest.mark.parametrize(
    ("count", "choice", "words"),
    [
        (PROMPTS, "tie", "leave no comparison"),
        (PROMPTS, "skip", "leave no comparison"),
        (5, "high", "has 5 comparisons, without ties and skips; 8 are the least"),
        (0, "high", "leave no comparison"),
    ],
)
def test_too_little_to_learn_from(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    count: int, choice: str, words: str,
) -> None:  # fmt: skip
    write_votes(votes(parts, count, choice), tmp_path / "votes.jsonl")
    assert run(tmp_path / "votes.jsonl", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert words in error and error.count("musictune: error:") == 1
    assert not (tmp_path / "out").exists()


def test_bad_options(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "votes.jsonl"
    write_votes(votes(parts), file)
    for option, words in (
        (("--features", "mel"), "'mel' is unknown; choose clap, states"),
        (("--members", 0), "members 0 cannot be used; choose 1 to 100"),
        (("--held-out", 1), "held_out 1.0 cannot be used"),
        (("--embedder", tmp_path / "none"), "embedder"),
        (("--features", "codec", "--base", tmp_path / "none"), "base"),
    ):
        assert run(file, "--out", tmp_path / "out", *option) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_audio_that_is_gone(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = votes(parts)
    pair = Pair("lost", "a prompt", tmp_path / "gone.wav", parts / "00-low.wav")
    write_votes([*lost, Vote(pair, "a", "me", "a")], tmp_path / "votes.jsonl")
    assert run(tmp_path / "votes.jsonl", "--out", tmp_path / "out") == 2
    assert "1 of 33 sound files of the votes are gone" in capsys.readouterr().err
