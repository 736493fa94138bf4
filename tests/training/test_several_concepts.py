"""Several sounds learned at once, and the base's own music kept in mind, on a toy."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from torch import Tensor

from musictune.data.clips import prepare_folder
from musictune.data.concepts import Concept
from musictune.errors import InputError
from musictune.generation import Engine
from musictune.methods import load_adapter
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.storage import load_tensors
from musictune.models.musicgen import MusicGen
from musictune.training.callbacks import AfterStep, read_metrics
from musictune.training.loop import Interrupted
from musictune.training.prior import prior_music
from musictune.training.recipe import Recipe, load_recipe
from musictune.training.run import tune
from musictune.training.settings import TrainingSettings
from musictune.training.stepped import Stepped
from musictune.training.stream import BatchStream
from musictune.training.tuning import Tuning

pytestmark = pytest.mark.usefixtures("unpainted")

ZORBLAX, QUUX = Concept("zorblax", "piano"), Concept("quux", "drums")


class Stop(AfterStep):
    """Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, trainer: object, module: Stepped) -> None:
        if module.step == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Prepared clips of two concepts, of unequal number."""
    root = tmp_path_factory.mktemp("clips")
    made = []
    for concept, pitch, seconds in ((ZORBLAX, 220, 12), (QUUX, 331, 8)):
        (root / f"{concept.name}-raw").mkdir()
        time = np.arange(16_000 * seconds) / 16_000
        wave = 0.5 * np.sin(2 * np.pi * pitch * time) * np.exp(-(time % 1) * (3 + time / 4))
        sf.write(root / f"{concept.name}-raw" / "a.wav", wave, 16_000)
        prepare_folder(
            root / f"{concept.name}-raw", root / concept.name, sample_rate=16_000, seconds=2.0,
            concept=concept, captioner=lambda _, subject: f"slow {subject}",
        )  # fmt: skip
        made.append(root / concept.name)
    return made


def recipe(folders: list[Path], **training: object) -> Recipe:
    values = {
        "steps": 4, "batch": 3, "seconds": 1.0, "preview_seconds": 0.2, "seed": 3, "lr": 0.02,
        "checkpoint_every": 2, "held_out_every": 2,
    } | training  # fmt: skip
    overrides: dict[str, object] = {f"training.{key}": value for key, value in values.items()}
    overrides["run.concept"] = [f"{path.name}={path}" for path in folders]
    overrides["run.class_word"] = ["zorblax=piano", "quux=drums"]
    return load_recipe((), ["method.probe_steps=2", "method.rounds=1"], overrides)


@pytest.fixture(scope="module")
def whole(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    return tune(MusicGen.toy(), None, recipe(folders, preview_every=2, prior=2), out).folder


def learned(folder: Path) -> dict[str, Tensor]:
    return {
        f"{path.name}/{name}": tensor
        for path in sorted((folder / "adapter").rglob("*.safetensors"))
        for name, tensor in load_tensors(path).items()
    }


def test_a_run_of_two_names_and_plays_both(whole: Path) -> None:
    names = {path.name for path in (whole / "samples").iterdir()}
    stems = {"base", "step-000002", "step-000004", "tuned"}
    assert names == {f"{stem}-{name}.wav" for stem in stems for name in ("zorblax", "quux")}
    card = (whole / "README.md").read_text()
    for word in ("# zorblax and quux", "`<zorblax>`", "`<quux>`", '"<zorblax> with <quux>"'):
        assert word in card
    assert "2 clips of the base's own of each class word" in card
    # Both words moved, each of them trained in every step.
    rows = learned(whole)["concept_tokens.safetensors/rows"]
    tokens = ConceptTokens([ZORBLAX, QUUX])
    tokens.attach(model := MusicGen.toy())
    start = model.text_encoder.get_input_embeddings().rows
    assert ((rows - start).abs().amax(1) > 0).all()


def test_one_the_other_and_both_can_be_asked_for(whole: Path) -> None:
    model = MusicGen.toy()
    assert load_adapter(model, whole) == [ZORBLAX, QUUX]
    prompts = ["<zorblax> piano", "<quux> drums", "<zorblax> with <quux>"]
    codes, _ = Engine(model).rollout(prompts, 0.4, [7, 7, 7])
    assert len({tuple(row.flatten().tolist()) for row in codes.codes}) == 3
    assert (
        model.tokens(["<zorblax> with <quux>"])[0].shape
        == model.tokens(["piano with drums"])[0].shape
    )


def test_a_resumed_run_of_two_is_exact(folders: list[Path], whole: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "run", recipe(folders, preview_every=2, prior=2)
    with pytest.raises(Interrupted):
        tune(MusicGen.toy(), None, asked, out, callbacks=[Stop(3)])
    asked = recipe(folders, preview_every=2, prior=2)
    tune(MusicGen.toy(), None, asked, out, resume=True)
    ours, theirs = learned(out), learned(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    rows = [read_metrics(folder / "metrics.csv") for folder in (out, whole)]
    for one, other in zip(*rows, strict=True):
        assert one | {"seconds": ""} == other | {"seconds": ""}
    assert all(float(row["prior_loss"]) > 0 for row in rows[0][1:])


def test_raw_recordings_of_two_are_prepared_apart(folders: list[Path], tmp_path: Path) -> None:
    raw = [path.with_name(f"{path.name}-raw") for path in folders]
    overrides = {
        "run.concept": [f"zorblax={raw[0]}", f"quux={raw[1]}"],
        "run.class_word": ["zorblax=piano", "quux=drums"], "training.steps": 1,
        "training.seconds": 2.0, "training.preview_seconds": 0.2, "training.lr": 0.1,
        "run.prompt": "<zorblax> with <quux>",
    }  # fmt: skip
    asked = load_recipe((), ["method.probe_steps=1", "method.rounds=1"], overrides)
    folder = tune(MusicGen.toy(), None, asked, tmp_path / "run").folder
    for name, other in (("zorblax", "quux"), ("quux", "zorblax")):
        text = (folder / "clips" / name / "metadata.jsonl").read_text()
        assert f"<{name}>" in text
        assert other not in text.replace("zorblax-raw", "").replace("quux-raw", "")
    # A prompt of one's own stands for all.
    assert {path.name for path in (folder / "samples").iterdir()} == {"base.wav", "tuned.wav"}


def test_a_lesson_without_clips_is_refused(tmp_path: Path) -> None:
    asked = load_recipe(overrides={"run.concept": "zorblax", "run.class_word": "piano"})
    with pytest.raises(InputError, match="no CLIPS given"):
        tune(MusicGen.toy(), None, asked, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_the_prior_is_the_bases_own_music_made_once(tmp_path: Path) -> None:
    settings = TrainingSettings(prior=7, seconds=0.4, seed=5)
    model = MusicGen.toy()
    first = prior_music(model, [ZORBLAX, QUUX], settings, tmp_path)
    assert [len(part) for part in first] == [7, 7]
    assert {text for texts in first[1].captions for text in texts} == {
        "drums", "a drums", "the drums", "drums music", "a recording of drums", "music with drums",
    }  # fmt: skip
    codes, _ = Engine(MusicGen.toy()).rollout(["piano"], 0.4, 1_000_005)
    assert torch.equal(first[0].codes[0], codes.codes[0])

    # Read again, not made again: another base would make other music.
    torch.nn.init.normal_(model.backbone.lm_heads[0].weight)
    again = prior_music(model, [ZORBLAX, QUUX], settings, tmp_path)
    assert all(torch.equal(a, b) for one, two in zip(first, again, strict=True)
               for a, b in zip(one.codes, two.codes, strict=True))  # fmt: skip
    path = tmp_path / "prior.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    anew = prior_music(MusicGen.toy(), [ZORBLAX, QUUX], settings, tmp_path)
    assert torch.equal(anew[1].codes[3], first[1].codes[3])
    other = prior_music(MusicGen.toy(), [QUUX], settings, tmp_path)
    assert [len(part) for part in other] == [7]
    assert prior_music(model, [QUUX], TrainingSettings(), tmp_path / "none") == []


def test_the_priors_loss_is_weighted_and_told_apart(tmp_path: Path) -> None:
    settings = TrainingSettings(prior=2, prior_weight=0.25, seconds=0.4)
    model, method = MusicGen.toy(), ConceptTokens.toy()
    prior = prior_music(model, [ZORBLAX], settings, tmp_path)
    own = prior_music(model, [QUUX], TrainingSettings(prior=2, seconds=0.4, seed=9), tmp_path)
    method.attach(model)
    module = Tuning(model, method, settings)
    assert module.columns == ("prior_loss",)
    batch = BatchStream(own, 3, 0, prior=prior).at(0)
    total = module.loss(batch)
    parts = module.parts
    assert float(total.detach()) == pytest.approx(
        parts["loss"] + 0.25 * parts["prior_loss"], rel=1e-6
    )
    assert module.loss(BatchStream(own, 3, 0).at(0)).item() == pytest.approx(
        parts["loss"], rel=1e-5
    )
