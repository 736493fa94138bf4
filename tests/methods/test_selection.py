"""What rules find when it is known where it lies, and that looking leaves no trace."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from musictune.console import Advance
from musictune.errors import CheckFailed, InputError
from musictune.methods.budget import Budget
from musictune.methods.evidence import Evidence, Looking
from musictune.methods.selection import RULES, known_rule, looks, narrowing
from musictune.methods.sparse import Chosen
from musictune.methods.units import Granularity, Units

WIDTH, HEAD = 8, 4
ROLES = ("q_proj", "k_proj", "v_proj", "out_proj")
LAYER = "layers.1.self_attn"
ADVANCE: Advance = lambda steps=1, text="": None  # noqa: E731


class Attention(nn.Module):
    head_dim = HEAD

    def __init__(self) -> None:
        super().__init__()
        for role in ROLES:
            self.add_module(role, nn.Linear(WIDTH, WIDTH, bias=False))


class Planted(nn.Module):
    """Its loss sees nothing but rows 4 to 8 of one value projection at one input column.

    The heads' outputs reach the loss through the output projection, of which only the columns of
    the second head of layer 1 are fed.
    """

    def __init__(self, column: int = 3) -> None:
        super().__init__()
        torch.manual_seed(1)
        layers = [nn.ModuleDict({"self_attn": Attention()}) for _ in range(2)]
        self.backbone = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.word = nn.Parameter(torch.zeros(WIDTH))
        self.target = torch.linspace(0.5, 2, HEAD)
        self.input = torch.zeros(1, WIDTH)
        self.input[0, column] = 1
        self.requires_grad_(False)
        self.word.requires_grad_(True)
        self.calls = 0

    def nll(self, batch: Tensor) -> Tensor:
        self.calls += 1
        attention = self.backbone.get_submodule(LAYER)
        value = attention.v_proj(self.input)[:, HEAD:] + self.word[:HEAD]
        mixed = attention.out_proj(torch.cat([torch.zeros(1, HEAD), torch.ones(1, HEAD)], 1))
        loss = (value - self.target).square().mean() + batch * (mixed - 3).square().mean()
        return loss[None]

    def linears(self) -> dict[str, nn.Linear]:
        found = self.backbone.named_modules()
        return {name: module for name, module in found if isinstance(module, nn.Linear)}


def look(
    rule: str,
    model: Planted,
    granularity: Granularity = "element",
    budget: Budget | None = None,
    batch: float = 0.0,
    seed: int = 0,
) -> dict[str, Chosen]:
    linears, budget = model.linears(), budget or Budget(count=HEAD)
    units = Units.of(model.backbone, linears, granularity)
    evidence = Evidence(
        model,  # type: ignore[arg-type]
        linears,
        itertools.repeat(torch.tensor(batch)),  # type: ignore[arg-type]
        units,
        budget,
        "global",
        Looking(rule, rounds=2, steps=4, rate=1e-2, seed=seed),
        ADVANCE,
    )
    scores = evidence.finite(RULES[rule](evidence))
    assert set(scores) == set(linears)
    for name, score in scores.items():
        assert score.shape == linears[name].weight.shape
        assert (score >= 0).all()
    return units.choose(scores, budget)


@pytest.mark.parametrize("rule", ["delta", "lottery", "sensitivity", "gradient", "mask"])
def test_rules_that_look_find_the_entries_that_matter(rule: str) -> None:
    chosen = look(rule, Planted(column=3))
    assert list(chosen) == [f"{LAYER}.v_proj"]
    assert chosen[f"{LAYER}.v_proj"].indices.tolist() == [WIDTH * row + 3 for row in range(4, 8)]


@pytest.mark.parametrize("rule", ["delta", "lottery", "sensitivity", "gradient", "mask"])
@pytest.mark.parametrize(
    ("granularity", "expected"), [("row", [4, 5]), ("column", [3]), ("head", [4, 5, 6, 7])]
)
def test_structured_choices_find_the_row_column_or_head(
    rule: str, granularity: Granularity, expected: list[int]
) -> None:
    sizes = {"row": 2 * WIDTH, "column": 3 * WIDTH, "head": 4 * HEAD * WIDTH}
    chosen = look(rule, Planted(column=3), granularity, Budget(count=sizes[granularity]))
    found = chosen[f"{LAYER}.v_proj"].indices.tolist()
    assert all(LAYER in name for name in chosen)
    if granularity == "row":
        assert set(found) <= set(range(4, 8))
        assert len(found) == 2
    else:
        assert found == expected


def test_learned_gains_find_the_head() -> None:
    chosen = look("heads", Planted(), "head", Budget(count=4 * HEAD * WIDTH), batch=1.0)
    assert chosen[f"{LAYER}.out_proj"].indices.tolist() == [4, 5, 6, 7]
    assert chosen[f"{LAYER}.out_proj"].kind == "columns"
    assert all(part.indices.tolist() == [4, 5, 6, 7] for part in chosen.values())


def test_magnitude_finds_the_largest_weights_and_reads_no_batch() -> None:
    model = Planted()
    with torch.no_grad():
        model.linears()["layers.0.self_attn.k_proj"].weight[2, 5] = -100
    chosen = look("magnitude", model, budget=Budget(count=1))
    assert chosen["layers.0.self_attn.k_proj"].indices.tolist() == [2 * WIDTH + 5]
    assert model.calls == 0
    assert not looks("magnitude")


@pytest.mark.parametrize("rule", ["random", "half", "layers", "grow"])
def test_the_control_follows_its_seed_alone(rule: str) -> None:
    model = Planted()

    def draw(seed: int) -> list[int]:
        torch.rand(3)  # whatever else draws
        chosen = look(rule, model, budget=Budget(fraction=0.2), seed=seed)
        return [i for part in chosen.values() for i in part.indices.tolist()]

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
    assert model.calls == 0


@pytest.mark.parametrize("rule", RULES)
def test_looking_leaves_no_trace_and_repeats(rule: str) -> None:
    model = Planted()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    granularity: Granularity = "head" if rule == "heads" else "element"
    budget = Budget(count=4 * HEAD * WIDTH)
    one = look(rule, model, granularity, budget, batch=1.0)
    other = look(rule, model, granularity, budget, batch=1.0)
    assert {n: c.indices.tolist() for n, c in one.items()} == {
        n: c.indices.tolist() for n, c in other.items()
    }
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None
        assert p.requires_grad == (name == "word")
    assert model.calls == (2 * 8 if looks(rule) else 0)


def test_what_trains_already_trains_along_and_an_unfrozen_base_does_not() -> None:
    seen: list[float] = []
    model = Planted()
    original: Callable[[Tensor], Tensor] = model.nll

    def nll(batch: Tensor) -> Tensor:
        seen.append(float(model.word.detach().abs().sum()))
        return original(batch)

    model.nll = nll  # type: ignore[method-assign]
    look("gradient", model)
    assert seen[0] == 0 < seen[-1]
    seen.clear()
    model.requires_grad_(True)
    look("gradient", model)
    assert set(seen) == {0.0}
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_gradient_lives_only_until_it_is_folded() -> None:
    model = Planted()
    original = model.nll

    def nll(batch: Tensor) -> Tensor:
        assert all(linear.weight.grad is None for linear in model.linears().values())
        return original(batch)

    model.nll = nll  # type: ignore[method-assign]
    look("sensitivity", model)
    assert model.calls == 8


@pytest.mark.parametrize("rule", [name for name in RULES if looks(name)])
def test_a_loss_that_is_no_number_stops_the_choice(rule: str) -> None:
    granularity: Granularity = "head" if rule == "heads" else "element"
    with pytest.raises(CheckFailed, match=rf"selection {rule}: the loss became nan at probe step"):
        look(rule, Planted(), granularity, batch=float("nan"))


@pytest.mark.parametrize("rule", ["delta", "sensitivity", "mask"])
def test_scores_that_are_no_numbers_stop_the_choice(rule: str) -> None:
    """The loss is finite, its slope is not."""
    model = Planted()
    original = model.nll

    def nll(batch: Tensor) -> Tensor:
        weight = model.backbone.get_submodule(LAYER).v_proj(model.input)
        return original(batch) + (0 * weight).sqrt().sum()

    model.nll = nll  # type: ignore[method-assign]
    with pytest.raises(CheckFailed, match=f"selection {rule}: .*lower probe_lr"):
        look(rule, model)


def test_unknown_rules_say_which_there_are() -> None:
    with pytest.raises(InputError, match="'delt' is unknown; choose from delta, lottery"):
        known_rule("delt")


def test_narrowing_ends_at_the_fraction() -> None:
    shares = narrowing(0.05, 3)
    assert shares == sorted(shares, reverse=True)
    assert abs(shares[-1] - 0.05) < 1e-12
    assert narrowing(0.2, 1) == [0.2]
