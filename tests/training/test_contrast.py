"""Runs that teach a CLAP captions: what they leave, what they measure, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from musictune import audio
from musictune.data.captioned import read_captioned
from musictune.errors import InputError
from musictune.methods import attach_adapter
from musictune.methods.storage import load_tensors
from musictune.metrics.embedders import ClapEmbedder
from musictune.models.contrastive import Contrastive
from musictune.training.callbacks import AfterStep, read_metrics
from musictune.training.contrast import tune_contrast
from musictune.training.contrast_recipe import ContrastRecipe, load_contrast_recipe
from musictune.training.contrast_scores import Searched, Sequences, kept
from musictune.training.loop import Interrupted
from musictune.training.run_folder import Result, working_folder
from musictune.training.stepped import Stepped

pytestmark = pytest.mark.usefixtures("unpainted")

RATE = 8000
WORDS = ("low hum", "middle tone", "high whistle", "noise", "two tones")


def sound(kind: int, seconds: float, random: np.random.Generator) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = (120.0, 600.0, 2800.0, 0.0, 300.0)[kind] * random.uniform(0.95, 1.05)
    wave = 0.3 * np.sin(2 * np.pi * pitch * time)
    if kind == 3:
        wave = 0.2 * random.standard_normal(len(time))
    if kind == 4:
        wave += 0.3 * np.sin(2 * np.pi * 7 * pitch * time)
    return np.asarray(wave + 0.005 * random.standard_normal(len(time)))


def folder_of(root: Path, count: int, seconds: float = 1.0, seed: int = 0) -> Path:
    """An AudioFolder with ``count`` recordings of each sound."""
    random = np.random.default_rng(seed)
    (root / "audio").mkdir(parents=True)
    lines = []
    for number in range(count):
        for kind, words in enumerate(WORDS):
            name = f"audio/{kind}-{number}.wav"
            sf.write(root / name, sound(kind, seconds, random), RATE)
            row = {"file_name": name, "text": words, "captions": [words, f"a {words}"]}
            lines.append(json.dumps(row))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("data") / "clips", 4)


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("data") / "general", 1, seed=9)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "clap"
    Contrastive.toy().save(folder)
    return folder


def recipe(data: Path, base: Path, method: str = "lora", **changes: object) -> ContrastRecipe:
    values: dict[str, object] = {
        "run.clips": str(data), "run.base": str(base), "training.steps": 6, "training.batch": 8,
        "training.warmup": 1, "training.score_every": 3, "training.held_out": 0.4,
        "training.lr": 0.01, "run.sequences": 6,
    }  # fmt: skip
    given = {key.replace("__", "."): value for key, value in changes.items()}
    return load_contrast_recipe(overrides=values | given, method=method)


@pytest.fixture(scope="module")
def finished(
    data: Path, general: Path, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    made = recipe(
        data, base, training__steps=30, training__score_every=10,
        run__stages=["clips", "several", "order"], run__retention=str(general),
    )  # fmt: skip
    return tune_contrast(made, tmp_path_factory.mktemp("out") / "run", device="cpu")


def test_a_run_leaves_what_every_run_does_and_a_plain_clap(finished: Result) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert {"adapter", "config.yaml", "metrics.csv", "losses.png", "README.md", "clap"} <= names
    assert "checkpoints" not in names
    assert json.loads((finished.folder / "results.json").read_text()) == finished.facts
    assert read_metrics(finished.folder / "metrics.csv")[-1]["step"] == "30"
    card = (finished.folder / "README.md").read_text()
    assert "clap" in card
    assert "| map at 10 |" not in card
    assert "text to audio map at 10" in card


def test_the_held_out_loss_falls(finished: Result) -> None:
    assert finished.facts["held_out_kept"] < finished.facts["held_out_before"]


def test_before_is_the_base_and_after_is_what_clap_holds(
    finished: Result, base: Path, general: Path
) -> None:
    clips = read_captioned(general)
    for place, when in ((base, "before"), (finished.folder / "clap", "after")):
        model = Contrastive.load(place)
        found = Searched(model, clips).figures(model)
        for name, score in finished.facts[when]["retention"].items():
            assert found[name].get("value") == pytest.approx(score.get("value"), abs=1e-6)


def test_the_adapter_and_the_folded_clap_place_alike(finished: Result, base: Path) -> None:
    live, folded = Contrastive.load(base), Contrastive.load(finished.folder / "clap")
    attach_adapter(live, finished.folder / "adapter")
    for model in (live, folded):
        model.train(False)
    assert torch.allclose(live.text_points(WORDS), folded.text_points(WORDS), atol=1e-5)
    assert not torch.allclose(
        live.text_points(WORDS), Contrastive.load(base).text_points(WORDS), atol=1e-3
    )


def test_retention_is_after_over_before() -> None:
    before = {"a_recall_at_1": {"value": 0.5}, "median_rank": {"value": 3.0}, "b": {"reason": ""}}
    after = {"a_recall_at_1": {"value": 0.4}, "median_rank": {"value": 4.0}, "b": {"reason": ""}}
    assert kept(before, after) == {"a_recall_at_1": pytest.approx(0.8)}


def test_stages_share_the_steps(data: Path, base: Path) -> None:
    halves = recipe(data, base, training__steps=7, run__stages=["several", "order"])
    assert halves.passes == [("several", 3), ("order", 4)]
    given = recipe(
        data, base, training__steps=7, run__stages=["several", "order"], run__stage_steps=[2, 5],
        training__accumulate=2,
    )  # fmt: skip
    assert given.passes == [("several", 4), ("order", 10)]
    with pytest.raises(InputError, match="make 9 steps"):
        recipe(data, base, run__stages=["several", "order"], run__stage_steps=[4, 5])


class StopAfter(AfterStep):
    def __init__(self, step: int) -> None:
        self.at = step

    def after_step(self, trainer: object, module: Stepped) -> None:
        if module.step == self.at:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_run_goes_on_to_the_same_bit(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(data, base, run__stages=["clips", "order"])
    whole = tune_contrast(made, tmp_path / "whole", device="cpu", report=False)
    from musictune.training import contrast as module

    plain = module.fit
    monkeypatch.setattr(module, "fit", lambda *args: plain(*args[:4], [*args[4], StopAfter(4)]))
    with pytest.raises(Interrupted, match="--resume"):
        tune_contrast(made, tmp_path / "parts", device="cpu", report=False)
    assert (working_folder(tmp_path / "parts") / "checkpoints" / "step-000004").is_dir()
    monkeypatch.setattr(module, "fit", plain)
    parts = tune_contrast(made, tmp_path / "parts", device="cpu", resume=True, report=False)
    file = "adapter/peft/adapter_model.safetensors"
    one, other = (load_tensors(run.folder / file) for run in (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.facts["after"] == parts.facts["after"]


@pytest.mark.parametrize(
    ("method", "tower"),
    [
        ("bottleneck", "audio"), ("pivotal", "audio"), ("full", "audio"), ("ssf", "audio"),
        ("ssf", "text"), ("bitfit", "text"), ("bottleneck", "text"), ("lora", "text"),
    ],
)  # fmt: skip
def test_methods_change_the_tower_that_they_are_given(
    method: str, tower: str, data: Path, base: Path, tmp_path: Path
) -> None:
    made = recipe(
        data, base, method, run__tower=tower, training__steps=2, training__keep="last",
        training__held_out=0.0,
    )  # fmt: skip
    result = tune_contrast(made, tmp_path / "run", device="cpu", report=False)
    model, plain = Contrastive.load(base, tower=tower), Contrastive.load(base)  # type: ignore[arg-type]
    attach_adapter(model, result.folder / "adapter")
    model.train(False)
    features = [model.hear(audio.read(clip.path)) for clip in read_captioned(data)[:5]]
    same = [
        torch.allclose(model.audio_points(features), plain.audio_points(features), atol=1e-6),
        torch.allclose(model.text_points(WORDS), plain.text_points(WORDS), atol=1e-6),
    ]
    assert same == [tower == "text", tower == "audio"]
    assert (result.folder / "clap").is_dir() == result.facts["clap"]
    assert result.facts["clap"] == (method != "bottleneck")


@pytest.mark.parametrize("method", ["prefix", "prompt_tuning", "linear_probe", "concept_tokens"])
def test_methods_that_reach_into_attention_or_heads_are_refused(
    method: str, data: Path, base: Path
) -> None:
    with pytest.raises(InputError):
        recipe(data, base, method)


def test_a_model_that_hears_no_order_is_at_chance(data: Path, base: Path) -> None:
    class Deaf(Contrastive):
        def audio_points(self, features: object) -> torch.Tensor:
            return torch.ones(1, 8).expand(len(features), -1)  # type: ignore[arg-type]

    model = Deaf.load(base)
    found = Sequences(model, read_captioned(data), 6, 0).figures(model)
    assert found["order_swap"]["value"] == 0.5
    assert found["order_swap_unseen_wordings"]["value"] == 0.5


@pytest.mark.slow
def test_a_real_clap_of_a_run_is_an_embedder(data: Path, tmp_path: Path) -> None:
    made = load_contrast_recipe(
        overrides={
            "run.clips": str(data), "training.steps": 1, "training.batch": 4,
            "training.held_out": 0.0, "training.keep": "last", "training.lr": 1e-4,
        },
        method="lora",
    )  # fmt: skip
    result = tune_contrast(made, tmp_path / "run", device="cpu", report=False)
    tuned, own = ClapEmbedder.load(result.folder / "clap"), ClapEmbedder.load()
    assert tuned.window_seconds == own.window_seconds
    clip = audio.read(read_captioned(data)[0].path)
    model = Contrastive.load(result.folder / "clap")
    heard = model.audio_points([model.hear(clip)])[0].numpy()
    assert np.allclose(tuned.hear(clip)[0], heard, atol=1e-5)
    assert not np.allclose(own.hear(clip)[0], heard, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"training__batch": 1}, "batch 1 "),
        ({"training__batch": 6, "run__stages": ["order"]}, "divisible by 4"),
        ({"run__stages": ["backwards"]}, "several, order"),
        ({"run__stages": []}, "one or more"),
        ({"run__tower": "bell"}, "tower"),
        ({"run__sequences": 0}, "sequences 0"),
        ({"training__optimizer": "mezo"}, "for music"),
        ({"training__steps": 1, "run__stages": ["several", "order"]}, "too few"),
    ],
)
def test_recipes_that_cannot_be(
    changes: dict[str, object], says: str, data: Path, base: Path
) -> None:
    with pytest.raises(InputError, match=says):
        recipe(data, base, **changes)


@pytest.mark.parametrize("name", ["contrast", "contrast_order"])
def test_the_recipes_of_the_repository_run(
    name: str, data: Path, base: Path, tmp_path: Path
) -> None:
    config = Path(__file__).parents[2] / "configs" / f"{name}.yaml"
    few = ["training.steps=2", "training.batch=4", "training.score_every=1", "training.lr=1e-4"]
    made = load_contrast_recipe([config], few, {"run.clips": str(data), "run.base": str(base)})
    result = tune_contrast(made, tmp_path / "run", device="cpu", report=False)
    assert result.facts["kept_step"] in (1, 2)
    assert load_contrast_recipe([result.folder / "config.yaml"]).text == made.text


def test_clips_that_cannot_be(data: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no CLIPS"):
        tune_contrast(recipe(Path(), base, run__clips=""), tmp_path / "run", device="cpu")
    long = tmp_path / "long"
    (long).mkdir()
    for name, text in (("a", "hum " * 100), ("b", "tone")):
        sf.write(long / f"{name}.wav", np.zeros(RATE), RATE)
        (long / f"{name}.txt").write_text(text)
    with pytest.raises(InputError, match="room for"):
        tune_contrast(
            recipe(long, base, training__held_out=0.0, training__keep="last"),
            tmp_path / "run",
            device="cpu",
        )
    (long / "a.txt").write_text("hum " * 24)
    with pytest.raises(InputError, match="two in a row"):
        tune_contrast(
            recipe(
                long, base, run__stages=["order"], training__held_out=0.0, training__keep="last"
            ),
            tmp_path / "run",
            device="cpu",
        )
    assert not (tmp_path / "run").exists()
