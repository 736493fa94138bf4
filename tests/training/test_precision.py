"""A base held in bf16: trained, played, proved and saved like any other; and weight decay."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from musictune.methods import load_adapter
from musictune.methods.base import trained_parameters
from musictune.methods.full import Full
from musictune.methods.pivotal import Pivotal
from musictune.methods.storage import load_tensors
from musictune.models.musicgen import MusicGen
from musictune.training.callbacks import AfterStep
from musictune.training.loop import Interrupted
from musictune.training.recipe import Recipe, load_recipe
from musictune.training.run import holds_in_bf16, tune
from musictune.training.settings import TrainingSettings
from musictune.training.stepped import Stepped
from musictune.training.tuning import Tuning

pytestmark = pytest.mark.usefixtures("unpainted")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def recipe(clips: Path, method: str, **training: object) -> Recipe:
    values = {
        "steps": 3, "batch": 2, "seconds": 1.0, "preview_seconds": 0.2, "lr": 0.05,
        "precision": "bf16", "preview_every": 3,
    } | training  # fmt: skip
    overrides = {f"training.{key}": value for key, value in values.items()}
    overrides |= {"run.clips": str(clips), "run.concept": "zorblax", "run.class_word": "piano"}
    changes = ["method.probe_steps=2", "method.rounds=1"] if method == "pivotal" else []
    return load_recipe((), changes, overrides, method)


@pytest.mark.parametrize("method", ["pivotal", "lora"])
def test_a_base_in_bf16_is_tuned_played_and_saved(method: str, clips: Path, tmp_path: Path) -> None:
    model = MusicGen.toy()
    whole = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    asked = recipe(clips, method)
    result = tune(model, clips, asked, tmp_path / "run")
    frozen = [p for p in model.backbone.parameters() if not p.requires_grad]
    assert all(p.dtype == torch.bfloat16 for p in frozen if p.is_floating_point())
    assert all(p.dtype == torch.float32 for p in trained_parameters(model).values())
    assert all(p.dtype == torch.float32 for p in model.text_encoder.parameters())
    saved = [
        tensor
        for path in (result.folder / "adapter").rglob("*.safetensors")
        for tensor in load_tensors(path).values()
    ]
    assert all(t.dtype == torch.float32 for t in saved if t.is_floating_point())
    names = {path.name for path in (result.folder / "samples").iterdir()}
    assert names == {"base.wav", "step-000003.wav", "tuned.wav"}
    assert result.effect.tokens_changed > 0
    # What was learned on rounded weights fits the whole ones.
    fresh = MusicGen.toy()
    load_adapter(fresh, result.folder)
    now = dict(fresh.backbone.named_parameters())
    moved = [name for name, old in whole.items() if not torch.equal(now[name], old)]
    assert moved
    assert len(moved) < len(whole)


class Stop(AfterStep):
    """Ctrl-C after the second step."""

    def after_step(self, trainer: object, module: Stepped) -> None:
        if module.step == 2:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_a_resumed_run_in_bf16_is_exact(clips: Path, tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    tune(MusicGen.toy(), clips, recipe(clips, "pivotal"), whole)
    with pytest.raises(Interrupted):
        tune(MusicGen.toy(), clips, recipe(clips, "pivotal"), again, callbacks=[Stop()])
    tune(MusicGen.toy(), clips, recipe(clips, "pivotal"), again, resume=True)
    paths = sorted((whole / "adapter").rglob("*.safetensors"))
    assert len(paths) == 2
    for path in paths:
        assert (again / path.relative_to(whole)).read_bytes() == path.read_bytes()


def test_when_the_base_is_held_in_bf16(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {p: recipe(clips, "lora", precision=p) for p in ("bf16", "fp32", "auto")}
    assert holds_in_bf16(asked["bf16"], CPU)
    assert not holds_in_bf16(asked["fp32"], CUDA)
    assert not holds_in_bf16(asked["auto"], CPU)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert holds_in_bf16(asked["auto"], CUDA)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert not holds_in_bf16(asked["auto"], CUDA)


def test_what_trains_the_bases_weights_keeps_them_whole(clips: Path, tmp_path: Path) -> None:
    assert not holds_in_bf16(recipe(clips, "full"), CPU)
    model = MusicGen.toy()
    tune(model, clips, recipe(clips, "peft:ln_tuning"), tmp_path / "run")
    assert all(p.dtype == torch.float32 for p in model.backbone.parameters())


def decayed(model: MusicGen, method: Pivotal | Full, steps: int) -> None:
    """``steps`` of AdamW with nothing but decay: the gradient is zero."""
    settings = TrainingSettings(steps=steps, lr=0.1, weight_decay=1.0)
    optimizer = Tuning(model, method, settings).configure_optimizers()
    for _ in range(steps):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()


def test_decay_pulls_a_change_to_zero_which_is_the_base() -> None:
    model, method = MusicGen.toy(), Pivotal.toy()
    batch = model.encode([model.rollout(["piano"], 0.4, 0)[1][0]])
    method.prepare(model, iter([batch] * 50))
    method.attach(model)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.fill_(0.5)
    decayed(model, method, 10)
    for parameter in trained_parameters(model).values():
        assert torch.allclose(parameter, torch.tensor(0.5 * 0.9**10))
    decayed(model, method, 200)
    assert all(float(p.detach().abs().max()) < 1e-9 for p in trained_parameters(model).values())
    method.merge(model)
    base = dict(MusicGen.toy().backbone.named_parameters())
    for name, parameter in model.backbone.named_parameters():
        assert torch.allclose(parameter, base[name], atol=1e-8), name


def test_decay_leaves_new_words_alone(clips: Path) -> None:
    method = recipe(clips, "lora", weight_decay=0.5).method
    method.attach(model := MusicGen.toy())
    module = Tuning(model, method, TrainingSettings(weight_decay=0.5))
    backbone, tokens = module.groups()
    assert (backbone["weight_decay"], tokens["weight_decay"]) == (0.5, 0.0)
    assert len(tokens["params"]) == 1
