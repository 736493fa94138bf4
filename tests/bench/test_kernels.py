"""`musictune bench kernels`: rows of all kernels, what stays open, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from musictune.__main__ import main
from musictune.bench import kernels
from musictune.bench.rows import Row

CPU = torch.device("cpu")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "kernels", *arguments])
    code = ended.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture
def fake_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        "attention": [Row("kernels", "decode", 1.0, target="ratio >= 1", note="on CPU")],
        "relative": [Row("kernels", "relative", 2.0, target=1.0, met=True)],
        "loss": [Row("kernels", "loss", 0.5, target=1.0, met=False), Row("kernels", "time", 3.0)],
        "sampling": [],
    }
    for name, made in rows.items():
        module = ModuleType(f"musictune.bench.kernel_{name}")
        module.measure = lambda device, made=made: made if device == CPU else []  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("fake_kernels")
def test_rows_of_all_kernels_are_collected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kernels.json"
    assert run("--json", str(file)) == 0
    document = json.loads(file.read_text(encoding="utf-8"))
    assert [row["case"] for row in document["rows"]] == ["decode", "relative", "loss", "time"]
    notes = [row["note"] for row in document["rows"]]
    assert notes == [f"on CPU; {kernels.OPEN}", "", "", ""]
    assert document["made_with"]["kernels"] == list(kernels.KERNELS)
    assert "1 of 2 targets met, 1 open" in capsys.readouterr().out
    assert run("--json", str(file), "--only", "loss") == 0
    document = json.loads(file.read_text(encoding="utf-8"))
    assert [row["case"] for row in document["rows"]] == ["loss", "time"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "softmax"], "softmax"),
        (["--threads", "0"], "threads"),
        (["--device", "tpu"], "tpu"),
        (["--json", "."], "is a folder"),
        (["--json", "no/such/folder/x.json"], "does not exist"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
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
