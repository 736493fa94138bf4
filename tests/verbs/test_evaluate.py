"""`musictune evaluate` from folders to a report, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from musictune.audio import Clip, write
from musictune.errors import InputError
from musictune.metrics.embedders import ClapEmbedder
from musictune.verbs.evaluate import evaluate


def music(folder: Path, low: float, text: str = "piano", *, listed: bool = True) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for i in range(3):
        time = torch.arange(16_000) / 8000
        wave = 0.3 * torch.sin(2 * math.pi * (low + 60 * i) * time)[None]
        write(Clip(wave, 8000), folder / f"{i:03d}.wav")
        line = {"file": f"{i:03d}.wav", "prompt": f"<x> tune {i}", "text": f"{text} tune {i}"}
        lines.append(json.dumps(line | {"seed": i, "base": "mini", "adapters": []}))
    if listed:
        (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "clap"
    ClapEmbedder.toy().save(folder)
    return str(folder)


def test_tuned_beside_base(tmp_path: Path, clap: str, capsys: pytest.CaptureFixture[str]):
    tuned = music(tmp_path / "tuned", 220)
    base = music(tmp_path / "base", 2000, text="<x>")
    reference = music(tmp_path / "mine", 230, listed=False)
    evaluate(tuned, reference, tmp_path / "report", against=base, embedder=clap)
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"report.html", "metrics.json", "clips.csv"}
    numbers = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert numbers["scores"]["difference/text_alignment"]["n"] == 3
    assert numbers["made_with"]["name"] == "tuned"
    assert numbers["made_with"]["checkpoint_hashes"]["embedder"] == ClapEmbedder.load(clap).hash
    shown = capsys.readouterr().out
    assert "Audio alignment" in shown
    assert "tuned" in shown.splitlines()[0]
    assert "base" in shown.splitlines()[0]
    assert f"{numbers['scores']['audio_alignment']['value']:.3f}" in shown
    assert str(tmp_path / "report" / "report.html") in shown


def test_the_judge_reads_the_same_text_for_both_of_a_pair(tmp_path: Path, clap: str):
    tuned = music(tmp_path / "tuned", 220)
    base = music(tmp_path / "base", 220, text="<x>")  # the same sound, the trigger unresolved
    evaluate(tuned, tuned / "000.wav", tmp_path / "report", against=base, embedder=clap)
    scores = json.loads((tmp_path / "report" / "metrics.json").read_text())["scores"]
    assert scores["difference/text_alignment"]["value"] == 0
    assert scores["text_alignment"]["value"] == scores["against/text_alignment"]["value"]


def test_any_folder_of_audio_can_be_measured(
    tmp_path: Path, clap: str, capsys: pytest.CaptureFixture[str]
):
    made = music(tmp_path / "made", 220, listed=False)
    evaluate(made, made, tmp_path / "report", embedder=clap)
    numbers = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert "text_alignment" not in numbers["scores"]
    assert "no prompt" in numbers["not_computed"]["text_alignment"]
    assert "text_alignment not computed: no prompt" in capsys.readouterr().err


def test_bad_input_leaves_no_report(tmp_path: Path, clap: str):
    good = music(tmp_path / "good", 220)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "song.wav").write_text("these are words")
    out = tmp_path / "report"
    cases = [
        (tmp_path / "missing", good, None, "missing does not exist"),
        (tmp_path / "empty", good, None, "holds no audio"),
        (tmp_path / "text", good, None, "song.wav"),
        (good, tmp_path / "missing", None, "missing"),
        (good, tmp_path / "empty", None, "empty"),
        (good, tmp_path / "text", None, "song.wav"),
        (good, good, tmp_path / "missing", "missing"),
    ]
    for made, reference, against, words in cases:
        with pytest.raises(InputError, match=words) as caught:
            evaluate(made, reference, out, against=against, embedder=clap)
        assert "\n" not in str(caught.value)
        assert not out.exists()
    with pytest.raises(InputError, match="unknown embedder"):
        evaluate(good, good, out, embedder="nowhere at all")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "good", "text"]


def test_existing_report_and_inputs_are_kept(tmp_path: Path, clap: str):
    made = music(tmp_path / "out" / "made", 220)
    evaluate(made, made, tmp_path / "report", embedder=clap)
    with pytest.raises(InputError, match="already exists"):
        evaluate(made, made, tmp_path / "report", embedder=clap)
    evaluate(made, made, tmp_path / "report", embedder=clap, overwrite=True)
    for out in (made, tmp_path / "out"):
        with pytest.raises(InputError, match="would replace"):
            evaluate(made, made, out, embedder=clap, overwrite=True)
    assert len(list(made.iterdir())) == 4
