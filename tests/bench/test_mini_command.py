"""`musictune bench mini`: what it refuses before any work, and the file that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from musictune.__main__ import main
from musictune.bench import clap_quality, codec_quality
from musictune.compose.render import SOUNDFONTS
from musictune.metrics.embedders import ClapEmbedder
from musictune.models.musicgen import MusicGen


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "mini", *arguments])
    code = ended.value.code
    assert isinstance(code, int)
    return code


@pytest.mark.skipif(not any(p.is_file() for p in SOUNDFONTS), reason="no SoundFont installed")
def test_rows_and_what_made_them_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tinysoundfont", reason="the extra 'compose' is not installed")
    monkeypatch.setattr(codec_quality, "SECONDS", 2.0)
    monkeypatch.setattr(clap_quality, "SECONDS", 2.0)
    MusicGen.toy().save(tmp_path / "base")
    ClapEmbedder.toy().save(tmp_path / "clap")
    target = tmp_path / "mini.json"
    parts = ["--part", "codec", "--part", "clap", "--count", "4"]
    models = ["--base", str(tmp_path / "base"), "--clap", str(tmp_path / "clap")]
    assert run("--json", str(target), *parts, *models) == 0
    document = json.loads(target.read_text(encoding="utf-8"))
    assert document["schema"] == 1
    assert {row["part"] for row in document["rows"]} == {"codec", "clap"}
    assert {"case", "ours", "peer", "peer_name", "ratio", "unit", "target", "met"} <= set(
        document["rows"][0]
    )
    made_with = document["made_with"]
    assert set(made_with["checkpoint_hashes"]) == {"soundfont", "codec", "clap"}
    assert made_with["seed"] == 70_000_000
    assert made_with["versions"]["torch"]
    assert any("--recordings" in line for line in document["left_out"])
    assert any(line.startswith("language") for line in document["left_out"])
    shown = capsys.readouterr()
    assert "bit rate" in shown.out
    assert "targets met" in shown.out
    assert "--recordings" in shown.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--part", "drums"], "drums"),
        (["--json", "."], "is a folder"),
        (["--json", "no/such/folder/x.json"], "does not exist"),
        (["--part", "codec", "--recordings", "no-such-folder"], "no-such-folder"),
        (["--part", "codec", "--codec", "no-such-codec"], "no-such-codec"),
        (["--part", "clap", "--clap", "no-such-clap"], "no-such-clap"),
        (["--part", "clap", "--soundfont", "no-such.sf2"], "no-such.sf2"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--json" not in arguments:
        arguments = ["--json", "rows.json", *arguments]
    assert run(*arguments) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())
