"""The best adapter is kept: the right one, whole, and the same one after an interruption."""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from musictune.audio import Clip
from musictune.data.clips import prepare_folder
from musictune.data.concepts import Concept
from musictune.errors import CheckFailed, InputError
from musictune.methods.storage import load_tensors
from musictune.metrics.base import Reward, concept_score
from musictune.models.musicgen import MusicGen
from musictune.training.best import (
    COLUMNS,
    KeepBest,
    find_best,
    publish_best,
    scored_prompts,
)
from musictune.training.callbacks import AfterStep, read_metrics
from musictune.training.checkpoints import save_whole
from musictune.training.loop import Interrupted
from musictune.training.recipe import Recipe, load_recipe
from musictune.training.run import Result, tune
from musictune.training.run_folder import working_folder
from musictune.training.settings import TrainingSettings
from musictune.training.stepped import Stepped

pytestmark = pytest.mark.usefixtures("unpainted")

cosines = st.floats(-1, 1)

PEAK_AT_3 = (0.2, 0.5, 0.1, 0.9, 0.3, 0.4)
"""Audio alignment at steps 0 to 5."""


class Curve(AfterStep):
    """Judges that answer by the step alone; also a callback, to know the step and to save it."""

    def __init__(self, audio: Sequence[float], saves: Path | None = None) -> None:
        self.audio = audio
        self.saves = saves
        self.now = 0
        self.heard: list[list[Clip]] = []
        self.held_out: list[Clip] = []

    def on_train_batch_start(self, trainer: object, pl_module: Stepped, *_: object) -> None:
        self.now = pl_module.step + 1

    def after_step(self, trainer: object, module: Stepped) -> None:
        if self.saves:
            module.write(self.saves / str(module.step))

    def judges(self, held_out: Sequence[Clip]) -> tuple[Reward, Reward]:
        self.held_out = list(held_out)

        def closeness(clips: Sequence[Clip]) -> Tensor:
            self.heard.append(list(clips))
            return torch.full((len(clips),), self.audio[self.now])

        return closeness, lambda clips: torch.full((len(clips),), 0.5)


