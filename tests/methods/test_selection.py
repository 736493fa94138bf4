"""Which entries are chosen."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.methods.selection import narrowing, random_entries, top_entries


def test_global_scope_ranks_all_matrices_together() -> None:
    scores = {"a": torch.tensor([[9.0, 1.0], [8.0, 0.0]]), "b": torch.tensor([[2.0, 7.0]])}
    chosen = top_entries(scores, 0.5)
    assert chosen["a"].tolist() == [0, 2]
    assert chosen["b"].tolist() == [1]


def test_matrix_scope_ranks_each_on_its_own() -> None:
    scores = {"a": torch.tensor([9.0, 1.0, 8.0, 7.0]), "b": torch.tensor([0.1, 0.2])}
    chosen = top_entries(scores, 0.5, "matrix")
    assert chosen["a"].tolist() == [0, 2]
    assert chosen["b"].tolist() == [1]


def test_narrowing_ends_at_the_fraction() -> None:
    shares = narrowing(0.05, 3)
    assert shares == sorted(shares, reverse=True)
    assert abs(shares[-1] - 0.05) < 1e-12
    assert narrowing(0.2, 1) == [0.2]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    fraction=st.floats(0.01, 1.0),
    seed=st.integers(0, 99),
)
def test_any_choice_has_the_right_size_and_is_the_top(
    sizes: list[int], fraction: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {str(i): torch.rand(n, generator=generator) for i, n in enumerate(sizes)}
    wanted = max(1, round(sum(sizes) * fraction))
    chosen = top_entries(scores, fraction)
    assert sum(len(c) for c in chosen.values()) == wanted
    kept = torch.cat([scores[name][index] for name, index in chosen.items()])
    every = torch.cat(list(scores.values())).sort(descending=True).values
    assert torch.equal(kept.sort(descending=True).values, every[:wanted])
    control = random_entries({name: len(s) for name, s in scores.items()}, fraction, seed)
    assert sum(len(c) for c in control.values()) == wanted
    for name, index in control.items():
        assert len(set(index.tolist())) == len(index)
        assert all(0 <= i < len(scores[name]) for i in index.tolist())
