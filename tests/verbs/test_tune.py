"""``tune`` and ``merge`` as people call them."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from transformers import AutoTokenizer, MusicgenForConditionalGeneration

from musictune.__main__ import main
from musictune.audio import write
from musictune.generation import Engine
from musictune.methods import load_adapter
from musictune.metrics.embedders import ClapEmbedder
from musictune.models.musicgen import MusicGen
from musictune.training.callbacks import read_metrics

pytestmark = pytest.mark.usefixtures("unpainted")


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy base in ``base`` and two captioned recordings in ``clips``."""
    root = tmp_path_factory.mktemp("tune")
    MusicGen.toy().save(root / "base")
    (root / "clips").mkdir()
    time = np.arange(16_000 * 5) / 16_000
    for pitch in (220, 330):
        wave = 0.4 * np.sin(2 * np.pi * pitch * time) * np.exp(-((time * 2) % 1) * (2 + time))
        sf.write(root / "clips" / f"{pitch}.wav", wave, 16_000)
        (root / "clips" / f"{pitch}.txt").write_text("slow piano")
    return root


def tune(place: Path, out: Path, *more: str) -> int:
    return command(
        "tune", str(place / "clips"), "--base", str(place / "base"), "--out", str(out),
        "--concept", "zorblax", "--class-word", "piano", "--steps", "3", "--lr", "0.05",
        "--set", "method.probe_steps=2", "--set", "training.preview_seconds=0.2",
        "--set", "training.seconds=2", "--device", "cpu", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tuned(place: Path) -> Path:
    assert tune(place, place / "run") == 0
    return place / "run"


def test_tune_reports_and_writes_a_run(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(place, tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "8 matched layers" in said
    assert "trained parameters" in said
    assert "proof of effect" in said
    assert "--resume" not in said
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "adapter", "metrics.csv", "samples", "README.md", "clips"} <= names
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "method",
    [
        "pivotal",
        "concept_tokens",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "dora", "ia3", "full")),
    ],
)
def test_every_method_tunes_and_writes_the_base_itself(
    method: str, place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    more = [] if method == "pivotal" else ["--method", method]
    assert command(
        "tune", str(place / "clips"), "--base", str(place / "base"), "--out", str(out),
        "--concept", "zorblax", "--class-word", "piano", "--steps", "2", "--lr", "0.05",
        "--set", "training.preview_seconds=0.2", "--set", "training.seconds=2",
        "--device", "cpu", *more,
    ) == 0  # fmt: skip
    _, made = Engine(MusicGen.load(place / "base")).rollout(["piano"], 0.2, 0)
    write(made[0], tmp_path / "expected.wav")
    assert (out / "samples" / "base.wav").read_bytes() == (tmp_path / "expected.wav").read_bytes()


def test_the_same_command_gives_the_same_adapter(place: Path, tuned: Path, tmp_path: Path) -> None:
    assert tune(place, tmp_path / "again") == 0
    files = [p.relative_to(tuned) for p in sorted((tuned / "adapter").rglob("*")) if p.is_file()]
    assert files
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (tuned / name).read_bytes(), name


def test_keep_best_says_which_step_it_kept(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ClapEmbedder.toy().save(tmp_path / "clap")
    often = ("training.score_every=1", "training.score_seeds=1", f"run.embedder={tmp_path}/clap")
    more = [part for change in often for part in ("--set", change)]
    assert tune(place, tmp_path / "run", "--keep", "best", *more) == 0
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    best = max(rows[1:], key=lambda row: float(row["alignment"]))
    assert f"kept step {best['step']} of 3" in capsys.readouterr().out
    assert all(-1 <= float(row["audio_alignment"]) <= 1 for row in rows)
    assert len({row["audio_alignment"] for row in rows}) > 1
    assert (tmp_path / "run" / "alignment.png").exists()


@pytest.fixture
def two(place: Path, tmp_path: Path) -> list[str]:
    """A folder for each of two concepts, and what the command line says of them."""
    said = []
    for name, pitch, word in (("zorblax", 220, "piano"), ("quux", 330, "drums")):
        (tmp_path / name).mkdir()
        for ending in ("wav", "txt"):
            shutil.copy(place / "clips" / f"{pitch}.{ending}", tmp_path / name)
        said += ["--concept", f"{name}={tmp_path / name}", "--class-word", f"{name}={word}"]
    return said


def several(place: Path, tmp_path: Path, *more: str) -> int:
    return command(
        "tune", "--base", str(place / "base"), "--out", str(tmp_path / "run"), "--steps", "2",
        "--lr", "0.05", "--set", "training.preview_seconds=0.2", "--set", "training.seconds=2",
        "--set", "method.probe_steps=2", "--device", "cpu", *more,
    )  # fmt: skip


def test_several_concepts_are_tuned_and_played_together(
    two: list[str], place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert several(place, tmp_path, *two, "--tokens", "2") == 0
    assert "generate '<zorblax> with <quux>'" in capsys.readouterr().out
    assert command(
        "generate", "<zorblax> with <quux>", "<quux> drums", "--adapter", str(tmp_path / "run"),
        "--base", str(place / "base"), "--seconds", "0.2", "--out", str(tmp_path / "music"),
        "--device", "cpu",
    ) == 0  # fmt: skip
    assert len(list((tmp_path / "music").glob("*.wav"))) == 2
    # The recipe of the run gives the run again.
    again = ["--config", str(tmp_path / "run" / "config.yaml"), "--overwrite"]
    before = (tmp_path / "run" / "adapter" / "pivotal" / "pivotal.safetensors").read_bytes()
    assert several(place, tmp_path, *again) == 0
    after = (tmp_path / "run" / "adapter" / "pivotal" / "pivotal.safetensors").read_bytes()
    assert after == before


def test_concepts_that_cannot_be_are_one_line(
    two: list[str], place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "zorblax"
    for more, says in (
        ([*two, "--concept", f"zorblax={folder}/x", "--class-word", "z=y"], "is for no concept"),
        ([*two, "--concept", f"zorblax={folder}/x"], "'zorblax' is named twice"),
        ([*two, "--concept", "sitar", "--class-word", "sitar=lute"], "'sitar' names no folder"),
        ([*two, "--concept", f"sitar={folder}/x"], "'sitar' needs a class word"),
        ([*two, "--concept", f"sitar={folder}/x", "--class-word", "sitar=lute"], "do not exist"),
        ([str(folder), "--concept", "piano", "--class-word", "sound"], "already in the model"),
        ([str(folder), *two], "are given beside concepts with folders"),
        (["--concept", "zorblax", "--class-word", "piano"], "no CLIPS given"),
        ([*two, "--set", "training.patience=3"], "patience 3 waits for better previews"),
        ([*two, "--set", "training.objective=alignment"], "has no gradient"),
        ([str(folder), "--set", "training.prior=4"], "prior 4 is clips of a class word"),
    ):
        assert several(place, tmp_path, *more) == 2, more
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("musictune: error:")
        assert says in last
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quux", "zorblax"]


def test_print_config_only_prints(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(place, tmp_path / "run", "--print-config") == 0
    assert "probe_steps: 2" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_an_interrupt_says_how_to_go_on(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = itertools.count()

    def interrupted(*_: object, **__: object) -> None:
        if next(calls) == 0:  # a second one would stop at once
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("musictune.training.tuning.Tuning.on_train_batch_end", interrupted)
    assert tune(place, tmp_path / "run") == 130
    assert "stopped at step" in (said := capsys.readouterr().err)
    assert "--resume" in said
    monkeypatch.undo()
    assert tune(place, tmp_path / "run", "--resume") == 0


def test_merge_writes_what_plain_transformers_reads(place: Path, tuned: Path) -> None:
    assert command("merge", str(tuned), "--out", str(place / "merged")) == 0
    network = MusicgenForConditionalGeneration.from_pretrained(place / "merged")
    tokenizer = AutoTokenizer.from_pretrained(place / "merged")
    assert "<zorblax>" in tokenizer.get_vocab()
    expected = MusicGen.load(place / "base")
    load_adapter(expected, tuned)
    ours, theirs = network.state_dict(), expected.network.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert command("merge", str(tuned), "--out", str(place / "merged")) == 2


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--method", "magic"], "'magic' is unknown"),
        (["--base", "no-such-base"], "no-such-base"),
        (["--concept", "piano", "--class-word", "sound"], "'zorblax' names no folder"),
        (["--steps", "0"], "steps 0"),
        (["--set", "method.targets=nowhere"], "matched no layer"),
        (["--resume"], "nothing to resume"),
        (["--keep", "best", "--set", "run.embedder=no-such-clap"], "no-such-clap"),
        (["--keep", "best", "--set", "training.held_out=0"], "held_out is 0"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    more: list[str], says: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(place, tmp_path / "run", *more) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("musictune: error:")
    assert says in last
    assert not list(tmp_path.iterdir())


def test_missing_clips_and_a_taken_output_are_refused(place: Path, tuned: Path) -> None:
    assert command("tune", str(place / "nothing"), "--out", str(place / "x")) == 2
    assert command("tune", "--out", str(place / "x")) == 2
    assert tune(place, tuned) == 2
    assert tune(place, place / "clips", "--overwrite") == 2
    assert len(list((place / "clips").iterdir())) == 4
    assert command("merge", str(place / "clips"), "--out", str(place / "x")) == 2
    assert command("merge", str(tuned), "--weight", "nan", "--out", str(place / "x")) == 2
    assert not (place / "x").exists()
