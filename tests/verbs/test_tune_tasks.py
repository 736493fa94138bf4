"""`tune --task`: bad labelled clips are one line and exit 2, and nothing is left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from musictune.__main__ import main
from musictune.models.classifier import Classifier

RATE = 16_000


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "ast"
    Classifier.toy().save(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root, random = tmp_path / "data", np.random.default_rng(0)
    for label in ("bells", "drums"):
        (root / label).mkdir(parents=True)
        for number in range(4):
            sf.write(root / label / f"{number}.wav", 0.1 * random.standard_normal(RATE), RATE)
    return root


def run(data: Path, base: Path, *more: str) -> int:
    out = data.parent / "run"
    given = ["tune", str(data), "--task", "classify", "--base", str(base), "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        main([*given, "--method", "linear_probe", "--set", "run.epochs=1", *more])
    return int(ended.value.code or 0)


def unlabelled(data: Path) -> list[str]:
    shutil.copy(data / "bells" / "0.wav", data / "stray.wav")
    return ["stray.wav"]


def one_class(data: Path) -> list[str]:
    shutil.rmtree(data / "drums")
    return ["bells", "two or more"]


def empty_class(data: Path) -> list[str]:
    (data / "harps").mkdir()
    return ["harps"]


def unseen_in_training(data: Path) -> list[str]:
    for part in ("train", "test"):
        shutil.copytree(data, data.parent / "parts" / part)
    shutil.rmtree(data)
    (data.parent / "parts").rename(data)
    (data / "test" / "bells").rename(data / "test" / "harps")
    return ["harps"]


def not_audio(data: Path) -> list[str]:
    (data / "drums" / "0.wav").write_bytes(b"RIFF no sound at all")
    return ["0.wav"]


def nothing_there(data: Path) -> list[str]:
    shutil.rmtree(data)
    return [str(data)]


BAD: list[Callable[[Path], list[str]]] = [
    unlabelled, one_class, empty_class, unseen_in_training, not_audio, nothing_there,
]  # fmt: skip


@pytest.mark.parametrize("spoil", BAD, ids=lambda f: f.__name__)
def test_bad_clips_are_one_line_and_leave_nothing(
    spoil: Callable[[Path], list[str]], data: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = spoil(data)
    assert run(data, base) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "error" in text]
    assert line.startswith("musictune: error: ")
    assert all(part in line for part in expected), line
    assert not [p for p in data.parent.iterdir() if "run" in p.name]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--set", "run.folds=5"], "5 folds"),
        (["--set", "run.shots=9"], "9"),
        (["--steps", "5"], "run.epochs"),
        (["--concept", "a"], "--concept"),
        (["--set", "run.layout=nothing"], "nothing"),
        (["--set", "method.width=0"], "width"),
        (["--device", "toaster"], "toaster"),
    ],
)
def test_what_cannot_be_is_refused(
    more: list[str], expected: str, data: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "width" in expected:
        more = [*more, "--method", "bottleneck"]
    assert run(data, base, *more) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "error" in text]
    assert expected in line
    assert not [p for p in data.parent.iterdir() if "run" in p.name]


def test_a_run_says_what_it_came_to_and_how_to_use_it(
    data: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, base) == 0
    said = capsys.readouterr().out
    assert "test accuracy" in said and "musictune classify RECORDING --model" in said
    with pytest.raises(SystemExit) as ended:
        main(["classify", str(data / "bells"), "--model", str(data.parent / "run")])
    assert not ended.value.code
    assert "0.wav" in capsys.readouterr().out
