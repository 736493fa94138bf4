"""A classifier on labelled clips, and what it hears in long recordings."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch

from musictune.audio import Clip, read, write
from musictune.data.labelled import Example, LabelledClips
from musictune.errors import CheckFailed, InputError
from musictune.evaluation.answers import Naming, failure
from musictune.evaluation.classification import (
    MeasuredClassifier,
    check_limits,
    measure_classifier,
    parse_limits,
)
from musictune.evaluation.naming import Answer, Sound, name_sounds
from musictune.models.classifier import Classifier, MeanHead

LABELS = ("LABEL_0", "LABEL_1", "LABEL_2")


def tone(path: Path, seconds: float, low: float = 200, rate: int = 8000) -> Path:
    time = torch.arange(round(seconds * rate)) / rate
    wave = 0.3 * torch.sin(2 * math.pi * (low + 40 * time) * time)
    write(Clip(wave[None], rate), path)
    return path


@pytest.fixture(scope="module")
def ast() -> Classifier:
    return Classifier.toy("ast")


@pytest.fixture
def clips(tmp_path: Path) -> LabelledClips:
    (tmp_path / "clips").mkdir()
    examples = []
    for i in range(6):
        path = tone(tmp_path / "clips" / f"{i}.wav", 0.3 + 0.3 * i, 90 * i)
        split = "test" if i % 2 else "train"
        examples.append(Example(path, (LABELS[i % 2],), split=split))
    return LabelledClips(tmp_path / "clips", "folders", tuple(examples), LABELS[:2], False)


@pytest.mark.parametrize("kind", ["ast", "wav2vec2", "hubert"])
def test_windows_are_those_of_the_classifier_and_files_do_not_change_each_other(
    tmp_path: Path, kind: str
) -> None:
    model = Classifier.toy(kind)
    paths = [tone(tmp_path / f"{s}.wav", s, 100 * s) for s in (0.2, 0.7, 1.6, 5.0)]
    together = list(name_sounds(model, map(Sound, paths), windows=3))
    for path, answer in zip(paths, together, strict=True):
        rows = model.classify(read(path))
        assert len(answer.windows) == len(rows)
        assert answer.probabilities is not None
        assert torch.allclose(answer.probabilities, rows.mean(0), atol=1e-6)
        for window, row in zip(answer.windows, rows, strict=True):
            assert [row[i].item() for i, _ in window.likeliest] == pytest.approx(
                [p for _, p in window.likeliest], abs=1e-6
            )
        (alone,) = name_sounds(model, [Sound(path)])
        assert torch.allclose(answer.probabilities, alone.probabilities, atol=1e-6)
        assert answer.seconds == pytest.approx(read(path).seconds)
        assert not alone.windows


@pytest.mark.parametrize(("kind", "tolerance"), [("ast", 1e-5), ("wav2vec2", 0.02)])
def test_a_recording_in_blocks_is_heard_as_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, tolerance: float
) -> None:
    from musictune.evaluation import naming

    model = Classifier.toy(kind)
    path = tone(tmp_path / "long.wav", 10.3, rate=16_000)
    (whole,) = name_sounds(model, [Sound(path)], windows=3)
    monkeypatch.setattr(naming, "_BLOCK", 1.7)  # no whole number of windows
    (blocks,) = name_sounds(model, [Sound(path)], windows=3)
    assert [w.start for w in blocks.windows] == [w.start for w in whole.windows]
    assert blocks.seconds == pytest.approx(whole.seconds)
    for one, other in zip(blocks.windows, whole.windows, strict=True):
        assert one.seconds == pytest.approx(min(model.seconds, 10.3 - one.start))
        assert dict(one.likeliest) == pytest.approx(dict(other.likeliest), abs=tolerance)


def test_a_long_recording_never_lies_in_memory_whole(
    tmp_path: Path, ast: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.wav"
    write(Clip(0.1 * torch.rand(1, 150 * 2000), 2000), path)
    heard = ast.front.hear
    longest = []

    def hear(clip: Clip) -> torch.Tensor:
        longest.append(clip.seconds)
        return heard(clip)

    monkeypatch.setattr(ast.front, "hear", hear)
    (answer,) = name_sounds(ast, [Sound(path)], windows=1)
    assert answer.seconds == pytest.approx(150)
    assert len(answer.windows) == round(150 / ast.seconds)
    assert max(longest) < 62


def test_windows_can_overlap(tmp_path: Path, ast: Classifier) -> None:
    path = tone(tmp_path / "a.wav", 1.0)
    (answer,) = name_sounds(ast, [Sound(path)], every=0.1, windows=1)
    starts = [window.start for window in answer.windows]
    assert starts == pytest.approx([0.1 * i for i in range(len(starts))])
    assert 7 <= len(starts) <= 8  # until less than half a window is left
    for every in (0.0, 0.6, math.nan):
        with pytest.raises(InputError, match="--every"):
            list(name_sounds(ast, [Sound(path)], every=every))


def test_excerpts_are_heard_alone(tmp_path: Path, ast: Classifier) -> None:
    path = tone(tmp_path / "a.wav", 3.0)
    for start, seconds in ((0.5, 0.4), (1.0, None), (0.0, 1.5)):
        (answer,) = name_sounds(ast, [Sound(path, start, seconds)])
        expected = ast.classify(read(path, start, seconds)).mean(0)
        assert answer.probabilities is not None
        assert torch.allclose(answer.probabilities, expected, atol=1e-6)
    (late,) = name_sounds(ast, [Sound(path, 5.0)])
    assert "5 s" in late.error and late.probabilities is None


def test_a_broken_recording_does_not_touch_the_others(tmp_path: Path, ast: Classifier) -> None:
    good, bad, silent = tone(tmp_path / "good.wav", 1), tmp_path / "bad.wav", tmp_path / "zero.wav"
    bad.write_text("no music")
    write(Clip(torch.zeros(1, 4000), 8000), silent)
    cut = tmp_path / "cut.wav"
    cut.write_bytes(tone(tmp_path / "whole.wav", 2).read_bytes()[:8000])
    answers = list(name_sounds(ast, map(Sound, (bad, good, cut, silent)), windows=1))
    assert [bool(answer.error) for answer in answers] == [True, False, True, False]
    assert answers[2].probabilities is None and not answers[2].windows
    assert [answer.silent for answer in answers[1::2]] == [False, True]
    assert "2 of 4 recordings not heard" in failure(answers)
    assert failure(answers[1:2]) == ""


def test_several_labels_are_said_from_the_threshold_on() -> None:
    answer = Answer(Sound(Path("a.wav")), 2.0, torch.tensor([0.7, 0.2, 0.6]), silent=False)
    said = Naming(LABELS, True).of(answer)
    assert [label for label, _ in said] == ["LABEL_0", "LABEL_2"]
    assert Naming(LABELS, True, top=1).of(answer) == said[:1]
    assert len(Naming(LABELS, False, top=0).of(answer)) == 3
    none = Naming(LABELS, True, threshold=0.9)
    assert none.of(answer) == []
    assert "none from 0.9 on; likeliest LABEL_0 0.70" in none.lines(answer)[0]
    for wrong in ({"top": -1}, {"threshold": 1.5}, {"threshold": math.nan}):
        with pytest.raises(InputError):
            Naming(LABELS, True, **wrong)


def test_the_report(tmp_path: Path, ast: Classifier, clips: LabelledClips) -> None:
    out = tmp_path / "report"
    measured = measure_classifier(ast, clips, out)
    assert {path.name for path in out.iterdir()} == {
        "metrics.json", "clips.csv", "confusion.png", "report.html",
    }  # fmt: skip
    numbers = json.loads((out / "metrics.json").read_text())
    assert numbers["schema"] == 1
    right = [ast.classify(read(e.path)).mean(0).argmax() for e in clips.examples]
    share = sum(LABELS[i] == e.labels[0] for i, e in zip(right, clips.examples, strict=True)) / 6
    accuracy = numbers["scores"]["accuracy"]
    assert accuracy["value"] == pytest.approx(share)
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert accuracy["n"] == 6
    assert numbers["not_computed"]["f1/LABEL_2"] == "no clip is LABEL_2"
    assert any("1 of 3 classes have no clip" in warning for warning in numbers["warnings"])
    assert numbers["made_with"]["layout"] == "folders"
    with (out / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"{i}.wav" for i in range(6)]
    assert sum(row["right"] == "yes" for row in rows) == round(6 * share)
    for row, probabilities in zip(rows, measured.probabilities, strict=True):
        found = [float(row[f"probability/{label}"]) for label in LABELS]
        assert found == pytest.approx(probabilities.tolist(), rel=1e-4)
    page = (out / "report.html").read_text()
    assert page.count("<audio") == round(6 - 6 * share)
    assert "https://" not in page and page.count("data:image/png") >= 1
    with pytest.raises(InputError, match="already exists"):
        measure_classifier(ast, clips, out)
    part = measure_classifier(ast, clips, out, overwrite=True, split="test")
    assert len(part.examples) == 3


def test_several_labels(tmp_path: Path, clips: LabelledClips) -> None:
    model = Classifier.toy("ast")
    model.head = MeanHead(model.width, ("<a>", "b", "c"), multi_label=True)
    examples = tuple(
        Example(e.path, labels)
        for e, labels in zip(
            clips.examples, [("<a>",), ("<a>", "b"), (), ("b",), ("c",), ("b", "c")], strict=True
        )
    )
    several = LabelledClips(clips.source, "csv", examples, ("<a>", "b", "c"), True)
    measured = measure_classifier(model, several, tmp_path / "report")
    assert set(measured.main) == {"accuracy", "macro_f1", "micro_f1", "mean_average_precision"}
    assert not (tmp_path / "report" / "confusion.png").exists()
    assert "&lt;a&gt;" in (tmp_path / "report" / "report.html").read_text()
    with pytest.raises(InputError, match="has 2 labels, and the model gives one"):
        model.head.multi_label = False
        measure_classifier(model, several, tmp_path / "other")


def test_what_cannot_be_measured_leaves_nothing(
    tmp_path: Path, ast: Classifier, clips: LabelledClips
) -> None:
    out = tmp_path / "report"
    strange = LabelledClips(
        clips.source, "folders", (Example(clips.examples[0].path, ("tuba",)),), ("tuba",), False
    )
    with pytest.raises(InputError, match=r"'tuba', which the model does not know.*LABEL_0"):
        measure_classifier(ast, strange, out)
    with pytest.raises(InputError, match="no clips of split 'validation'; choose from test, train"):
        measure_classifier(ast, clips, out, split="validation")
    for example in clips.examples:
        example.path.write_text("no music")
    with pytest.raises(InputError, match="none of 6 clips can be heard"):
        measure_classifier(ast, clips, out)
    assert not out.exists()


def test_clips_left_out_are_said(
    tmp_path: Path, ast: Classifier, clips: LabelledClips, capsys: pytest.CaptureFixture[str]
) -> None:
    clips.examples[2].path.write_text("no music")
    write(Clip(torch.zeros(1, 4000), 8000), clips.examples[3].path)
    measured = measure_classifier(ast, clips, tmp_path / "report")
    assert len(measured.examples) == 5
    assert any("left out" in warning and "2.wav" in warning for warning in measured.warnings)
    assert any("1 of 6 clips are silent" in warning for warning in measured.warnings)
    assert "2.wav" in capsys.readouterr().err


def test_limits(tmp_path: Path, ast: Classifier, clips: LabelledClips) -> None:
    measured = measure_classifier(ast, clips, tmp_path / "report")
    accuracy = measured.main["accuracy"].value  # type: ignore[union-attr]
    check_limits(measured, parse_limits([f"accuracy={accuracy}"]))
    with pytest.raises(CheckFailed, match=r"accuracy is .* of 6 clips, below"):
        check_limits(measured, {"accuracy": accuracy + 0.01})
    with pytest.raises(CheckFailed, match="micro_f1 was not computed"):
        check_limits(measured, {"micro_f1": 0.0})
    for wrong in (
        "accuracy",
        "accuracy=",
        "accuracy=high",
        "accuracy=80",
        "f2=0.5",
        "accuracy=nan",
    ):
        with pytest.raises(InputError, match="--fail-below"):
            parse_limits([wrong])
    assert isinstance(measured, MeasuredClassifier)
