"""`musictune prepare` as people type it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musictune.__main__ import main


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["prepare", *map(str, arguments)])
    return int(caught.value.code or 0)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    time = np.arange(6 * 16_000) / 16_000
    beats = np.exp(-6 * (time % 0.5))
    soundfile.write(folder / "good.wav", 0.4 * np.sin(2 * np.pi * 220 * time) * beats, 16_000)
    (folder / "bad.wav").write_text("no music")
    return folder


def test_clips_are_prepared_and_bad_files_reported(raw: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    options = ("--tokens", "none", "--concept", "Fairy", "--class-word", "piano")
    assert run(raw, "--out", out, *options) == 0
    said = capsys.readouterr()
    assert "1 clips" in said.out
    assert "bad.wav" in said.err
    (line,) = (out / "metadata.jsonl").read_text().splitlines()
    text = json.loads(line)["text"]
    assert "<fairy> piano" in text
    assert "120 bpm" in text or "117 bpm" in text
    assert json.loads((out / "report.json").read_text())["refused"][0]["file"] == "bad.wav"


def test_tokens_of_the_base_are_kept_beside(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from musictune import models
    from musictune.models.musicgen import MusicGen

    monkeypatch.setattr(models, "load_model", lambda base: MusicGen.toy())
    assert run(raw, "--out", tmp_path / "out", "--sample-rate", 8000) == 0
    (kept,) = (tmp_path / "out" / "tokens").iterdir()
    assert kept.suffix == ".safetensors"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--concept", "fairy"], "needs --class-word"),
        (["--concept", "7!", "--class-word", "piano"], "concept name '7!'"),
        (["--cut", "loudly"], "choose silence or evenly"),
        (["--seconds", "1000"], "windows of 1000 s"),
    ],
)
def test_bad_options_are_one_line(
    raw: Path, tmp_path: Path, capsys, options: list[str], said: str
) -> None:
    assert run(raw, "--out", tmp_path / "out", "--tokens", "none", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("musictune: error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["missing", "empty", "only bad"])
def test_input_without_music_is_one_line(tmp_path: Path, capsys, kind: str) -> None:
    folder = tmp_path / "raw"
    if kind != "missing":
        folder.mkdir()
    if kind == "only bad":
        (folder / "x.wav").write_text("no music")
    assert run(folder, "--out", tmp_path / "out", "--tokens", "none", "--quiet") == 2
    error = capsys.readouterr().err
    assert error.startswith("musictune: error: ")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ([] if kind == "missing" else ["raw"])


def test_an_existing_output_is_kept(raw: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    assert run(raw, "--out", tmp_path / "out", "--tokens", "none") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"


def test_an_unknown_base_is_said_before_any_work(raw: Path, tmp_path: Path, capsys) -> None:
    assert run(raw, "--out", tmp_path / "out", "--tokens", tmp_path / "no-such-base") == 2
    assert "no-such-base" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
