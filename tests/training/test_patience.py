"""A run that stops early: when, why, and at the same step after an interruption."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.base import Reward
from musictune.models.musicgen import MusicGen
from musictune.training.best import KeepBest
from musictune.training.callbacks import AfterStep, read_metrics
from musictune.training.loop import Interrupted
from musictune.training.recipe import load_recipe
from musictune.training.run import Result, tune
from musictune.training.run_folder import working_folder
from musictune.training.settings import TrainingSettings
from musictune.training.stepped import Stepped

pytestmark = pytest.mark.usefixtures("unpainted")

PEAK_AT_2 = (0.2, 0.5, 0.9, 0.1, 0.9, 0.3, 0.95)
"""Audio alignment at steps 0 to 6: the fourth is as good as the second, not better."""


class Curve(AfterStep):
    """Judges that answer by the step alone, and may press Ctrl-C after a step."""

    def __init__(self, audio: Sequence[float], stop: int | None = None) -> None:
        self.audio = audio
        self.stop = stop
        self.now = 0

    def on_train_batch_start(self, trainer: object, pl_module: Stepped, *_: object) -> None:
        self.now = pl_module.step + 1

    def after_step(self, trainer: object, module: Stepped) -> None:
        if module.step == self.stop:
            signal.raise_signal(signal.SIGINT)

    def judges(self, held_out: Sequence[Clip]) -> tuple[Reward, Reward]:
        def closeness(clips: Sequence[Clip]) -> Tensor:
            return torch.full((len(clips),), self.audio[self.now])

        return closeness, lambda clips: torch.full((len(clips),), 0.5)


def run(
    clips: Path, out: Path, curve: Curve, *, resume: bool = False, **training: object
) -> Result:
    values = {
        "steps": 6, "batch": 2, "seconds": 1.0, "preview_seconds": 0.1, "lr": 0.02, "keep": "best",
        "checkpoint_every": 1, "score_every": 1, "score_seeds": 1, "patience": 2,
    } | training  # fmt: skip
    overrides = {f"training.{key}": value for key, value in values.items()}
    overrides |= {"run.clips": str(clips), "run.concept": "zorblax", "run.class_word": "piano"}
    return tune(
        MusicGen.toy(), clips, load_recipe((), [], overrides, "lora"), out, resume=resume,
        judges=curve.judges, callbacks=[curve],
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(clips, tmp_path_factory.mktemp("whole") / "run", Curve(PEAK_AT_2)).folder


def test_it_stops_after_so_many_scores_without_a_better_one(whole: Path) -> None:
    rows = read_metrics(whole / "metrics.csv")
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3, 4]
    reason = "no better than step 2 in 2 scored previews in a row"
    assert [row["stopped"] for row in rows] == ["", "", "", "", reason]
    assert rows[-1]["held_out_loss"]
    card = (whole / "README.md").read_text()
    assert f"stopped early, after step 4 of 6: {reason}" in card
    assert "| kept step | 2 |" in card
    assert not working_folder(whole).exists()


@pytest.mark.parametrize(
    ("audio", "settings", "last"),
    [
        (PEAK_AT_2, {"patience": 0}, 6),
        (PEAK_AT_2, {"patience": 4}, 6),
        ((0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6), {}, 6),  # what step 0 scores is not to be beaten
        ((0.9, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0), {"patience": 1}, 2),
        ((0.2, 0.5, 0.9, 0.1, 0.4, 0.3, 0.2), {"score_every": 2, "patience": 1}, 4),
        ((0.2, 0.5, 0.4, 0.1, 0.4, 0.3, 0.2), {"score_every": 2, "steps": 5, "patience": 2}, 5),
    ],
)
def test_when_it_ends(
    audio: tuple[float, ...], settings: dict[str, int], last: int, tmp_path: Path
) -> None:
    values = {"steps": 6, "score_every": 1, "patience": 2, "held_out": 0.5} | settings
    module: Any = SimpleNamespace(
        settings=TrainingSettings(keep="best", **values),  # type: ignore[arg-type]
        start=0, step=0, figures={}, stopped="", write=lambda folder: folder.mkdir(exist_ok=True),
    )  # fmt: skip
    trainer: Any = SimpleNamespace(should_stop=False)
    curve = Curve(audio)
    clip = Clip(torch.zeros(1, 100), 16_000)
    keep = KeepBest(lambda: [clip], *curve.judges([]), tmp_path)
    keep.on_fit_start(trainer, module)
    while module.step < values["steps"] and not trainer.should_stop:
        module.step = curve.now = module.step + 1
        keep.after_step(trainer, module)
    assert module.step == last
    assert bool(module.stopped) == (last < values["steps"])


@pytest.mark.parametrize("stop", [3])
def test_a_resumed_run_stops_where_the_other_did(
    stop: int, clips: Path, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        run(clips, tmp_path / "run", Curve(PEAK_AT_2, stop))
    again = run(clips, tmp_path / "run", Curve(PEAK_AT_2), resume=True).folder
    one, other = (
        [row | {"seconds": ""} for row in read_metrics(folder / "metrics.csv")]
        for folder in (again, whole)
    )
    assert one == other
    for path in (whole / "adapter").rglob("*.safetensors"):
        assert (again / path.relative_to(whole)).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_ctrl_c_at_the_step_where_it_stops_lets_it_finish(clips: Path, tmp_path: Path) -> None:
    result = run(clips, tmp_path / "run", Curve(PEAK_AT_2, stop=4))
    assert result.facts["stopped_step"] == 4


def test_patience_without_scores_is_refused(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="patience 2 waits"):
        run(clips, tmp_path / "run", Curve(PEAK_AT_2), keep="last")
    assert not list(tmp_path.iterdir())
