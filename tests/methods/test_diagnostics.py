"""Where a change lives and of what kind it is, on changes that were planted."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.methods import diagnostics, methods
from musictune.methods.base import TuningMethod, trained_parameters
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.diagnostics import diagnose, nearest_cosines
from musictune.methods.full import Full
from musictune.methods.peft import Peft
from musictune.methods.pivotal import Pivotal
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen
from musictune.training.diagnostic_plots import write_diagnostics
from tests.methods.toys import FITTING, toy


def batch() -> Batch:
    codes = torch.randint(0, 64, (1, 4, 10), generator=torch.Generator().manual_seed(1))
    return Batch(codes, torch.tensor([10]), ("piano",))


def attached(method: TuningMethod) -> MusicGen:
    model = toy()
    method.prepare(model, itertools.repeat(batch()))
    method.attach(model)
    return model


def perturbed(method: TuningMethod) -> MusicGen:
    model = attached(method)
    with torch.no_grad():
        for p in trained_parameters(model).values():
            p.add_(0.1 * torch.randn(p.shape))
    return model


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_a_matrix_knows_its_own_vectors_and_those_of_its_multiples(
    rows: int, columns: int, seed: int
) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    for tuned in (matrix, -3 * matrix):
        nearest = nearest_cosines(matrix, tuned)
        assert len(nearest) == min(rows, columns, diagnostics.LEADING)
        assert torch.allclose(nearest, torch.ones_like(nearest), atol=1e-4)


def test_a_planted_intruder_is_found() -> None:
    """A strong direction between all of the base's is new; a strengthened one of its own is not."""
    base_ = torch.diag(torch.linspace(4, 1, 32))
    between = torch.ones(32, 1) / 32**0.5
    planted = nearest_cosines(base_, base_ + 40 * between @ between.t())
    assert planted[0] < diagnostics.THRESHOLD
    own = torch.zeros(32, 32)
    own[3, 3] = 40
    assert nearest_cosines(base_, base_ + own).min() > 0.99


def test_where_and_how_much_by_hand() -> None:
    method = Full(targets=r"layers\.1\.fc1$")
    model = attached(method)
    weight = model.backbone.get_parameter("model.decoder.layers.1.fc1.weight")
    norm = float(weight.detach().norm())
    with torch.no_grad():
        weight[2, 3] += 3.0
        weight[5, 3] += 4.0
    found = diagnose(model, method)
    assert found is not None
    (matrix,) = found.matrices
    assert (matrix.layer, matrix.place, matrix.changed) == (1, "fc1", 2)
    assert matrix.norm == pytest.approx(5, rel=1e-5) and found.centre == 1
    assert matrix.relative == pytest.approx(5 / norm, rel=1e-5)
    assert matrix.stable_rank == pytest.approx(1, rel=1e-4) and matrix.rank90 == 1
    assert found.facts["weights_changed"] == 2 and found.facts["centre_of_depth"] == 1


def test_rank_is_seen() -> None:
    for rank in (1, 2):
        found = diagnose(perturbed(method := Peft("lora", {"r": rank})), method)
        assert found is not None
        assert all(
            m.stable_rank is not None and m.stable_rank <= rank + 1e-3 for m in found.matrices
        )


CASES = [name for name in FITTING if name != "peft"] + ["dora", "pissa", "ia3"]
DRAWN = ("pivotal", "full", "dora", "concept_tokens", "bottleneck")
"""A picture each takes long: one case of every kind of answer, the others are slow."""


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in DRAWN else pytest.mark.slow) for case in CASES],
)
def test_every_method_is_diagnosed_and_stays_as_it_is(case: str, tmp_path: Path) -> None:
    kinds = {"dora": Peft("dora", {"r": 2}), "pissa": Peft("pissa", {"r": 2}), "ia3": Peft("ia3")}
    method = kinds.get(case) or methods()[case].toy()
    model = perturbed(method)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    facts = write_diagnostics(model, method, tmp_path)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    if not method.mergeable or isinstance(method, ConceptTokens):
        assert facts == {} and not list(tmp_path.iterdir())
        return
    assert facts["weights_changed"] and (tmp_path / "diagnostics.png").stat().st_size > 5000
    plain = json.loads((tmp_path / "diagnostics.json").read_text())
    assert plain["layers"] == 2 and plain["matrices"]


def test_the_change_of_pivotal_weights_is_their_values() -> None:
    method = Pivotal(fraction=0.1, selection="random")
    found = diagnose(perturbed(method), method)
    assert found is not None
    by_name = {m.name: m for m in found.matrices}
    for name, layer in method.layers.items():
        matrix = by_name[f"{name}.weight"]
        assert matrix.changed == layer.values.numel()
        assert matrix.norm == pytest.approx(float(layer.values.detach().norm()), rel=1e-4)


def test_a_large_model_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Pivotal(fraction=0.2, selection="random")
    model = perturbed(method)
    monkeypatch.setattr(diagnostics, "_WORK", 3 * 16.0**3)
    found = diagnose(model, method)
    assert found is not None
    assert found.decomposed == 3 == sum(m.stable_rank is not None for m in found.matrices)
    assert len(found.matrices) == 8 and found.facts["relative_change"]
