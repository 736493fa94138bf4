"""Naming the weights to train."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.methods.sparse import Chosen, Kind, SelectedLinear


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_flat_positions_count_what_entries_says(data: st.DataObject) -> None:
    shape = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    kind = data.draw(st.sampled_from(["elements", "rows", "columns"]))
    size = {"elements": shape[0] * shape[1], "rows": shape[0], "columns": shape[1]}[kind]
    picked = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    chosen = Chosen(kind, torch.tensor(sorted(picked)))
    flat = chosen.flat(shape)
    made = SelectedLinear(nn.Linear(shape[1], shape[0]), chosen)
    with torch.no_grad():
        made.values.fill_(1.0)
    assert len(flat) == chosen.entries(shape) == made.values.numel()
    assert torch.equal(flat, flat.unique())
    assert torch.equal(made.change().flatten().nonzero().flatten(), flat)


@pytest.mark.parametrize(
    ("kind", "indices", "message"),
    [
        ("elements", torch.tensor([48]), "index 48 lies outside the 48 elements"),
        ("rows", torch.tensor([6]), "index 6 lies outside the 6 rows"),
        ("columns", torch.tensor([8]), "index 8 lies outside the 8 columns"),
        ("rows", torch.tensor([], dtype=torch.int64), "no rows were chosen"),
        ("rows", torch.tensor([2, 1]), "sorted, unique and not negative"),
        ("rows", torch.tensor([1, 1]), "sorted, unique and not negative"),
        ("rows", torch.tensor([-1, 1]), "sorted, unique and not negative"),
        ("rows", torch.tensor([1, 2], dtype=torch.int32), "one row of int64"),
        ("rows", torch.tensor([[1]]), "one row of int64"),
        ("blocks", torch.tensor([1]), "must be one of elements, rows, columns"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused(kind: Kind, indices: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SelectedLinear(nn.Linear(8, 6), Chosen(kind, indices))
