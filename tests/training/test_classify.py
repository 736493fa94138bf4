"""Runs that teach an encoder labels: what they leave, what they choose by, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from musictune.data.labelled import LabelledClips, read_labelled
from musictune.errors import InputError
from musictune.methods.storage import load_tensors
from musictune.methods.tuned_classifier import load_classifier
from musictune.models.classifier import Classifier
from musictune.training.callbacks import AfterStep, read_metrics
from musictune.training.classify import tune_classifier
from musictune.training.classify_recipe import ClassifyRecipe, load_classify_recipe
from musictune.training.loop import Interrupted
from musictune.training.run_folder import Result, working_folder
from musictune.training.stepped import Stepped

pytestmark = pytest.mark.usefixtures("unpainted")

RATE, COUNT = 16_000, 10
CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = ["bitfit", "classify_switches", "compacter", "convolution", "deep_prompt"]
RECIPES += ["shallow_prompt", "soft_moa"]
PITCHES = {"low": 150.0, "middle": 800.0, "high": 3500.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of ten tones each, half a second long, over noise."""
    root = tmp_path_factory.mktemp("data") / "tones"
    time, random = np.arange(RATE // 2) / RATE, np.random.default_rng(0)
    for label, pitch in PITCHES.items():
        (root / label).mkdir(parents=True)
        for number in range(COUNT):
            tone = np.sin(2 * np.pi * pitch * random.uniform(0.9, 1.1) * time)
            wave = 0.3 * tone + 0.02 * random.standard_normal(len(time))
            sf.write(root / label / f"{number}.wav", wave, RATE)
    return root


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "ast"
    Classifier.toy().save(folder)
    return folder


def recipe(data: Path, base: Path, method: str = "bottleneck", **changes: object) -> ClassifyRecipe:
    values: dict[str, object] = {
        "run.clips": str(data), "run.base": str(base), "run.epochs": 6, "training.batch": 4,
        "augment.time_mask": 4, "augment.frequency_mask": 2, "training.warmup": 2,
    }  # fmt: skip
    given = {key.replace("__", "."): value for key, value in changes.items()}
    return load_classify_recipe(overrides=values | given, method=method)


def learned(run: Path) -> dict[str, bytes]:
    files = sorted((run / "adapter").rglob("*.safetensors"))
    return {file.parent.name: file.read_bytes() for file in files}


def test_a_run_learns_and_leaves_what_can_be_used(data: Path, base: Path, tmp_path: Path) -> None:
    result = tune_classifier(recipe(data, base), tmp_path / "run", device="cpu")
    assert {p.name for p in result.folder.iterdir()} >= {
        "adapter", "config.yaml", "metrics.csv", "results.json", "README.md",
    }  # fmt: skip
    facts = json.loads((result.folder / "results.json").read_text())
    assert facts["test"]["accuracy"]["value"] >= 0.8  # chance is a third
    assert facts["labels"] == sorted(PITCHES)
    assert sum(facts["clips"].values()) == 3 * COUNT
    assert not (result.folder / "checkpoints").exists()
    model = load_classifier(result.folder)
    clips = read_labelled(data)
    sound = model.front.hear(_clip(clips, "high"))
    answer = model.probabilities([sound[: model.steps]])[0]
    assert model.labels[int(answer.argmax())] == "high"
    assert "tune" in (result.folder / "README.md").read_text()


def _clip(clips: LabelledClips, label: str):  # type: ignore[no-untyped-def]
    from musictune import audio

    return audio.read(next(e.path for e in clips.examples if e.labels == (label,)))


def test_the_best_step_is_chosen_by_validation_and_never_by_the_test(
    data: Path, base: Path, tmp_path: Path
) -> None:
    """The same run with other test clips, all of them wrong, ends in the same adapter."""
    clips = read_labelled(data)
    parts = ["train"] * 6 + ["validation"] * 2 + ["test"] * 2
    order = {e: parts[i % COUNT] for i, e in enumerate(clips.examples)}
    straight = _with_parts(clips, order, {})
    wrong = {"low": "high", "high": "middle", "middle": "low"}
    twisted = _with_parts(clips, order, wrong)
    runs = [
        tune_classifier(recipe(data, base), tmp_path / name, device="cpu", clips=given)
        for name, given in (("straight", straight), ("twisted", twisted))
    ]
    assert learned(runs[0].folder) == learned(runs[1].folder)
    assert runs[0].facts["test"] != runs[1].facts["test"]
    rows = [r for r in read_metrics(runs[0].folder / "metrics.csv") if r["validation_score"]]
    best = max(rows[1:], key=lambda row: float(row["validation_score"]))
    assert runs[0].facts["kept_step"] == int(best["step"])


def _with_parts(
    clips: LabelledClips,
    order: dict,
    wrong: dict[str, str],  # type: ignore[type-arg]
) -> LabelledClips:
    from dataclasses import replace

    changed = []
    for example, part in order.items():
        labels = example.labels
        if part == "test" and wrong:
            labels = (wrong[labels[0]],)
        changed.append(replace(example, split=part, labels=labels))
    return replace(clips, examples=tuple(changed))


class Interrupt(AfterStep):
    """Asks to stop as Ctrl-C does, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, trainer, module: Stepped) -> None:  # type: ignore[no-untyped-def]
        import os
        import signal

        if module.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("method", ["linear_probe", "convolution", "lora", "pivotal"])
def test_an_interrupted_run_goes_on_to_the_bit(
    method: str, data: Path, base: Path, tmp_path: Path
) -> None:
    changes = {"run.mask_patches": 0.2, "augment.mixup": 0.4, "run.epochs": 3}
    if method == "pivotal":
        changes |= {"method.probe_steps": 2, "method.rounds": 1}
    wanted = recipe(data, base, method, **changes)  # type: ignore[arg-type]
    whole = tune_classifier(wanted, tmp_path / "whole", device="cpu")
    again = recipe(data, base, method, **changes)  # type: ignore[arg-type]
    out = tmp_path / "halves"
    with pytest.raises(Interrupted, match="--resume"):
        tune_classifier(again, out, device="cpu", callbacks=[Interrupt(7)])
    assert not out.exists() and working_folder(out).is_dir()
    third = recipe(data, base, method, **changes)  # type: ignore[arg-type]
    ended = tune_classifier(third, out, device="cpu", resume=True)
    assert learned(ended.folder) == learned(whole.folder)
    assert ended.facts["test"] == whole.facts["test"]


def test_folds_give_mean_and_deviation_and_go_on_after_an_interruption(
    data: Path, base: Path, tmp_path: Path
) -> None:
    wanted = recipe(data, base, "linear_probe", run__folds=3, run__epochs=2)
    whole = tune_classifier(wanted, tmp_path / "whole", device="cpu")
    values = [fold["test"]["accuracy"]["value"] for fold in whole.facts["each"]]
    assert whole.facts["test_accuracy_mean"] == pytest.approx(np.mean(values))
    assert whole.facts["test_accuracy_deviation"] == pytest.approx(np.std(values, ddof=1))
    assert sum(fold["clips"]["test"] for fold in whole.facts["each"]) == 3 * COUNT
    assert [p.name for p in sorted(whole.folder.glob("fold-*"))] == ["fold-0", "fold-1", "fold-2"]
    out = tmp_path / "halves"
    with pytest.raises(Interrupted):
        tune_classifier(wanted, out, device="cpu", callbacks=[InterruptSecond()])
    ended = tune_classifier(wanted, out, device="cpu", resume=True)
    for fold in ("fold-0", "fold-1", "fold-2"):
        assert learned(ended.folder / fold) == learned(whole.folder / fold)


class InterruptSecond(AfterStep):
    """Asks to stop in the second fold."""

    seen = 0

    def on_fit_start(self, trainer, pl_module) -> None:  # type: ignore[no-untyped-def]
        self.seen += 1
        self._seen = 0

    def after_step(self, trainer, module: Stepped) -> None:  # type: ignore[no-untyped-def]
        import os
        import signal

        if self.seen == 2 and module.step == 2:
            os.kill(os.getpid(), signal.SIGINT)


def test_self_distillation_changes_the_base_that_the_run_keeps(
    data: Path, base: Path, tmp_path: Path
) -> None:
    wanted = recipe(data, base, "linear_probe", run__epochs=2, unfused__epochs=1)
    result = tune_classifier(wanted, tmp_path / "run", device="cpu")
    own = Classifier.load(result.folder / "base")
    before, after = Classifier.load(base).backbone, own.backbone
    moved = [
        name
        for name, p in before.named_parameters()
        if not torch.equal(p, after.get_parameter(name))
    ]
    assert moved
    assert load_classifier(result.folder).labels == tuple(sorted(PITCHES))


def test_few_shots_are_what_is_trained_on(data: Path, base: Path, tmp_path: Path) -> None:
    wanted = recipe(data, base, "linear_probe", run__shots=2, run__epochs=1)
    result = tune_classifier(wanted, tmp_path / "run", device="cpu")
    assert result.facts["clips"]["train"] == 6


def test_without_validation_the_last_epoch_is_kept(data: Path, base: Path, tmp_path: Path) -> None:
    wanted = recipe(data, base, "linear_probe", run__validation=0.0, run__epochs=1)
    result: Result = tune_classifier(wanted, tmp_path / "run", device="cpu")
    assert "kept_step" not in result.facts
    assert (result.folder / "adapter" / "adapter.json").is_file()
    assert load_tensors(result.folder / "adapter/linear_probe/linear_probe.safetensors")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run__epochs": 0}, "epochs 0"),
        ({"run__folds": 1}, "folds 1"),
        ({"run__validation": 1.0}, "validation 1.0"),
        ({"run__seconds": -1.0}, "seconds -1.0"),
        ({"run__head_lr": 0.0}, "head_lr 0.0"),
        ({"training__optimizer": "mezo"}, "mezo"),
        ({"augment__mixup": -1.0}, "mixup -1.0"),
    ],
)
def test_recipes_that_cannot_be_are_refused(
    changes: dict[str, object], said: str, data: Path, base: Path
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        recipe(data, base, **changes)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["concept_tokens", "prompt_tuning", "relative_bias"])
def test_methods_for_music_are_refused_before_anything_is_made(
    method: str, data: Path, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        tune_classifier(recipe(data, base, method), tmp_path / "run", device="cpu")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_finishes(name: str, data: Path, base: Path, tmp_path: Path) -> None:
    path = CONFIGS / f"{name}.yaml"
    text = path.read_text()
    assert len(text.splitlines()) < 40
    assert text.startswith("# musictune tune --task classify ")
    changes = {
        "run.clips": str(data), "run.base": str(base), "run.epochs": 1, "unfused.epochs": 1,
        "augment.time_mask": 4, "augment.frequency_mask": 2,
    }  # fmt: skip
    if "unfused" not in text:
        del changes["unfused.epochs"]
    recipe = load_classify_recipe([path], [], changes)
    result = tune_classifier(recipe, tmp_path / "run", device="cpu")
    assert 0 <= result.facts["test"]["accuracy"]["value"] <= 1


def test_every_shipped_recipe_is_run_by_a_test() -> None:
    found = {p.stem for p in CONFIGS.glob("*.yaml") if "--task classify" in p.read_text()}
    assert found == set(RECIPES)
