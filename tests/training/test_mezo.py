"""Tuning without gradients: the right slope, nothing stored, and the same after a resume."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from musictune.audio import Clip
from musictune.errors import CheckFailed, InputError
from musictune.methods.storage import load_tensors
from musictune.metrics.base import Reward
from musictune.models.musicgen import MusicGen
from musictune.training.callbacks import AfterStep, read_metrics
from musictune.training.loop import Interrupted
from musictune.training.mezo import Mezo
from musictune.training.recipe import Recipe, load_recipe
from musictune.training.run import tune
from musictune.training.settings import TrainingSettings
from musictune.training.stepped import Stepped

pytestmark = pytest.mark.usefixtures("unpainted")

STEPS = 4


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]


def optimizer(weights: list[nn.Parameter], decay: float = 0.0, eps: float = 1e-3) -> Mezo:
    groups = [{"params": [w], "lr": 0.1, "weight_decay": decay} for w in weights]
    return Mezo(groups, eps)


@given(st.integers(0, 2**50), st.floats(1e-4, 1.0))
def test_of_a_plane_the_slope_is_exact(seed: int, eps: float) -> None:
    """For f = a.w the slope along z is a.z, whatever eps, and the step is -rate (a.z) z."""
    torch.manual_seed(1)
    weights = parameters((3, 2), (4,))
    plane = [torch.randn_like(w) for w in weights]
    before = [w.detach().clone() for w in weights]

    def value() -> Tensor:
        return sum((a * w).sum() for a, w in zip(plane, weights, strict=True))  # type: ignore[return-value]

    slope = optimizer(weights, eps=eps).step(value, seed)
    draw = torch.Generator().manual_seed(seed)
    direction = [torch.randn(w.shape, generator=draw, dtype=w.dtype) for w in weights]
    along = sum(float((a * z).sum()) for a, z in zip(plane, direction, strict=True))
    assert float(slope) == pytest.approx(along, rel=1e-6, abs=1e-9)
    for now, old, z in zip(weights, before, direction, strict=True):
        assert torch.allclose(now, old - 0.1 * along * z, rtol=1e-6, atol=1e-8)


def test_both_sides_are_seen_and_the_middle_is_restored() -> None:
    weights = parameters((5,))
    start = weights[0].detach().clone()
    seen: list[Tensor] = []

    def flat() -> Tensor:
        seen.append(weights[0].detach().clone())
        return torch.tensor(2.0)

    assert optimizer(weights).step(flat, 3) == 0
    assert torch.allclose(seen[0] + seen[1], 2 * start)
    assert float((seen[0] - seen[1]).abs().max()) > 1e-4
    assert torch.allclose(weights[0], start, atol=1e-12)
    assert weights[0].grad is None


def test_a_bowl_is_descended_and_decay_pulls_to_zero() -> None:
    weights = parameters((8,))
    mezo = optimizer(weights)
    first = float((weights[0].detach() ** 2).sum())
    for seed in range(200):
        mezo.step(lambda: (weights[0] ** 2).sum() / 8, seed)
    assert float((weights[0].detach() ** 2).sum()) < 0.01 * first
    weights = parameters((8,))
    first = float(weights[0].detach().abs().sum())
    optimizer(weights, decay=5.0).step(lambda: torch.tensor(0.0), 0)
    assert float(weights[0].detach().abs().sum()) == pytest.approx(first / 2)


class Stop(AfterStep):
    """Ctrl-C after a step."""

    def after_step(self, trainer: object, module: Stepped) -> None:
        if module.step == 2:
            signal.raise_signal(signal.SIGINT)


class NoGradients(AfterStep):
    """Looks for what must not be there after any step."""

    def after_step(self, trainer: object, module: Stepped) -> None:
        assert all(p.grad is None for p in module.parameters())


class Ears:
    """Judges for which a clip is as good as it is loud."""

    def __init__(self) -> None:
        self.asked: list[list[Clip]] = []
        self.heard: list[list[str]] = []

    def __call__(self, reference: Sequence[Clip]) -> tuple[Reward, Reward]:
        self.asked.append(list(reference))
        return self.loud, lambda clips: torch.full((len(clips),), 0.5)

    def loud(self, clips: Sequence[Clip]) -> Tensor:
        self.heard.append([clip.caption for clip in clips])
        return torch.stack([clip.wave.square().mean().sqrt() for clip in clips])


def recipe(clips: Path, **training: object) -> Recipe:
    values = {
        "steps": STEPS, "batch": 2, "seconds": 1.0, "preview_seconds": 0.1, "lr": 0.01,
        "optimizer": "mezo", "checkpoint_every": 2, "held_out_every": 2, "score_seeds": 1,
    } | training  # fmt: skip
    overrides = {f"training.{key}": value for key, value in values.items()}
    overrides |= {"run.clips": str(clips), "run.concept": "zorblax", "run.class_word": "piano"}
    return load_recipe((), [], overrides, "lora")


def learned(folder: Path) -> dict[str, Tensor]:
    return {
        f"{path.name}/{name}": tensor
        for path in sorted((folder / "adapter").rglob("*.safetensors"))
        for name, tensor in load_tensors(path).items()
    }


@pytest.mark.parametrize("objective", ["loss", pytest.param("alignment", marks=pytest.mark.slow)])
def test_a_run_needs_no_gradient_and_resumes_to_the_bit(
    objective: str, clips: Path, tmp_path: Path
) -> None:
    def run(out: Path, *more: AfterStep, resume: bool = False) -> Path:
        asked = recipe(clips, objective=objective)
        return tune(
            MusicGen.toy(), clips, asked, out, judges=Ears(), resume=resume, callbacks=more
        ).folder

    whole = run(tmp_path / "whole", NoGradients())
    with pytest.raises(Interrupted, match="step 2 of 4"):
        run(tmp_path / "run", Stop())
    again = run(tmp_path / "run", resume=True)
    ours, theirs = learned(again), learned(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    rows = [read_metrics(folder / "metrics.csv") for folder in (again, whole)]
    for one, other in zip(*rows, strict=True):
        assert one | {"seconds": ""} == other | {"seconds": ""}
    column = "loss" if objective == "loss" else "reward"
    assert all(row[column] for row in rows[0][1:])


def test_previews_are_compared_with_the_clips_trained_on_and_with_equal_luck(
    clips: Path, tmp_path: Path
) -> None:
    ears = Ears()
    asked = recipe(clips, objective="alignment", keep="best", score_every=4)
    folder = tune(MusicGen.toy(), clips, asked, tmp_path / "run", judges=ears).folder
    learned_from, held_out = ears.asked
    assert len(learned_from) == 3
    assert len(held_out) == 1
    # Steps 0 and 4 are scored; between them two sides of each step.
    assert len(ears.heard) == 2 + 2 * STEPS
    assert all(texts == ears.heard[0] for texts in ears.heard)
    assert "zorblax" not in "".join(ears.heard[0])
    rows = read_metrics(folder / "metrics.csv")
    assert all(0 < float(row["reward"]) < 1 for row in rows[1:])
    assert not any(row["loss"] for row in rows)
    assert (folder / "losses.png").exists()


def test_a_score_that_is_no_number_stops_the_run(clips: Path, tmp_path: Path) -> None:
    def judges(_: Sequence[Clip]) -> tuple[Reward, Reward]:
        return (lambda made: torch.full((len(made),), float("nan")),) * 2

    asked = recipe(clips, objective="alignment")
    with pytest.raises(CheckFailed, match="reward became nan at step 1"):
        tune(MusicGen.toy(), clips, asked, tmp_path / "run", judges=judges)
    with pytest.raises(InputError, match="objective alignment need something that scores"):
        tune(MusicGen.toy(), clips, asked, tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"optimizer": "sgd"}, "optimizer 'sgd' must be adamw or mezo"),
        ({"objective": "fame"}, "objective 'fame' must be loss or alignment"),
        ({"optimizer": "mezo", "accumulate": 2}, "accumulate 2 has no use"),
        ({"objective": "alignment"}, "has no gradient"),
        ({"objective": "alignment", "optimizer": "mezo", "prior": 2}, "prior 2 is a loss on clips"),
        ({"mezo_eps": 0.0}, "mezo_eps 0"),
        ({"mezo_eps": float("inf")}, "mezo_eps inf"),
        ({"prior": -1}, "prior -1"),
        ({"prior_weight": 0.0}, "prior_weight 0"),
        ({"patience": -2}, "patience -2"),
        ({"patience": 2}, "patience 2 waits for better previews"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        TrainingSettings(**values)  # type: ignore[arg-type]
