"""Masks compared with each other and with chance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from musictune.errors import InputError
from musictune.methods.adapter import read_sparse
from musictune.methods.overlap import measure_overlap, overlap, overlap_notes
from musictune.methods.sparse import Chosen
from musictune.methods.sparse_change import SparseChange
from musictune.methods.storage import save_tensors

SHAPE = (6, 5)


def elements(places: list[int], values: list[float]) -> SparseChange:
    return SparseChange(SHAPE, Chosen("elements", torch.tensor(places)), torch.tensor(values))


def written(folder: Path, layers: dict[str, SparseChange], method: str = "pivotal") -> Path:
    (folder / "pivotal").mkdir(parents=True)
    facts = {"methods": [{"name": method, "folder": "pivotal"}], "base": "toy", "concepts": []}
    (folder / "adapter.json").write_text(json.dumps(facts))
    tensors = {}
    for name, change in layers.items():
        tensors[f"{name}.indices"] = change.chosen.indices.to(torch.int32)
        tensors[f"{name}.values"] = change.values
    save_tensors(tensors, folder / "pivotal" / "pivotal.safetensors")
    described = {
        name: {"shape": list(change.shape), "kind": change.chosen.kind}
        for name, change in layers.items()
    }
    (folder / "pivotal" / "pivotal.json").write_text(json.dumps({"layers": described}))
    return folder


def test_a_pair_by_hand() -> None:
    one = {"a": elements([0, 3, 7, 9], [1.0, -1.0, 2.0, 0.5])}
    other = {"a": elements([3, 7, 8], [-2.0, -1.0, 4.0])}
    found = overlap(one, other)
    assert (found.first, found.second, found.shared) == (4, 3, 2)
    assert found.of_smaller == pytest.approx(2 / 3) and found.jaccard == pytest.approx(2 / 5)
    assert found.expected == pytest.approx(4 * 3 / 30 / 3) == found.expected_anywhere
    assert found.sign_agreement == 0.5
    dot, norms = 2.0 - 2.0, (6.25 * 21) ** 0.5
    assert found.cosine == pytest.approx(dot / norms)


masks = st.sets(st.integers(0, 29), min_size=1)


@given(masks, masks)
def test_laws(left: set[int], right: set[int]) -> None:
    one = {"a": elements(sorted(left), [1.0] * len(left))}
    other = {"a": elements(sorted(right), [1.0] * len(right))}
    found, back, self_ = overlap(one, other), overlap(other, one), overlap(one, one)
    assert found.shared == len(left & right) == back.shared
    assert found.jaccard == pytest.approx(len(left & right) / len(left | right))
    assert 0 <= found.of_smaller <= 1 and found.cosine == pytest.approx(back.cosine)
    assert self_.jaccard == self_.of_smaller == 1 and self_.cosine == pytest.approx(1)
    assert (found.sign_agreement is None) == (not left & right)


def test_random_masks_share_what_chance_says() -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (200, 300)

    def random() -> dict[str, SparseChange]:
        found = {}
        for name, count in (("a", 9000), ("b", 3000)):
            places = torch.randperm(60_000, generator=generator)[:count].sort().values
            values = torch.randn(count, generator=generator)
            found[name] = SparseChange(shape, Chosen("elements", places), values)
        return found

    found = overlap(random(), random())
    assert found.expected == pytest.approx((0.15**2 + 0.05**2) / 0.2)
    assert found.expected_anywhere == pytest.approx(0.1)
    assert found.of_smaller == pytest.approx(found.expected, rel=0.1)
    assert found.sign_agreement == pytest.approx(0.5, abs=0.05)
    assert abs(found.cosine) < 0.03


def test_rows_and_columns_are_compared_weight_by_weight(tmp_path: Path) -> None:
    values = torch.arange(1.0, 11).view(2, 5)
    rows = SparseChange(SHAPE, Chosen("rows", torch.tensor([1, 4])), values)
    columns = SparseChange(SHAPE, Chosen("columns", torch.tensor([2])), torch.ones(6, 1))
    for name, change in (("rows", rows), ("columns", columns)):
        written(tmp_path / name, {"a": change})
        read = read_sparse(tmp_path / name)["a"]
        assert torch.equal(read.positions, change.positions)
        dense = torch.zeros(SHAPE)
        dense.view(-1)[read.positions] = read.entries
        index = change.chosen.indices
        expected = dense[index] if name == "rows" else dense[:, index]
        assert torch.equal(expected, change.values) and dense.count_nonzero() == len(read.positions)
    found = measure_overlap([tmp_path / "rows", tmp_path / "columns"])
    assert found.pairs[0, 1].shared == 2 and found.names == ("rows", "columns")
    assert found.layers[0, 1]["a"].expected == pytest.approx(10 * 6 / 30 / 6)
    assert found.plain()["pairs"][0]["matrices"]["a"]["shared"] == 2


def test_disjoint_layers_share_nothing(tmp_path: Path) -> None:
    one = written(tmp_path / "one", {"a": elements([1], [1.0])})
    two = written(tmp_path / "two", {"b": elements([1], [1.0])})
    found = measure_overlap([one, two]).pairs[0, 1]
    assert found.shared == 0 == found.expected == found.cosine and found.sign_agreement is None
    (note,) = overlap_notes([one, two])
    assert "masks of one and two: 0.0%" in note


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    one = written(tmp_path / "one", {"a": elements([1], [1.0])})
    with pytest.raises(InputError, match="two adapters or more"):
        measure_overlap([one])
    with pytest.raises(InputError, match="given twice"):
        measure_overlap([one, one])
    lora = written(tmp_path / "lora", {"a": elements([1], [1.0])}, method="peft")
    with pytest.raises(InputError, match="no pivotal weights"):
        measure_overlap([one, lora])
    assert overlap_notes([one, lora]) == []
    other = SparseChange((5, 5), Chosen("elements", torch.tensor([1])), torch.ones(1))
    with pytest.raises(InputError, match="different bases"):
        measure_overlap([one, written(tmp_path / "other", {"a": other})])
    config = one / "pivotal" / "pivotal.json"
    for damage in ('{"layers": {"a": {}}}', '{"layers": {"z": {"shape": [6, 5]}}}'):
        config.write_text(damage)
        with pytest.raises(InputError, match="damaged"):
            read_sparse(one)


def test_an_adapter_of_before_is_elements(tmp_path: Path) -> None:
    folder = written(tmp_path / "one", {"a": elements([1, 8], [1.0, 2.0])})
    config = folder / "pivotal" / "pivotal.json"
    config.write_text(json.dumps({"options": {}, "shapes": {"a": [6, 5]}}))
    assert read_sparse(folder)["a"].positions.tolist() == [1, 8]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (elements([2, 30], [1.0, 1.0]), "outside"),
        (elements([2, 3], [1.0, float("nan")]), "no numbers"),
        (SparseChange(SHAPE, Chosen("columns", torch.tensor([5])), torch.ones(6, 1)), "outside"),
    ],
)
def test_places_and_values_that_cannot_be_are_refused(
    change: SparseChange, says: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"damaged: .*{says}"):
        read_sparse(written(tmp_path / "run", {"a": change}))
