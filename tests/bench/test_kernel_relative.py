"""The benchmark of relative attention: all sides compute the same, and rows say what they are."""

from __future__ import annotations

import pytest
import torch

from musictune.bench import kernel_relative
from musictune.bench.kernel_relative import TERMS, Term

CPU = torch.device("cpu")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("term", [*TERMS, Term("few distances", 7)], ids=lambda t: t.name)
def test_peers_compute_what_we_compute(term: Term) -> None:
    case = kernel_relative._Case(term, 40, CPU)
    ours, theirs = case.step(case.ours)(), case.step(case.sdpa)()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-5)
    for tensor in (case.query, case.key, case.value, case.table):
        tensor.requires_grad_(False)  # FlexAttention has no backward pass on a CPU
    assert torch.allclose(case.flex(compiled=False)(), ours[0], atol=1e-5)


def test_rows_of_two_lengths() -> None:
    rows = kernel_relative.measure(CPU, (128, 512), TERMS[:1])
    assert len(rows) == 5
    times = [row for row in rows if row.unit == "ms"]
    assert len(times) == 2
    for row in times:
        assert row.ours > 0 and row.peer is not None and row.ratio == row.peer / row.ours
        assert row.target == "<= peer" and row.met is None  # left open where there is no GPU
    (growth,) = (row for row in rows if row.unit == "x")
    assert growth.met is True
    longest = next(row for row in rows if row.unit == "MiB" and "512" in row.case)
    assert longest.ratio is not None and longest.ratio > 1.5
