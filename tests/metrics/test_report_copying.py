"""Copies on the page: an alarm that can be heard, a calm line where there is none."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from musictune.audio import Clip, write
from musictune.metrics.base import NotComputed
from musictune.metrics.copying import CopyingReport, Nearest
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.folder import ClipFile, ClipSet
from musictune.metrics.report import write_report
from musictune.metrics.report_copying import copying_cells, copying_columns, echoes
from musictune.metrics.suite import Evaluation

REASON = "b.wav at 1.2 s sounds like old.wav at 2.5 s (likeness 0.990)"
COPIED = CopyingReport(
    scores={},
    thresholds={"clap": 0.95, "chroma": 0.9},
    nearest=(
        {
            "clap": Nearest(0.9, 0.0, 1, "new.wav", 0.0),
            "chroma": Nearest(0.5, 0.0, 0, "old.wav", 0),
        },
        {
            "clap": Nearest(0.99, 1.25, 0, "old.wav", 2.5),
            "chroma": Nearest(0.91, 0.5, 1, "new.wav", 0.0),
        },
        {},
    ),
    values={},
    held_out={},
    alarm=True,
    alarm_reason=REASON,
)
CALM = replace(COPIED, alarm=False, alarm_reason="nothing is nearer than other music")


def clips(folder: Path, name: str, files: list[str]) -> ClipSet:
    (folder / name).mkdir()
    found = []
    for file in files:
        time = torch.arange(3 * 8000) / 8000
        write(Clip(0.3 * torch.sin(2 * math.pi * 330 * time)[None], 8000), folder / name / file)
        found.append(ClipFile(folder / name / file, file, f"prompt of {file}", "", 0))
    return ClipSet(name, tuple(found))


def page(folder: Path, copying: CopyingReport, *, heard: bool = True) -> str:
    made = clips(folder, "made", ["a.wav", "b.wav", "c.wav"])
    training = clips(folder, "training", ["old.wav", "new.wav"])
    values = {"audio_alignment": np.zeros(3)}
    evaluation = Evaluation(made=values, influence=np.array([0.3, 0.2, 0.1]), copying=copying)
    sets = (made, ClipSet("statistics.npz", ()), None, None, training if heard else None)
    write_report(folder, evaluation, ClapEmbedder.toy(), *sets)
    return (folder / "report.html").read_text()


def test_most_striking_measure_of_each_clip_leads_and_nearest_clip_comes_first():
    first, second = echoes(COPIED)
    assert (first.clip, first.name, first.training_start) == (1, "old.wav", 2.5)
    assert first.surplus == pytest.approx(math.log(0.05 / 0.01))
    assert second.clip == 0
    assert second.surplus < 0
    tokens = replace(
        COPIED, thresholds={"tokens": 8}, nearest=({"tokens": Nearest(16, 0, 0, "old.wav", 0)},)
    )
    assert echoes(tokens)[0].surplus == pytest.approx(math.log(2))
    assert echoes(tokens)[0].figures == "16 equal codec tokens"
    assert echoes(None) == []


def test_without_held_out_clips_nearness_is_told_but_not_judged():
    unknown = replace(CALM, thresholds={}, scores={"copying/clap": NotComputed("one recording")})
    found = echoes(unknown)
    assert [echo.clip for echo in found] == [0, 1]
    assert all(math.isnan(echo.surplus) for echo in found)


def test_alarm_is_on_top_with_both_sounds(tmp_path: Path):
    text = page(tmp_path, COPIED)
    assert text.index("This looks copied") < text.index(REASON) < text.index('id="scores"')
    alarm = text[text.index('id="alarm"') : text.index('id="scores"')]
    assert alarm.count("<audio") == 2  # only one clip is nearer than held-out ones
    assert "b.wav of made from 0:01" in alarm
    assert "training clip old.wav, from 0:02" in alarm
    # Three made clips; the one that is worst, and what it is nearest to.
    assert text.count("<audio") == 2 + 3 + 2


def test_no_alarm_is_one_calm_line(tmp_path: Path):
    text = page(tmp_path, CALM)
    assert "Copying: nothing is nearer than other music." in text
    assert "This looks copied" not in text


def test_training_clips_that_are_not_given_are_named(tmp_path: Path):
    text = page(tmp_path, COPIED, heard=False)
    assert text.count("<audio") == 1 + 3 + 1
    assert "training clip old.wav, from 0:02" in text


def test_files_hold_nearness_and_alarm(tmp_path: Path):
    page(tmp_path, COPIED)
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert numbers["copying"] == {"alarm": True, "reason": REASON}
    assert numbers["made_with"]["copying"] == {"thresholds": {"clap": 0.95, "chroma": 0.9}}
    with (tmp_path / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["copying_clap"] == "0.99"
    assert rows[1]["copying_clap_start"] == "1.25"
    assert rows[1]["copying_chroma_training"] == "new.wav"
    assert rows[2]["copying_clap"] == ""  # silent
    assert set(copying_columns(COPIED)) == set(copying_cells(COPIED)[0])
