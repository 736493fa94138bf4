"""Budgets, units, and which of them are taken."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from musictune.errors import InputError
from musictune.methods.budget import Budget, target_pattern
from musictune.methods.sparse import Chosen
from musictune.methods.units import Granularity, Units, refuse_whole

GRANULARITIES = get_args(Granularity)
WIDTH, INNER, HEAD = 8, 12, 4


def shapes(depth: int = 2) -> dict[str, tuple[int, int]]:
    found = {}
    for i in range(depth):
        for attention in ("self_attn", "encoder_attn"):
            for role in ("q", "k", "v", "out"):
                found[f"layers.{i}.{attention}.{role}_proj"] = (WIDTH, WIDTH)
        found[f"layers.{i}.fc1"] = (INNER, WIDTH)
        found[f"layers.{i}.fc2"] = (WIDTH, INNER)
    return found


def units(granularity: Granularity, depth: int = 2) -> Units:
    found = shapes(depth)
    if granularity == "head":
        found = {name: shape for name, shape in found.items() if "fc" not in name}
    return Units(found, granularity, {name: HEAD for name in found if "attn" in name})


def drawn(these: Units, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) for name, shape in these.shapes.items()}


def entries(chosen: dict[str, Chosen], these: Units) -> int:
    return sum(part.entries(these.shapes[name]) for name, part in chosen.items())


def flat(chosen: dict[str, Chosen], these: Units) -> set[tuple[str, int]]:
    return {(n, i) for n, part in chosen.items() for i in part.flat(these.shapes[n]).tolist()}


def test_global_scope_ranks_all_matrices_together_and_ties_go_to_the_earlier() -> None:
    these = Units({"a": (2, 2), "b": (1, 2)})
    scores = {"a": torch.tensor([[9.0, 1.0], [8.0, 8.0]]), "b": torch.tensor([[2.0, 8.0]])}
    chosen = these.choose(scores, Budget(fraction=0.5))
    assert {n: c.indices.tolist() for n, c in chosen.items()} == {"a": [0, 2, 3]}
    chosen = these.choose(scores, Budget(count=4))
    assert {n: c.indices.tolist() for n, c in chosen.items()} == {"a": [0, 2, 3], "b": [1]}


def test_matrix_scope_ranks_each_on_its_own() -> None:
    these = Units({"a": (2, 2), "b": (1, 2)})
    scores = {"a": torch.tensor([[9.0, 1.0], [8.0, 7.0]]), "b": torch.tensor([[0.1, 0.2]])}
    chosen = these.choose(scores, Budget(fraction=0.5), "matrix")
    assert {n: c.indices.tolist() for n, c in chosen.items()} == {"a": [0, 2], "b": [1]}


@settings(max_examples=60, deadline=None)
@given(
    granularity=st.sampled_from(GRANULARITIES),
    scope=st.sampled_from(["global", "matrix"]),
    fraction=st.floats(0.001, 0.9),
    seed=st.integers(0, 99),
)
def test_a_choice_never_exceeds_its_budget(
    granularity: Granularity, scope: str, fraction: float, seed: int
) -> None:
    these = units(granularity)
    scores = drawn(these, seed)
    count = max(1, round(fraction * these.total))
    for budget in (Budget(fraction=fraction), Budget(count=count)):
        chosen = these.choose(scores, budget, scope)  # type: ignore[arg-type]
        assert entries(chosen, these) <= max(count, round(fraction * these.total))
        if granularity == "element" and scope == "global":
            assert entries(chosen, these) == budget.limit(these.total)
    kilobytes = fraction * these.total / 100
    chosen = these.choose(scores, Budget(kilobytes=kilobytes), scope)  # type: ignore[arg-type]
    saved = 4 * (sum(len(c.indices) for c in chosen.values()) + entries(chosen, these))
    assert saved <= 1000 * kilobytes


@settings(max_examples=60, deadline=None)
@given(
    granularity=st.sampled_from(GRANULARITIES),
    counts=st.tuples(st.integers(1, 1000), st.integers(1, 1000)),
    scope=st.sampled_from(["global", "matrix"]),
    seed=st.integers(0, 99),
)
def test_a_larger_budget_holds_all_that_a_smaller_one_holds(
    granularity: Granularity, counts: tuple[int, int], scope: str, seed: int
) -> None:
    these = units(granularity)
    scores = drawn(these, seed)
    small, large = (
        flat(these.choose(scores, Budget(count=count), scope), these)  # type: ignore[arg-type]
        for count in sorted(counts)
    )
    assert small <= large


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 600), seed=st.integers(0, 99), coarse=st.booleans())
def test_single_entries_are_the_top_ones_even_among_equals(
    count: int, seed: int, coarse: bool
) -> None:
    these = units("element", depth=1)
    scores = drawn(these, seed)
    if coarse:
        scores = {name: (3 * score).round() for name, score in scores.items()}
    chosen = these.choose(scores, Budget(count=count))
    every = torch.cat([score.flatten() for score in scores.values()])
    order = torch.sort(every, descending=True, stable=True).indices[:count].sort().values
    start, expected = 0, set()
    for name, shape in these.shapes.items():
        size = shape[0] * shape[1]
        expected |= {(name, i - start) for i in order.tolist() if start <= i < start + size}
        start += size
    assert flat(chosen, these) == expected


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_chance_favours_no_unit(granularity: Granularity) -> None:
    """Units are of two sizes here, and means of noise over entries would favour the small ones."""
    these = units(granularity, depth=1)
    taken = {name: torch.zeros(shape) for name, shape in these.shapes.items()}
    rounds = 300
    for seed in range(rounds):
        scores = these.uniform(torch.Generator().manual_seed(seed))
        for name, part in these.choose(scores, Budget(fraction=0.5)).items():
            taken[name].view(-1)[part.flat(these.shapes[name])] += 1 / rounds
    shares = torch.cat([share.flatten() for share in taken.values()])
    spread = 4.5 * (0.25 / rounds) ** 0.5
    assert (shares - shares.mean()).abs().max() < spread
    by_kind = {kind: [s.mean() for n, s in taken.items() if kind in n] for kind in ("attn", "fc")}
    if by_kind["fc"]:
        attention, feed_forward = (torch.stack(by_kind[kind]).mean() for kind in ("attn", "fc"))
        assert abs(attention - feed_forward) < 0.1


def test_columns_are_shared_by_the_projections_that_read_the_same_input() -> None:
    these = units("column")
    chosen = these.choose(drawn(these, 1), Budget(fraction=0.4))
    assert all(part.kind == "columns" for part in chosen.values())

    def columns(name: str) -> list[int]:
        return chosen[name].indices.tolist() if name in chosen else []

    for i in range(2):
        self_attention, text = f"layers.{i}.self_attn", f"layers.{i}.encoder_attn"
        assert columns(f"{self_attention}.q_proj") == columns(f"{self_attention}.k_proj")
        assert columns(f"{self_attention}.q_proj") == columns(f"{self_attention}.v_proj")
        assert columns(f"{text}.k_proj") == columns(f"{text}.v_proj")
    across = [f"layers.{i}.encoder_attn" for i in range(2)]
    assert any(columns(f"{a}.q_proj") != columns(f"{a}.k_proj") for a in across)


def test_a_head_is_its_rows_of_q_k_v_and_its_columns_of_the_output() -> None:
    these = units("head")
    scores = {name: torch.zeros(shape) for name, shape in these.shapes.items()}
    scores["layers.1.self_attn.out_proj"][:, HEAD:] = 1
    unit = 4 * HEAD * WIDTH
    chosen = these.choose(scores, Budget(count=unit))
    assert set(chosen) == {f"layers.1.self_attn.{role}_proj" for role in ("q", "k", "v", "out")}
    for name, part in chosen.items():
        assert part.kind == ("columns" if "out" in name else "rows")
        assert part.indices.tolist() == list(range(HEAD, 2 * HEAD))


def test_channels_couple_what_writes_with_what_reads() -> None:
    these = units("channel")
    chosen = these.choose(drawn(these, 2), Budget(fraction=0.4))
    for parent in ("layers.0", "layers.1"):
        for one, other, kinds in (
            ("fc1", "fc2", ("rows", "columns")),
            ("self_attn.v_proj", "self_attn.out_proj", ("rows", "columns")),
            ("encoder_attn.q_proj", "encoder_attn.k_proj", ("rows", "rows")),
        ):
            names = (f"{parent}.{one}", f"{parent}.{other}")
            assert (names[0] in chosen) == (names[1] in chosen)
            if names[0] in chosen:
                assert tuple(chosen[name].kind for name in names) == kinds
                assert torch.equal(*(chosen[name].indices for name in names))


def test_a_unit_is_ranked_by_its_mean_so_that_size_is_no_advantage() -> None:
    these = Units({"a": (4, 2), "b": (4, 20)}, "row")
    scores = {"a": torch.full((4, 2), 0.9), "b": torch.full((4, 20), 0.2)}
    chosen = these.choose(scores, Budget(count=22))
    assert list(chosen) == ["a"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"fraction": 0.0}, "fraction 0.0"),
        ({"fraction": -0.1}, "fraction -0.1"),
        ({"fraction": 1.01}, "fraction 1.01"),
        ({"fraction": float("nan")}, "fraction nan"),
        ({"count": 0}, "count 0"),
        ({"count": -5}, "count -5"),
        ({"count": float("nan")}, "count nan"),
        ({"kilobytes": 0.0}, "kilobytes 0.0"),
        ({"kilobytes": float("nan")}, "kilobytes nan"),
        ({"kilobytes": float("inf")}, "kilobytes inf"),
        ({}, "none"),
        ({"fraction": 0.1, "count": 3}, "fraction=0.1, count=3"),
    ],
)
def test_a_budget_out_of_range_is_refused(given: dict[str, float], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Budget(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("granularity", "budget", "scope", "says"),
    [
        ("element", Budget(fraction=1e-6), "global", "0 weights, less than one element of 1"),
        ("element", Budget(kilobytes=0.001), "global", "1 bytes, less than one element of 8"),
        ("element", Budget(count=3), "matrix", "over 20 matrices"),
        ("row", Budget(count=11), "global", "less than one row of 12"),
        ("column", Budget(count=23), "global", "less than one column of 24"),
        ("head", Budget(count=127), "global", "less than one head of 128"),
        ("channel", Budget(count=15), "global", "less than one channel of 16"),
        ("element", Budget(fraction=1.0), "global", "selects all of .* use method full"),
        ("row", Budget(count=10**9), "global", "selects all of"),
        ("head", Budget(kilobytes=1e6), "matrix", "selects all of"),
    ],
)
def test_a_budget_that_holds_nothing_or_everything_is_refused(
    granularity: Granularity, budget: Budget, scope: str, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        units(granularity).check(budget, scope)  # type: ignore[arg-type]


def test_a_whole_matrix_is_refused_by_name() -> None:
    these = Units({"a": (2, 2), "b": (3, 2)}, "row")
    for chosen in (
        {"b": Chosen("rows", torch.tensor([0, 1, 2]))},
        {"a": Chosen("rows", torch.tensor([0])), "b": Chosen("elements", torch.arange(6))},
    ):
        with pytest.raises(InputError, match="selects all of b; that is full tuning"):
            refuse_whole(chosen, these.shapes)
    refuse_whole({"b": Chosen("columns", torch.tensor([1]))}, these.shapes)


@pytest.mark.parametrize(
    ("granularity", "names", "says"),
    [
        ("channel", ["layers.0.fc1"], "couples layers.0.fc1 with fc2"),
        ("channel", ["layers.0.self_attn.v_proj"], "couples .*v_proj with out_proj"),
        ("channel", ["lm_heads.0"], "does not fit lm_heads.0"),
        ("head", ["layers.0.fc1", "layers.0.fc2"], "fc1, which is not an attention projection"),
    ],
)
def test_a_granularity_that_does_not_fit_the_targets_is_refused(
    granularity: Granularity, names: list[str], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        Units({name: (8, 8) for name in names}, granularity, {})


def test_heads_of_unequal_number_are_refused() -> None:
    found = {"l.self_attn.q_proj": (8, 8), "l.self_attn.k_proj": (4, 8)}
    with pytest.raises(InputError, match=r"\[8, 4\] slices"):
        Units(found, "head", dict.fromkeys(found, 4))


def test_short_names_of_targets_and_expressions() -> None:
    import re

    def found(targets: str) -> set[str]:
        return {n for n in shapes(1) if re.search(target_pattern(targets), n)}

    assert found("value") == {"layers.0.self_attn.v_proj"}
    assert found("query, key") == {"layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj"}
    assert found("self_attention") == {n for n in shapes(1) if "self_attn" in n}
    assert found("cross_attention") == {n for n in shapes(1) if "encoder_attn" in n}
    assert found("feed_forward") == {"layers.0.fc1", "layers.0.fc2"}
    assert found("all") == set(shapes(1))
    assert found(r"\.fc1$|self_attn\.out") == {"layers.0.fc1", "layers.0.self_attn.out_proj"}
    assert found(r"v_proj.{0,3}$") == {n for n in shapes(1) if "v_proj" in n}


def test_a_misspelt_short_name_among_others_is_named() -> None:
    with pytest.raises(InputError, match="'valeu' is none of query, key, value, ") as caught:
        target_pattern("query,valeu")
    assert "\n" not in str(caught.value)
