"""An interrupted run ends as an uninterrupted one, to the bit, whatever interrupted it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.data.clips import prepare_folder
from musictune.data.concepts import Concept
from musictune.errors import CheckFailed, InputError
from musictune.methods.storage import load_tensors
from musictune.models.musicgen import MusicGen
from musictune.training import checkpoints
from musictune.training.callbacks import AfterStep, read_metrics
from musictune.training.loop import Interrupted
from musictune.training.recipe import Recipe, load_recipe
from musictune.training.run import Result, tune
from musictune.training.run_folder import working_folder
from musictune.training.stepped import Stepped

pytestmark = pytest.mark.usefixtures("unpainted")

STEPS = 5


def tones(folder: Path) -> Path:
    folder.mkdir()
    time = np.arange(16_000 * 6) / 16_000
    for number, pitch in enumerate((220, 331)):
        pulse = np.exp(-((time * (number + 1)) % 1) * (3 + time))
        sf.write(folder / f"{number}.wav", 0.5 * np.sin(2 * np.pi * pitch * time) * pulse, 16_000)
    return folder


def said(clip: Clip, subject: str) -> str:
    return f"slow {subject}"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    concept = Concept("zorblax", "piano")
    prepare_folder(
        tones(root / "raw"), root / "made", sample_rate=16_000, seconds=2.0,
        concept=concept, captioner=said,
    )  # fmt: skip
    return root / "made"


def recipe(clips: Path, **training: object) -> Recipe:
    values = {
        "steps": STEPS, "accumulate": 2, "batch": 2, "seconds": 1.0, "checkpoint_every": 2,
        "preview_seconds": 0.2, "held_out_every": 2, "seed": 3, "lr": 0.01,
    } | training  # fmt: skip
    overrides = {f"training.{key}": value for key, value in values.items()}
    overrides |= {"run.clips": str(clips), "run.concept": "zorblax", "run.class_word": "piano"}
    return load_recipe((), ["method.probe_steps=2", "method.rounds=1"], overrides)


def run(clips: Path, out: Path, *callbacks: AfterStep, resume: bool = False) -> Result:
    return tune(
        MusicGen.toy(), clips, recipe(clips), out, resume=resume, callbacks=callbacks
    )  # fmt: skip


def learned(folder: Path) -> dict[str, Tensor]:
    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted((folder / "adapter").rglob("*.safetensors"))
        for name, tensor in load_tensors(path).items()
    }


def figures(folder: Path) -> list[dict[str, str]]:
    rows = read_metrics(folder / "metrics.csv")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    ours, theirs = learned(one), learned(other)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert figures(one) == figures(other)


@pytest.fixture(scope="module")
def whole(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(clips, tmp_path_factory.mktemp("whole") / "run").folder


class At(AfterStep):
    """Does something to the process once, after a step."""

    def __init__(self, step: int, signals: list[signal.Signals]) -> None:
        self.step = step
        self.signals = signals

    def after_step(self, trainer: object, module: Stepped) -> None:
        if module.step == self.step:
            for number in self.signals:
                os.kill(os.getpid(), number)


def test_a_run_is_whole_and_learns(whole: Path) -> None:
    for name in ("config.yaml", "adapter/adapter.json", "metrics.csv", "README.md", "losses.png"):
        assert (whole / name).stat().st_size > 0
    assert not (whole / "checkpoints").exists()
    assert not working_folder(whole).exists()
    rows = read_metrics(whole / "metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(STEPS + 1))
    held_out = [float(row["held_out_loss"]) for row in rows if row["held_out_loss"]]
    assert len(held_out) == 4
    assert held_out[-1] < held_out[0]
    assert "<zorblax>" in (whole / "README.md").read_text()


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 3, 4])
def test_ctrl_c_keeps_a_checkpoint_and_resume_is_exact(
    step: int, clips: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match=f"stopped at step {step} of {STEPS}.*--resume"):
        run(clips, out, At(step, [signal.SIGINT]))
    assert not out.exists()
    with pytest.raises(InputError, match="--resume"):
        run(clips, out)
    run(clips, out, resume=True)
    assert_same_run(out, whole)


def test_stopped_twice_is_exact_too(clips: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(clips, out, At(1, [signal.SIGTERM]))
    with pytest.raises(Interrupted):
        run(clips, out, At(3, [signal.SIGINT]), resume=True)
    run(clips, out, resume=True)
    assert_same_run(out, whole)


@pytest.mark.slow  # it goes on from what an interrupt leaves too
def test_a_killed_process_is_exact_too(clips: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    script = f"""
import importlib.util, pathlib, signal, sys, torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("resume", {__file__!r})
test = importlib.util.module_from_spec(spec)
sys.modules["resume"] = test
spec.loader.exec_module(test)
at = test.At(3, [signal.SIGKILL])
test.run(pathlib.Path({str(clips)!r}), pathlib.Path({str(out)!r}), at)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not out.exists()
    run(clips, out, resume=True)
    assert_same_run(out, whole)


