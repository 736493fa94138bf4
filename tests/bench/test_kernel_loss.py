"""`bench kernels --only loss` and `--only sampling` at shapes of no size."""

from __future__ import annotations

import math

import pytest
import torch

from musictune.bench import kernel_loss, kernel_sampling, kernel_timing
from musictune.kernels.codebook_loss import codebook_loss
from musictune.kernels.sampling import sample_scores

CPU = torch.device("cpu")


def test_the_loss_has_rows_of_memory_and_time() -> None:
    rows = kernel_loss.measure(CPU, [kernel_loss.Case("none", 2, 5, 8, 16)])
    assert len({row.case for row in rows}) == len(rows) == 8
    for row in rows:
        assert row.ours > 0 and row.peer is not None and row.ratio is not None
        assert math.isclose(row.ratio, row.peer / row.ours)
        assert row.met == (row.ours <= (0.35 if "memory" in row.case else row.peer))


def test_its_peer_computes_the_same() -> None:
    hidden, heads = torch.randn(2, 6, 8), torch.randn(3, 16, 8)
    targets, mask = torch.randint(16, (2, 3, 6)), torch.rand(2, 3, 6) < 0.7
    mask[:, 0, 0] = True
    ours = codebook_loss(hidden, heads, targets, mask)
    assert torch.allclose(kernel_loss.plain_loss(hidden, list(heads), targets, mask), ours)


def test_peak_memory_is_that_of_what_lives_at_once() -> None:
    def step() -> None:
        first = torch.ones(1000)
        second = first + 1
        del first
        second.exp()

    assert kernel_loss._peak(step, CPU) == 2 * 4000


def test_sampling_has_a_row_per_case_and_no_verdict_on_a_cpu() -> None:
    case = kernel_sampling.Case("none", 2, 8, 3, 16)
    rows = kernel_sampling.measure(CPU, [case])
    assert [row.case for row in rows] == ["none, float32", "none, bfloat16"]
    for row in rows:
        assert row.ours > 0 and row.peer is not None
        assert row.met is None


def test_its_peer_has_the_same_probabilities() -> None:
    torch.manual_seed(0)
    hidden, heads = torch.randn(2, 8), torch.randn(1, 6, 8) / 4
    prompted, null = (hidden @ heads[0].t()).chunk(2)
    scores = null + 3 * (prompted - null)
    count = 20_000
    theirs = kernel_sampling.plain_sample(
        hidden.repeat_interleave(count, 0), heads, guidance=3.0, temperature=1.5, top_k=4
    )
    ours, _ = sample_scores(scores.expand(count, 1, 6), 1.5, 4, torch.arange(count), 0)
    shares = [torch.bincount(tokens[:, 0], minlength=6) / count for tokens in (ours, theirs)]
    assert torch.allclose(*shares, atol=0.02)
    assert (shares[0] > 0).sum() == 4


@pytest.mark.parametrize("calls", [1, 3])
def test_sides_take_turns_and_the_fastest_round_counts(
    monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    clock, order = 0.0, []
    spent = {"a": iter([9.0, 4.0, 2.0]), "b": iter([9.0, 1.0, 3.0])}

    def side(name: str, i: int) -> None:
        nonlocal clock
        if i == 0:
            order.append(name)
            clock += next(spent[name])

    monkeypatch.setattr(kernel_timing.time, "process_time", lambda: clock)
    sides = {name: lambda i, name=name: side(name, i) for name in spent}
    best = kernel_timing.fastest(sides, CPU, rounds=2, calls=calls)
    assert order == ["a", "b"] * 3
    assert best == {"a": 2.0 / calls, "b": 1.0 / calls}
