"""The whole way in one command on a toy base."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch

from musictune import audio
from musictune.__main__ import main
from musictune.models.musicgen import MusicGen


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base, a recording and a file of prompts."""
    MusicGen.toy().save(tmp_path / "base")
    time = torch.arange(12 * 16000) / 16000
    wave = 0.3 * torch.sin(2 * torch.pi * (220 + 40 * time.floor() % 300) * time)
    audio.write(audio.Clip(wave[None], 16000), tmp_path / "mine.flac")
    (tmp_path / "prompts.txt").write_text("a slow {concept} melody\n")
    return tmp_path / "base", tmp_path / "mine.flac", tmp_path / "prompts.txt"


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["demo", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def run_apart(*arguments: str | Path) -> int:
    """In a process of its own."""
    command = [sys.executable, "-m", "musictune", "demo", *map(str, arguments)]
    return subprocess.run(command, check=False).returncode


@pytest.mark.parametrize("run", [run, pytest.param(run_apart, marks=pytest.mark.slow)])
def test_demo_leaves_all_that_the_readme_promises(
    inputs: tuple[Path, Path, Path], tmp_path: Path, run: Callable[..., int]
) -> None:
    base, clips, prompts = inputs
    out = tmp_path / "out"
    code = run(
        clips, "--base", base, "--prompts", prompts, "--concept", "zing", "--class-word", "piano",
        "--steps", "3", "--seconds", "1", "--out", out,
    )  # fmt: skip
    assert code == 0
    assert (out / "report.html").stat().st_size > 10_000
    assert json.loads((out / "metrics.json").read_text())["schema"] == 1
    assert (out / "adapter" / "adapter.json").is_file()
    lines = {}
    for name in ("base", "tuned"):
        (line,) = (out / name / "manifest.jsonl").read_text().splitlines()
        lines[name] = json.loads(line)
        assert soundfile.info(out / name / lines[name]["file"]).frames == 16000
    # The base is asked for the class word, the tuned model for the new one, both on one seed.
    assert lines["base"]["prompt"] == "a slow piano melody" == lines["tuned"]["text"]
    assert lines["tuned"]["prompt"] == "a slow <zing> melody"
    assert lines["base"]["seed"] == lines["tuned"]["seed"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_missing_recording_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "none.wav", "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "none.wav" in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
