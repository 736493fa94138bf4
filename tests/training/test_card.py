"""A run's card shows what was diagnosed and offers only what works."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from musictune.methods import methods, save_adapter
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen
from musictune.training.card import write_card
from musictune.training.diagnostic_plots import write_diagnostics
from musictune.training.recipe import load_recipe


@pytest.mark.parametrize("name", ["pivotal", "bottleneck"])
def test_the_card_speaks_of_merging_and_of_weights_only_where_there_are_any(
    name: str, tmp_path: Path
) -> None:
    model, method = MusicGen.toy(), methods()[name].toy()
    codes = torch.randint(0, 64, (1, 4, 10), generator=torch.Generator().manual_seed(1))
    method.prepare(model, itertools.repeat(Batch(codes, torch.tensor([10]), ("piano",))))
    method.attach(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    save_adapter(model, method, tmp_path / "adapter")
    (tmp_path / "metrics.csv").write_text("step,held_out_loss\n1,\n")
    facts = method.describe() | write_diagnostics(model, method, tmp_path)
    recipe = load_recipe(overrides={"run.clips": "music"}, method=name)
    write_card(tmp_path, recipe, facts, ["slow piano"])
    card = (tmp_path / "README.md").read_text()
    merges = method.mergeable
    assert ("musictune merge" in card) == merges
    assert ("](diagnostics.png)" in card) == merges == (tmp_path / "diagnostics.png").is_file()
    assert ("| centre of depth |" in card) == merges
