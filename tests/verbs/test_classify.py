"""`musictune classify`, and `evaluate --run`, as people type them."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path

import pytest
import torch

from musictune.__main__ import main
from musictune.audio import Clip, write
from musictune.methods import save_adapter
from musictune.methods.combined import Combined
from musictune.methods.linear_probe import LinearProbe
from musictune.models.classifier import Classifier


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments)])
    return int(caught.value.code or 0)


def sound(path: Path, seconds: float = 0.4, low: float = 200) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = torch.arange(round(seconds * 8000)) / 8000
    write(Clip(0.3 * torch.sin(2 * math.pi * low * time)[None], 8000), path)
    return path


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    Classifier.toy("ast").save(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(toy: Path) -> Path:
    """A run that knows low from high, and the base of it."""
    model = Classifier.load(toy)
    method = Combined([LinearProbe(["high", "low"], seed=1)])
    method.attach(model)
    folder = toy.parent / "run"
    save_adapter(model, method, folder / "adapter")
    return folder


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    for i in range(3):
        sound(tmp_path / "labelled" / "low" / f"{i}.wav", low=100 + 20 * i)
        sound(tmp_path / "labelled" / "high" / f"{i}.wav", low=2000 + 200 * i)
    return tmp_path / "labelled"


def test_files_and_folders_become_a_table(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound(tmp_path / "takes" / "a.wav")
    sound(tmp_path / "takes" / "deep" / "b.wav", 1.0)
    alone = sound(tmp_path / "c.wav")
    given = ["classify", tmp_path / "takes", alone, alone, "--model", toy]
    assert run(*given, "--top", 2) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert [line.split()[0].rsplit("/", 1)[1] for line in lines] == ["a.wav", "b.wav", "c.wav"]
    assert all(line.count("LABEL_") == 2 for line in lines)
    assert run(*given, "--quiet", "--windows") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert sum("0:00-0:0" in line for line in said.out.splitlines()) == 4


def test_json_and_csv(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long, short = sound(tmp_path / "=long.wav", 1.25), sound(tmp_path / "short.wav")
    silent = tmp_path / "silent.wav"
    write(Clip(torch.zeros(1, 8000), 8000), silent)
    given = ["classify", long, short, silent, "--model", toy]
    assert run(*given, "--out", tmp_path / "x.json") == 0
    assert "silent.wav" in capsys.readouterr().out
    found = json.loads((tmp_path / "x.json").read_text())
    assert [one["file"] for one in found] == [str(long), str(short), str(silent)]
    assert found[0]["seconds"] == 1.25
    assert [w["start"] for w in found[0]["windows"]] == [0.0, 0.48, 0.96]
    assert sum(one["probability"] for one in found[0]["labels"]) == pytest.approx(1, abs=1e-4)
    assert found[2]["silent"] is True and found[2]["labels"] == found[2]["windows"] == []

    assert run(*given, "--out", "-") == 0
    assert json.loads(capsys.readouterr().out) == found

    monkey = tmp_path / "x.csv"
    assert run(*given, "--out", monkey, "--top", 1) == 0
    with monkey.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label_1"][:5] for row in rows] == ["LABEL", "LABEL", ""]
    assert rows[2]["remark"] == "silent"
    assert run(*given, "--out", monkey) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(*given, "--out", monkey, "--overwrite", "--every", 0.24) == 0
    with monkey.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["start"]) for row in rows[:4]] == pytest.approx([0, 0.24, 0.48, 0.72])


def test_a_run_says_its_own_labels(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sound(tmp_path / "a.wav")
    assert run("classify", path, "--model", tuned, "--out", "-") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert {one["label"] for one in found["labels"]} == {"high", "low"}


def test_what_cannot_be_heard_is_named_and_the_rest_is_done(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, pipe = sound(tmp_path / "good.wav"), tmp_path / "bad.wav", tmp_path / "pipe.wav"
    bad.write_text("no music")
    os.mkfifo(pipe)
    out = tmp_path / "x.json"
    assert run("classify", bad, good, pipe, "--model", toy, "--out", out) == 2
    said = capsys.readouterr()
    last = said.err.strip().splitlines()[-1]
    assert last.startswith("musictune: error: 2 of 3 recordings not heard")
    assert "bad.wav" in last and "the other one is done" in last
    assert "not heard" in said.out and "LABEL_" in said.out
    found = json.loads(out.read_text())
    assert ["error" in one for one in found] == [True, False, True]
    assert run("classify", bad, "--model", toy, "--out", tmp_path / "none.json") == 2
    assert not (tmp_path / "none.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.wav"], "nowhere.wav does not exist"),
        (["empty"], "holds no audio"),
        (["a.wav", "--top", "-1"], "top -1"),
        (["a.wav", "--threshold", "2"], "threshold 2"),
        (["a.wav", "--every", "100"], "--every 100"),
        (["a.wav", "--out", "x.txt"], "must end in .json or .csv"),
        (["a.wav", "--out", "empty"], "must end in .json or .csv"),
        (["a.wav", "--out", "nowhere/x.json"], "a folder that exists"),
        (["a.wav", "--model", "nowhere"], "nowhere"),
    ],
)
def test_bad_usage_is_one_line(
    toy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    sound(tmp_path / "a.wav")
    (tmp_path / "empty").mkdir()
    model = [] if "--model" in arguments else ["--model", str(toy)]
    assert run("classify", *arguments, *model, "--quiet") == 2
    said = capsys.readouterr()
    assert said.err.startswith("musictune: error: ") and says in said.err
    assert said.err.count("\n") == 1 and said.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "empty"]


def test_a_run_is_measured(
    tuned: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", labelled, "--run", tuned, "--out", tmp_path / "report", "--overwrite"]
    assert run(*given) == 0
    shown = capsys.readouterr().out
    numbers = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert numbers["made_with"]["run"] == str(tuned)
    assert len(numbers["made_with"]["sha256"]) == 64
    assert numbers["made_with"]["files"] == 6
    assert f"{numbers['scores']['accuracy']['value']:.3f}" in shown
    assert "Macro F1" in shown and "report.html" in shown
    assert run(*given, "--fail-below", "accuracy=0") == 0
    assert run(*given, "--layout", "folders", "--fail-below", "macro_f1=1") == 1
    assert "macro_f1 is" in capsys.readouterr().err
    assert (tmp_path / "report" / "confusion.png").is_file()  # what failed can be looked at


def test_a_run_is_not_measured_on_what_it_does_not_know(
    tuned: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound(labelled / "middle" / "0.wav")
    out = tmp_path / "report"
    assert run("evaluate", labelled, "--run", tuned, "--out", out) == 2
    assert "'middle', which the model does not know" in capsys.readouterr().err
    for more, says in (
        ([], "neither --reference nor --run"),
        (["--split", "test"], "give --run too"),
        (["--fail-below", "accuracy=1"], "give --run too"),
        (["--run", tuned, "--reference", labelled], "--reference is about made music"),
        (["--run", tuned, "--against", labelled], "--against is about made music"),
        (["--run", tuned, "--fail-below", "accuracy"], "--fail-below"),
        (["--run", tuned, "--split", "dev"], "not split"),
        (["--run", tuned, "--layout", "nonsense"], "nonsense"),
        (["--reference", labelled, "--layout", "nonsense"], "nonsense"),
    ):
        assert run("evaluate", labelled, "--out", out, *more) == 2
        said = capsys.readouterr().err
        assert said.startswith("musictune: error: ") and says in said, said
        assert said.count("\n") == 1
    assert run("evaluate", labelled, "--run", tuned, "--out", labelled, "--overwrite") == 2
    assert "would replace" in capsys.readouterr().err
    assert not out.exists()
