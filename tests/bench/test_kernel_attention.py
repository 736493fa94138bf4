"""`bench kernels --only attention` at shapes of no size."""

from __future__ import annotations

import math

import pytest
import torch

from musictune.bench import kernel_attention as bench


def test_every_shape_and_dtype_has_its_rows() -> None:
    decode = [bench.Decode("one", 2, 2, 8, 9), bench.Decode("two", 3, 1, 16, 5)]
    train = [bench.Train("self", 2, 1, 8, 6), bench.Train("text", 2, 1, 8, 6, 4)]
    rows = bench.measure(torch.device("cpu"), decode, train)
    cases = [row.case for row in rows]
    assert len(cases) == len(set(cases)) == 2 * (2 * 3 + 2)
    for row in rows:
        assert row.ours > 0
        assert row.peer is not None
        assert row.ratio is not None
        assert math.isclose(row.ratio, row.peer / row.ours)
        assert row.target == "<= peer"
        assert row.met is None  # the target is for a GPU


def test_the_peers_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, torch.Tensor] = {}

    def run(sides: dict[str, bench.Side], *_: object) -> dict[str, float]:
        for name, side in sides.items():
            out = side(0)
            first = out[0] if isinstance(out, tuple) else out
            assert isinstance(first, torch.Tensor)
            made[name] = first.float().flatten()
        return dict.fromkeys(sides, 1.0)

    monkeypatch.setattr(bench, "_interleaved", run)
    bench.measure(torch.device("cpu"), [bench.Decode("one", 2, 2, 8, 9)], [])
    # In the order of the sides: those that do not write come first.
    assert torch.allclose(made["attend"], made["SDPA"], atol=0.05)
    assert torch.allclose(made["attend"], made["attend, int8 cache"], atol=0.1)
    assert torch.allclose(made["fused step"], made["norm, linear, copy, SDPA"], atol=0.05)
    for text in (None, 4):
        made.clear()
        bench.measure(torch.device("cpu"), [], [bench.Train("one", 2, 1, 8, 6, text)])
        assert torch.allclose(made["forward and backward"], made["SDPA"], atol=0.05)