class Stop(AfterStep):
    """Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, trainer: object, module: Stepped) -> None:
        if module.step == self.step:
            signal.raise_signal(signal.SIGINT)


def prepared(root: Path, seconds: int) -> Path:
    """Two recordings of ``seconds`` each, cut into clips of at most two seconds."""
    (root / "raw").mkdir(parents=True)
    time = np.arange(16_000 * seconds) / 16_000
    for number, pitch in enumerate((220, 331)):
        pulse = np.exp(-((time * (number + 1)) % 1) * (3 + time))
        wave = 0.5 * np.sin(2 * np.pi * pitch * time) * pulse
        sf.write(root / "raw" / f"{number}.wav", wave, 16_000)
    prepare_folder(
        root / "raw", root / "made", sample_rate=16_000, seconds=2.0,
        concept=Concept("zorblax", "piano"), captioner=lambda _, subject: f"slow {subject}",
    )  # fmt: skip
    return root / "made"


def recipe(clips: Path, **training: object) -> Recipe:
    values = {
        "steps": 5, "batch": 2, "seconds": 1.0, "preview_seconds": 0.1, "lr": 0.01, "seed": 3,
        "held_out_every": 2, "checkpoint_every": 2, "keep": "best", "score_every": 1,
        "score_seeds": 1,
    } | training  # fmt: skip
    overrides = {f"training.{key}": value for key, value in values.items()}
    overrides |= {"run.clips": str(clips), "run.concept": "zorblax", "run.class_word": "piano"}
    return load_recipe((), ["method.probe_steps=2", "method.rounds=1"], overrides)


def run(
    clips: Path, out: Path, curve: Curve, *more: AfterStep, resume: bool = False, **training: object
) -> Result:
    return tune(
        MusicGen.toy(), clips, recipe(clips, **training), out, resume=resume,
        judges=curve.judges, callbacks=[curve, *more],
    )  # fmt: skip


def learned(folder: Path) -> dict[str, Tensor]:
    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted((folder / "adapter").rglob("*.safetensors"))
        for name, tensor in load_tensors(path).items()
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def figures(folder: Path) -> list[dict[str, str]]:
    rows = read_metrics(folder / "metrics.csv")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("clips"), 6)


@pytest.fixture(scope="module")
def whole(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Curve]:
    root = tmp_path_factory.mktemp("whole")
    curve = Curve(PEAK_AT_3, root / "steps")
    return run(clips, root / "run", curve), curve


def test_the_adapter_of_the_best_step_is_kept(whole: tuple[Result, Curve]) -> None:
    result, curve = whole
    assert curve.saves is not None
    assert result.facts["kept_step"] == 3
    assert same(learned(result.folder), learned(curve.saves / "3"))
    assert not same(learned(result.folder), learned(curve.saves / "5"))
    assert not (result.folder / "checkpoints").exists()


def test_the_curve_is_in_the_figures_the_plot_and_the_card(whole: tuple[Result, Curve]) -> None:
    result, _ = whole
    rows = read_metrics(result.folder / "metrics.csv")
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3, 4, 5]
    audio = [float(row["audio_alignment"]) for row in rows]
    assert audio == pytest.approx(PEAK_AT_3)
    for row in rows:
        expected = product(float(row["audio_alignment"]), 0.5)
        assert float(row["alignment"]) == pytest.approx(expected)
        assert float(row["alignment_error"]) == pytest.approx(0, abs=1e-12)
        assert row["held_out_loss"], "what is scored has its loss beside it"
    assert result.facts["alignment_before"] == round(product(0.2, 0.5), 4)
    assert result.facts["alignment_last"] == round(product(0.4, 0.5), 4)
    card = (result.folder / "README.md").read_text()
    assert "kept: step 3" in card
    assert (result.folder / "alignment.png").stat().st_size > 0
    assert (result.folder / "losses.png").stat().st_size > 0
    kept_loss = round(float(rows[3]["held_out_loss"]), 4)
    assert f"| held out loss after | {kept_loss} |" in card


def test_previews_are_the_same_prompts_and_read_as_the_class_word(
    whole: tuple[Result, Curve],
) -> None:
    _, curve = whole
    assert len(curve.heard) == 6
    captions = [[clip.caption for clip in clips] for clips in curve.heard]
    assert all(texts == captions[0] for texts in captions)
    assert captions[0][0] == "piano"
    assert len(set(captions[0])) == 4
    assert not any("zorblax" in text for text in captions[0])
    assert len(curve.held_out) == 1
    # Weights move, so the same prompt at the same seed comes to sound different.
    assert not torch.equal(curve.heard[0][0].wave, curve.heard[-1][0].wave)


def test_scoring_changes_nothing_in_training(
    whole: tuple[Result, Curve], clips: Path, tmp_path: Path
) -> None:
    result, curve = whole
    assert curve.saves is not None
    last = tune(MusicGen.toy(), clips, recipe(clips, keep="last"), tmp_path / "run")
    assert same(learned(last.folder), learned(curve.saves / "5"))
    losses = [row["loss"] for row in read_metrics(last.folder / "metrics.csv")]
    assert losses == [row["loss"] for row in read_metrics(result.folder / "metrics.csv")]
    assert "alignment" not in figures(last.folder)[0]
    assert not (last.folder / "alignment.png").exists()


@pytest.mark.parametrize("step", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_ctrl_c_and_resume_keep_the_same_adapter(
    step: int, whole: tuple[Result, Curve], clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    if step < 5:
        with pytest.raises(Interrupted, match="--resume"):
            run(clips, out, Curve(PEAK_AT_3), Stop(step))
    else:
        with pytest.raises(RuntimeError, match="unforeseen"):
            run(clips, out, Curve(PEAK_AT_3), Stop(step), AfterTheEnd())
    result = run(clips, out, Curve(PEAK_AT_3), resume=True)
    assert result.facts["kept_step"] == 3
    assert same(learned(out), learned(whole[0].folder))
    assert figures(out) == figures(whole[0].folder)


class AfterTheEnd(AfterStep):
    """Something goes wrong when all steps are done."""

    def on_train_end(self, trainer: object, pl_module: object) -> None:
        raise RuntimeError("unforeseen")


def test_stopped_at_once_between_a_new_best_and_its_checkpoint(
    whole: tuple[Result, Curve], clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(clips, out, Curve(PEAK_AT_3), Stop(3), Stop(3))
    # What was best up to the checkpoint is gone, and what is best is newer than it.
    left = {path.name for path in (working_folder(out) / "checkpoints").iterdir()}
    assert left == {"step-000002", "best-000003"}
    run(clips, out, Curve(PEAK_AT_3), resume=True)
    assert same(learned(out), learned(whole[0].folder))
    assert figures(out) == figures(whole[0].folder)


def test_the_untrained_start_is_never_kept_and_said_to_be_better(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = Curve((0.9, 0.1, 0.3, 0.2))
    result = run(clips, tmp_path / "run", curve, steps=3)
    assert result.facts["kept_step"] == 2
    assert "no scored step sounds closer than the untrained step 0" in capsys.readouterr().err


def test_of_equals_the_first_is_kept_and_the_last_step_is_scored(
    clips: Path, tmp_path: Path
) -> None:
    curve = Curve((0.1, 0.9, 0.4, 0.9, 0.4, 0.4))
    result = run(clips, tmp_path / "run", curve, score_every=2)
    rows = read_metrics(result.folder / "metrics.csv")
    assert [int(row["step"]) for row in rows if row["alignment"]] == [0, 2, 4, 5]
    assert result.facts["kept_step"] == 2


def test_a_score_that_is_no_number_stops_the_run(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="step 1 score nan"):
        run(clips, tmp_path / "run", Curve((0.1, math.nan)))
    assert not list(tmp_path.iterdir())


def test_nothing_to_hold_out_is_refused_at_once(tmp_path: Path) -> None:
    few = prepared(tmp_path / "few", 2)
    with pytest.raises(InputError, match=r"of 2 none can be held out; give at least 4 clips"):
        run(few, tmp_path / "run", Curve(PEAK_AT_3))
    assert [path.name for path in tmp_path.iterdir()] == ["few"]


def test_judges_are_needed(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="judges"):
        tune(MusicGen.toy(), clips, recipe(clips), tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"keep": "first"}, "must be last or best"),
        ({"keep": "best", "held_out": 0.0}, "held_out is 0"),
        ({"score_every": 0}, "score_every 0"),
        ({"score_seeds": 0}, "score_seeds 0"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        TrainingSettings(**values)  # type: ignore[arg-type]


def kept(folder: Path, step: int, value: float) -> Path:
    target = folder / f"best-{step:06d}"

    def write(place: Path) -> None:
        (place / "adapter").mkdir()
        (place / "adapter" / "adapter.json").write_text(f"{step}")

    save_whole(target, write, {"step": step, "alignment": value})
    return target


def test_a_damaged_one_is_passed_over_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path, 20, 0.25)
    damaged = kept(tmp_path, 40, 0.5)
    (damaged / "adapter" / "adapter.json").write_text("41")
    best = find_best(tmp_path)
    assert best is not None
    assert (best.step, best.alignment) == (20, 0.25)
    assert "best-000040 is damaged" in capsys.readouterr().err
    assert publish_best(tmp_path, tmp_path / "adapter") == best
    assert (tmp_path / "adapter" / "adapter.json").read_text() == "20"


def test_none_left_is_an_error(tmp_path: Path) -> None:
    assert find_best(tmp_path / "nowhere") is None
    (tmp_path / "best-000002").mkdir()
    with pytest.raises(InputError, match="missing or damaged"):
        publish_best(tmp_path, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def product(audio: float, text: float) -> float:
    """``alignment`` of one clip."""
    return float(concept_score(torch.tensor([audio]).double(), torch.tensor([text]).double()))


def test_alignment_in_closed_form() -> None:
    audio, text = torch.tensor([1.0, 0.0, -1.0, 1.0, 0.2]), torch.tensor([1.0, 0.0, 1.0, -1.0, 0.6])
    expected = torch.tensor([1, 0.25, 0, 0, 0.6 * 0.8])
    torch.testing.assert_close(concept_score(audio, text), expected)


def test_the_score_is_the_mean_over_previews_with_its_standard_error() -> None:
    made = [Clip(torch.full((1, 10), value), 16_000) for value in (0.1, 0.2, 0.6)]

    def loudness(clips: Sequence[Clip]) -> Tensor:
        return torch.stack([clip.wave.mean() for clip in clips])

    def ones(clips: Sequence[Clip]) -> Tensor:
        return torch.ones(len(clips))

    scored = KeepBest(lambda: made, loudness, ones, Path()).score(0)
    values = np.array([1.1, 1.2, 1.6]) / 2
    error = values.std(ddof=1) / math.sqrt(3)
    expected = dict(zip(COLUMNS, (0.3, 1.0, values.mean(), error), strict=True))
    assert scored == pytest.approx(expected)
    assert "alignment_error" not in KeepBest(lambda: made[:1], loudness, ones, Path()).score(0)


@given(cosines, cosines)
def test_alignment_is_a_share_and_the_sound_counts_as_the_text_does(a: float, t: float) -> None:
    assert 0 <= product(a, t) <= 1
    assert product(a, t) == product(t, a)


@given(cosines, cosines, st.floats(-1, 0.99))
def test_alignment_rises_with_either_cosine_everywhere(a: float, b: float, other: float) -> None:
    low, high = sorted((a, b))
    assert product(low, other) <= product(high, other)
    if high - low > 1e-6 and other > -0.99:
        assert product(low, other) < product(high, other)


@given(st.floats(-1, -0.01), st.floats(-1, -0.01))
def test_two_negative_cosines_are_no_praise(a: float, t: float) -> None:
    assert product(a, t) < product(0, 0)


def test_prompts_to_score() -> None:
    concept = Concept("zorblax", "piano")
    named = scored_prompts("", concept, ["never used"])
    assert len(named) == len(set(named)) == 4
    assert all("<zorblax> piano" in prompt for prompt in named)
    mine = scored_prompts("<zorblax> in a hall", concept, [])
    assert mine == ["<zorblax> in a hall", *named[:3]]
    assert scored_prompts("", None, ["slow piano", "", "slow piano", "jazz"]) == [
        "slow piano",
        "jazz",
    ]
    assert len(scored_prompts("", None, [str(i) for i in range(9)])) == 4
    with pytest.raises(InputError, match=r"run\.prompt"):
        scored_prompts("", None, [""])
