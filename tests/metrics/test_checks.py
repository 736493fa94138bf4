"""What is said of files before any of their scores is believed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from musictune.audio import Clip, write
from musictune.errors import InputError
from musictune.metrics.checks import check_files, check_heard, check_sound
from musictune.metrics.folder import ClipFile, ClipSet
from musictune.metrics.listening import Heard
from musictune.metrics.suite import Evaluation, HeardSet


def tone(path: Path, rate: int = 8000, seconds: float = 2.0) -> ClipFile:
    time = torch.arange(round(seconds * rate)) / rate
    write(Clip(0.3 * torch.sin(2 * math.pi * 300 * time)[None], rate), path)
    return ClipFile(path, path.name, seconds=2.0)


def heard(name: str, digests: list[str], claimed: list[str] | None = None) -> HeardSet:
    claimed = claimed or [""] * len(digests)
    files = tuple(
        ClipFile(Path(f"{i}.wav"), f"{i}.wav", digest=claim) for i, claim in enumerate(claimed)
    )
    return HeardSet(ClipSet(name, files), Heard({}, tuple(digests)))


def test_good_files_are_not_remarked_on(tmp_path: Path):
    files = (tone(tmp_path / "a.wav"), tone(tmp_path / "b.wav"))
    assert check_files(ClipSet("made", files)) == []


def test_mixed_rates_are_said(tmp_path: Path):
    files = (tone(tmp_path / "a.wav"), tone(tmp_path / "b.wav", 16_000), tone(tmp_path / "c.wav"))
    (warning,) = check_files(ClipSet("made", files))
    assert "made mixes sample rates (2 at 8000 Hz, 1 at 16000 Hz)" in warning


def test_a_wrong_sample_rate_shows_in_the_length(tmp_path: Path):
    # 2 s at 8 kHz, written by somebody as if they were at 11,025 Hz.
    time = torch.arange(16_000) / 8000
    write(Clip(0.3 * torch.sin(600 * time)[None], 11_025), tmp_path / "a.wav")
    wrong = ClipFile(tmp_path / "a.wav", "a.wav", seconds=2.0)
    with pytest.raises(InputError, match=r"lasts 1.45 s at 11025 Hz.*says 2 s.*rate is wrong"):
        check_files(ClipSet("made", (wrong,)))
    assert check_files(ClipSet("made", (replace(wrong, seconds=None),))) == []


def test_duplicates_and_changed_files_are_said():
    made = heard("made", ["a", "b", "a", "c"], ["a", "old", "", ""])
    reference = heard("mine", ["c", "d"])
    twice, changed, shared = check_heard(made, reference, [])
    assert "made holds 1 files twice" in twice
    assert "made has 1.wav changed since" in changed
    assert "made and the reference share 3.wav" in shared
    assert check_heard(heard("made", ["a", "b"]), None, [heard("base", ["a", "b"])]) == []


def test_silence_and_dull_sound_are_said():
    evaluation = Evaluation(
        made={"silence": np.array([0.0, 1.0, 0.1]), "bandwidth": np.array([4e3, np.nan, 5e3])}
    )
    silent, dull = check_sound(evaluation, {"bandwidth": np.array([16e3, 15e3])})
    assert "1 of 3 made clips are silent" in silent
    assert "end at 4500 Hz, the reference at 15500 Hz" in dull
    assert check_sound(Evaluation(made={"silence": np.zeros(2)}), {}) == []
    with pytest.raises(InputError, match="all 2 made clips are silent"):
        check_sound(Evaluation(made={"silence": np.ones(2)}), {})


def test_a_clip_of_a_moment_is_said(tmp_path: Path):
    files = (tone(tmp_path / "a.wav"), tone(tmp_path / "b.wav", seconds=1 / 8000))
    (warning,) = check_files(ClipSet("made", tuple(replace(f, seconds=None) for f in files)))
    assert "made has b.wav shorter than 1 s" in warning


def test_a_silent_reference_is_refused_and_a_silent_base_said():
    made = {"silence": np.zeros(2)}
    with pytest.raises(InputError, match="all 3 reference clips are silent"):
        check_sound(Evaluation(made=made), {"silence": np.ones(3)})
    (warning,) = check_sound(Evaluation(made=made), {"silence": np.array([0.0, 1.0])})
    assert "1 of 2 reference clips are silent" in warning
    (warning,) = check_sound(Evaluation(made=made, against={"silence": np.ones(2)}), {})
    assert "2 of 2 compared clips are silent" in warning


@pytest.mark.filterwarnings("error")
def test_a_bandwidth_that_is_known_of_no_clip_says_nothing():
    unknown = {"silence": np.zeros(1), "bandwidth": np.array([np.nan])}
    known = {"silence": np.zeros(1), "bandwidth": np.array([5e3])}
    assert check_sound(Evaluation(made=unknown), known) == []
    assert check_sound(Evaluation(made=known), unknown) == []
