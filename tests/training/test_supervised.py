"""A classifier learns, is judged on what it has not seen, and stops at nonsense."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from musictune.errors import CheckFailed
from musictune.methods.storage import load_tensors
from musictune.training.callbacks import read_metrics
from musictune.training.loop import fit
from musictune.training.settings import TrainingSettings
from musictune.training.supervised import Supervised


class Sides(IterableDataset[tuple[Tensor, Tensor]]):
    """Points left and right of a line."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        seed = 0
        while True:
            yield self.at(seed)
            seed += 1

    def at(self, seed: int) -> tuple[Tensor, Tensor]:
        points = torch.randn(16, 2, generator=torch.Generator().manual_seed(seed))
        return points, (points.sum(1) > 0).long()


def module(**changes: object) -> Supervised:
    settings = TrainingSettings(steps=40, lr=0.1, warmup=4, checkpoint_every=20, **changes)  # type: ignore[arg-type]
    body = nn.Linear(2, 4).requires_grad_(False)
    return Supervised(nn.Sequential(body, nn.Linear(4, 2)), settings, [Sides().at(999)])


def test_it_learns_and_is_judged_on_the_held_out(tmp_path: Path) -> None:
    learner = module()
    before = learner.held_out_loss()
    fit(learner, Sides(), tmp_path, torch.device("cpu"))
    after, accuracy = learner.held_out_loss(), learner.accuracy()
    assert before is not None and after is not None and accuracy is not None
    assert after < 0.5 * before
    assert accuracy > 0.85
    assert len(read_metrics(tmp_path / "metrics.csv")) == 41
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000020"]


def test_only_what_is_trained_is_in_a_checkpoint(tmp_path: Path) -> None:
    learner = module()
    assert set(learner.state_dict()) == {"model.1.weight", "model.1.bias"}
    learner.write(tmp_path)
    assert set(load_tensors(tmp_path / "model.safetensors")) == {"1.weight", "1.bias"}


def test_gradients_that_are_no_number_stop_it(tmp_path: Path) -> None:
    learner = module()
    learner.model[1].weight.register_hook(lambda g: g * float("inf"))
    with pytest.raises(CheckFailed, match=r"gradient became (inf|nan) at step 1"):
        fit(learner, Sides(), tmp_path, torch.device("cpu"))


def test_accumulated_passes_are_one_step(tmp_path: Path) -> None:
    learner = module(accumulate=3)
    fit(learner, Sides(), tmp_path, torch.device("cpu"))
    assert len(read_metrics(tmp_path / "metrics.csv")) == 41