def test_a_damaged_checkpoint_is_passed_over_aloud(
    clips: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(clips, out, At(3, [signal.SIGINT]))
    found = sorted((working_folder(out) / "checkpoints").glob("step-*"))
    assert [path.name for path in found] == ["step-000002", "step-000003"]
    moments = found[1] / "optimizer.pt"
    moments.write_bytes(moments.read_bytes()[:-100])
    run(clips, out, resume=True)
    assert "step-000003 is damaged; using the one before" in capsys.readouterr().err
    assert_same_run(out, whole)


def test_nothing_but_damaged_checkpoints_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "step-000001").mkdir()
    with pytest.raises(InputError, match="every checkpoint"):
        checkpoints.load_checkpoint(tmp_path)
    assert checkpoints.load_checkpoint(tmp_path / "none") is None


def test_resume_wants_the_same_recipe(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(InputError, match="nothing to resume"):
        run(clips, out, resume=True)
    with pytest.raises(Interrupted):
        run(clips, out, At(1, [signal.SIGINT]))
    other = recipe(clips, lr=0.5)
    with pytest.raises(InputError, match=r"lr: 0\.01"):
        tune(MusicGen.toy(), clips, other, out, resume=True)


def poisoned(after: int) -> MusicGen:
    """A model whose loss is no number from its ``after``-th training pass on."""
    model = MusicGen.toy()
    original, calls = model.nll, 0

    def nll(batch: object) -> Tensor:
        nonlocal calls
        calls += model.training
        return original(batch) * (float("nan") if calls > after else 1.0)  # type: ignore[arg-type]

    model.nll = nll  # type: ignore[method-assign, assignment]
    return model


def test_a_loss_that_is_no_number_names_step_and_last_checkpoint(
    clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(CheckFailed, match=r"loss became nan at step 4.*step-000002"):
        tune(poisoned(6), clips, recipe(clips), out)
    assert (working_folder(out) / "checkpoints" / "step-000002" / "adapter").is_dir()
    assert not out.exists()


def test_a_failure_without_checkpoint_leaves_nothing(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="no checkpoint yet"):
        tune(poisoned(1), clips, recipe(clips), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_an_adapter_without_effect_fails_the_run(clips: Path, tmp_path: Path) -> None:
    timid = recipe(clips, lr=1e-12, token_lr=1e-12, checkpoint_every=0)
    with pytest.raises(CheckFailed, match="changes nothing"):
        tune(MusicGen.toy(), clips, timid, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_previews_have_the_base_beside_them(clips: Path, tmp_path: Path) -> None:
    often = recipe(clips, preview_every=2, steps=2)
    folder = tune(MusicGen.toy(), clips, often, tmp_path / "run").folder
    names = {path.name for path in (folder / "samples").iterdir()}
    assert names == {"base.wav", "step-000002.wav", "tuned.wav"}
    base, tuned = (sf.read(folder / "samples" / f"{n}.wav")[0] for n in ("base", "tuned"))
    assert not np.array_equal(base, tuned)
