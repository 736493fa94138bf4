"""``musictune generate`` with a reward that chooses."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import musictune.evaluation.rewards as rewards
from musictune.__main__ import main
from musictune.audio import Clip, read, write
from musictune.files import sha256
from musictune.generation.choosing import Choosing
from musictune.models.musicgen import MusicGen
from tests.generation.toys import brightness

BY = ["--reward", "quality"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "toy"
    MusicGen.toy().save(folder)
    return folder


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toy music has no quality; its brightness differs from clip to clip."""
    monkeypatch.setattr(rewards, "load_reward", lambda names, **given: brightness)


def run(base: Path, out: Path, *arguments: object) -> int:
    fixed = ["--base", base, "--seconds", 0.3, "--precision", "float32", "--out", out]
    with pytest.raises(SystemExit) as stop:
        main(["generate", "slow piano", *map(str, [*fixed, *arguments])])
    return int(stop.value.code or 0)


def manifest(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_best_of_says_what_it_chose_from_and_the_seed_makes_it_again(
    base: Path, tmp_path: Path, bright: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(base, tmp_path / "best", "--count", 2, "--best-of", 3, *BY) == 0
    lines = manifest(tmp_path / "best")
    for place, line in enumerate(lines):
        told = line["best_of"]
        assert told["value"] == max(told["rewards"]) and len(told["rewards"]) == told["count"] == 3
        assert told["reward"] == ["quality"] and told["first_seed"] == place
        assert told["divergence_at_most"] == pytest.approx(math.log(3) - 2 / 3, abs=1e-4)
        assert run(base, tmp_path / f"again{place}", "--seed", line["seed"]) == 0
        (again,) = manifest(tmp_path / f"again{place}")
        assert again["sha256"] == line["sha256"] == sha256(tmp_path / "best" / line["file"])
    chosen = sum(line["best_of"]["value"] for line in lines) / 2
    every = sum(sum(line["best_of"]["rewards"]) for line in lines) / 6
    said = capsys.readouterr().out
    assert f"mean reward {chosen:.4g}, of all candidates {every:.4g}" in said


def test_guided_clips_say_their_choices(base: Path, tmp_path: Path, bright: None) -> None:
    options = ["--guided", 2, "--every", 0.1, "--strength", "inf", "--seed", 4]
    assert run(base, tmp_path / "out", *options, *BY) == 0
    (line,) = manifest(tmp_path / "out")
    told = line["guided"]
    assert len(told["rewards"]) == len(told["choices"]) == 3 and line["seed"] == 4
    assert told["value"] == max(told["rewards"][-1])
    assert told["divergence_at_most"] == pytest.approx(3 * math.log(2), abs=1e-3)
    assert (told["candidates"], told["every"], told["strength"]) == (2, 0.1, "inf")


def test_a_real_reward_by_name(base: Path, tmp_path: Path) -> None:
    assert run(base, tmp_path / "out", "--best-of", 2, "--reward", "quality=2") == 0
    assert manifest(tmp_path / "out")[0]["best_of"]["reward"] == ["quality=2"]


@pytest.mark.parametrize("only_new", [False, True])
def test_it_goes_on_from_a_recording(
    base: Path, tmp_path: Path, bright: None, only_new: bool
) -> None:
    take = tmp_path / "take.wav"
    write(Clip(torch.randn(1, 6400).mul(0.1).clamp(-1, 1), 16000), take)
    options = ["--continue", take, "--best-of", 2, *BY] + (["--only-new"] if only_new else [])
    assert run(base, tmp_path / "out", *options) == 0
    (line,) = manifest(tmp_path / "out")
    made = read(tmp_path / "out" / line["file"])
    assert made.seconds == pytest.approx(0.3 if only_new else 0.7)
    assert line["given_seconds"] == 0.4 and line["recording"] == str(take)
    assert line.get("only_new", False) is only_new


def test_lines_with_adapters_seconds_and_seeds_of_their_own(
    base: Path, tmp_path: Path, bright: None
) -> None:
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text('{"prompt": "flute", "seconds": 0.2, "seed": 9, "count": 2}\n')
    assert run(base, tmp_path / "out", "--prompts", jobs, "--best-of", 2, *BY) == 0
    lines = manifest(tmp_path / "out")
    assert [line["best_of"]["first_seed"] for line in lines] == [0, 9, 10]
    assert [line["seconds"] for line in lines] == pytest.approx([0.3, 0.2, 0.2])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--best-of", 2], "--best-of needs a --reward"),
        (["--guided", 2], "--guided needs a --reward"),
        (BY, "--reward quality has nothing to choose from"),
        (["--best-of", 2, "--guided", 2, *BY], "two ways to choose"),
        (["--best-of", 0, *BY], "best-of 0 must be at least 1"),
        (["--guided", 0, *BY], "by 0 candidates"),
        (["--guided", 2, "--every", 0, *BY], "every 0 seconds"),
        (["--guided", 2, "--strength", -1, *BY], "strength -1"),
        (["--best-of", 2, "--reward", "beauty"], "reward 'beauty' is not known"),
        (["--best-of", 2, "--reward", "quality=loud"], "weight 'loud'"),
        (["--best-of", 2, "--reward", "audio_alignment"], "needs --reference"),
        (["--best-of", 2, "--stream", *BY], "--stream is heard while it is made"),
        (["--best-of", 2, "--seconds", 12, *BY], "12 seconds, what is continued included"),
    ],
)
def test_bad_options_are_one_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list, says: str
) -> None:
    assert run(base, tmp_path / "out", *options) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("musictune: error: ") and says in said
    assert not (tmp_path / "out").exists()


def test_a_gap_is_not_chosen_by_reward(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    take = tmp_path / "take.wav"
    write(Clip(torch.randn(1, 32000).mul(0.1).clamp(-1, 1), 16000), take)
    options = ["--infill", take, "--gap", "0.5:0.8", "--best-of", 2, *BY]
    assert run(base, tmp_path / "out", *options) == 2
    assert "--infill chooses by what follows the gap" in capsys.readouterr().err


def test_a_reward_that_fails_later_keeps_what_is_done(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[int] = []

    def reward(clips: Sequence[Clip]) -> Tensor:
        calls.append(len(clips))
        return torch.full((len(clips),), math.nan if len(calls) > 1 else 1.0)

    monkeypatch.setattr(rewards, "load_reward", lambda names, **given: reward)
    assert run(base, tmp_path / "out", "--count", 3, "--best-of", 2, *BY) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the reward gave nan" in error and "1 of 3 clips are kept" in error
    assert len(manifest(tmp_path / "out")) == 1
    calls.append(0)
    assert run(base, tmp_path / "none", "--best-of", 2, *BY) == 1
    assert not (tmp_path / "none").exists()


def test_values_that_are_not_known_are_null_in_the_manifest(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.tensor([-math.inf, 0.5])
    monkeypatch.setattr(rewards, "load_reward", lambda names, **given: lambda clips: values)
    assert run(base, tmp_path / "out", "--best-of", 2, *BY) == 0
    assert manifest(tmp_path / "out")[0]["best_of"]["rewards"] == [None, 0.5]


def test_choosing_counts_its_candidates() -> None:
    assert Choosing(("quality",), best_of=5).candidates == 5
    assert Choosing(("quality",), guided=3).candidates == 3
