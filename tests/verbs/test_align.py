"""``musictune align`` as people call it, from votes and from rewards, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from musictune.__main__ import main
from musictune.data.preferences import Pair, Vote, write_votes
from musictune.methods import load_adapter
from musictune.metrics.embedders import ClapEmbedder
from musictune.models.musicgen import MusicGen
from musictune.training.callbacks import read_metrics

pytestmark = pytest.mark.usefixtures("unpainted")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy base and CLAP, prompts, and votes for the higher of two tones."""
    root = tmp_path_factory.mktemp("align")
    MusicGen.toy().save(root / "base")
    ClapEmbedder.toy().save(root / "clap")
    (root / "prompts.txt").write_text("slow piano\nfast drums\nloud organ\ncalm harp\n")
    time = np.arange(12_000) / 16_000
    votes = []
    for index in range(8):
        for side, pitch in (("low", 200 + 9 * index), ("high", 2000 + 90 * index)):
            sf.write(root / f"{index}-{side}.wav", 0.4 * np.sin(6.28 * pitch * time), 16_000)
        pair = Pair(
            str(index), ("slow piano", "fast drums")[index % 2],
            root / f"{index}-low.wav", root / f"{index}-high.wav",
        )  # fmt: skip
        votes.append(Vote(pair, "b", "me", "ab"[index % 2]))  # type: ignore[arg-type]
    write_votes(votes, root / "votes.jsonl")
    return root


def align(parts: Path, *more: object) -> int:
    with pytest.raises(SystemExit) as left:
        main(
            [
                "align", "--base", str(parts / "base"), "--embedder", str(parts / "clap"),
                "--device", "cpu", "--steps", "3", "--lr", "0.02",
                "--seconds", "0.4", "--set", "training.preview_seconds=0.3",
                "--set", "training.score_seeds=2", "--set", "training.warmup=0",
                *map(str, more),
            ]
        )  # fmt: skip
    return int(left.value.code or 0)


def test_votes_become_an_adapter(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    lora = ["--method", "lora"]
    assert align(parts, "--votes", parts / "votes.jsonl", "--out", out, *lora) == 0
    said = capsys.readouterr().out
    assert "text alignment" in said
    assert f"--adapter {out}" in said
    rows = read_metrics(out / "metrics.csv")
    assert float(rows[-1]["margin"]) > 0
    load_adapter(MusicGen.load(parts / "base"), out / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_reward_becomes_an_adapter_and_says_what_it_cost(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["--objective", "rloo", "--reward", "text_alignment", "--reward", "quality=0.5"]
    arguments += ["--prompts", parts / "prompts.txt", "--set", "align.prompts_per_step=2"]
    assert align(parts, *arguments, "--method", "lora", "--out", out) == 0
    said = capsys.readouterr().out
    for name in ("held out reward", "held out kl", "diversity", "text alignment"):
        assert name in said
    assert (out / "scales.json").is_file()
    again = tmp_path / "again"
    more = ["--adapter", out, "--then", "quality", "--out", again]
    assert align(parts, *arguments, *more) == 0
    assert {row["stage"] for row in read_metrics(again / "metrics.csv")[1:]} == {"0.0", "1.0"}


def test_the_recipe_is_shown_and_nothing_is_done(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align(parts, "--objective", "kto", "--print-config", "--out", tmp_path / "run") == 0
    assert "KTO" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


BAD: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "nothing to align to"),
    "no prompts": (["--reward", "quality"], "needs prompts"),
    "unknown objective": (["--objective", "ppo"], "ppo"),
    "unknown reward": (["--reward", "beauty", "--prompts", "{root}/prompts.txt"], "beauty"),
    "no votes there": (["--votes", "{root}/none.db"], "none.db"),
    "votes on policy": (["--votes", "{root}/votes.jsonl", "--objective", "rloo"], "from rewards"),
    "second stage of pairs": (
        ["--reward", "quality", "--then", "key", "--prompts", "{root}/prompts.txt"], "second stage"
    ),
    "bad number": (["--votes", "{root}/votes.jsonl", "--set", "objective.beta=-1"], "beta"),
    "no such key": (["--votes", "{root}/votes.jsonl", "--set", "align.colour=1"], "colour"),
    "no such adapter": (["--votes", "{root}/votes.jsonl", "--adapter", "{root}/no"], "no"),
    "nothing to resume": (["--votes", "{root}/votes.jsonl", "--resume"], "nothing to resume"),
    "a method beside an adapter": (
        ["--votes", "{root}/votes.jsonl", "--method", "lora", "--adapter", "{root}"], "has its own"
    ),
    "no such base": (["--votes", "{root}/votes.jsonl", "--base", "{root}/no"], "no"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    name: str, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, told = BAD[name]
    filled = [argument.format(root=parts) for argument in arguments]
    assert align(parts, *filled, "--out", tmp_path / "run") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert told in lines[0]
    assert not list(tmp_path.iterdir())


def test_votes_that_say_nothing_and_audio_that_is_gone(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = Pair("1", "slow piano", parts / "0-low.wav", parts / "0-high.wav")
    gone = Pair("2", "slow piano", tmp_path / "gone.wav", parts / "0-high.wav")
    for name, votes, told in (
        ("ties", [Vote(pair, "tie", "me", "a")], "tie"),
        ("gone", [Vote(gone, "b", "me", "a")] * 2, "gone.wav"),
    ):
        write_votes(votes, tmp_path / f"{name}.jsonl")
        assert align(parts, "--votes", tmp_path / f"{name}.jsonl", "--out", tmp_path / "run") == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
