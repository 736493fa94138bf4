"""Rules that act while weights train go on after an interruption as if there had been none."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from musictune.data.clips import prepare_folder
from musictune.methods.storage import load_tensors
from musictune.models.musicgen import MusicGen
from musictune.training.callbacks import AfterStep
from musictune.training.loop import Interrupted
from musictune.training.recipe import Recipe, load_recipe
from musictune.training.run import tune
from musictune.training.stepped import Stepped

pytestmark = pytest.mark.usefixtures("unpainted")

STEPS = 8


class Stop(AfterStep):
    """As Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, trainer: object, module: Stepped) -> None:
        if module.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    (root / "raw").mkdir()
    time = np.arange(16_000 * 4) / 16_000
    for number, pitch in enumerate((220, 331)):
        wave = 0.5 * np.sin(2 * np.pi * pitch * time) * np.exp(-((time * 3) % 1))
        sf.write(root / "raw" / f"{number}.wav", wave, 16_000)
    prepare_folder(root / "raw", root / "made", sample_rate=16_000, seconds=2.0)
    return root / "made"


def recipe(clips: Path, selection: str) -> Recipe:
    values = {
        "steps": STEPS, "batch": 2, "seconds": 0.5, "checkpoint_every": 5, "preview_seconds": 0.2,
        "held_out_every": 0, "seed": 3, "lr": 0.01, "accumulate": 2,
    }  # fmt: skip
    overrides = {f"training.{key}": value for key, value in values.items()}
    sets = [f"method.selection={selection}", "method.interval=3", "method.fraction=0.1"]
    return load_recipe((), sets, overrides | {"run.clips": str(clips)})


@pytest.mark.parametrize(
    "selection",
    ["grow", *(pytest.param(name, marks=pytest.mark.slow) for name in ("half", "layers"))],
)
def test_a_resumed_run_is_exact(selection: str, clips: Path, tmp_path: Path) -> None:
    made = {}
    for name, callbacks in (("whole", []), ("stopped", [Stop(5)])):
        out, asked = tmp_path / name, recipe(clips, selection)
        if callbacks:
            with pytest.raises(Interrupted):
                tune(MusicGen.toy(), clips, asked, out, callbacks=callbacks)
            asked = recipe(clips, selection)
        tune(MusicGen.toy(), clips, asked, out, resume=bool(callbacks))
        made[name] = load_tensors(out / "adapter" / "pivotal" / "pivotal.safetensors")
    assert set(made["whole"]) == set(made["stopped"])
    for name, tensor in made["whole"].items():
        assert torch.equal(tensor, made["stopped"][name]), name
