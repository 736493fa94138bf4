"""What happens to chosen weights while they train."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from musictune.methods.online import SCHEDULES, Schedule, by_depth
from musictune.methods.sparse import Chosen, SelectedLinear

WIDTH = 6
NAMES = [f"layers.{i}.self_attn.{role}_proj" for i in range(4) for role in ("q", "k", "v", "out")]


def layers(names: list[str] = NAMES, count: int = 9) -> dict[str, SelectedLinear]:
    torch.manual_seed(0)
    made = {}
    for name in names:
        indices = torch.randperm(WIDTH * WIDTH)[:count].sort().values
        made[name] = SelectedLinear(nn.Linear(WIDTH, WIDTH), Chosen("elements", indices))
    return made


def adamw(these: Mapping[str, SelectedLinear]) -> torch.optim.AdamW:
    return torch.optim.AdamW([layer.values for layer in these.values()], lr=0.01)


def loss(these: Mapping[str, SelectedLinear], step: int, weights: Mapping[str, float]) -> Tensor:
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(step))
    return torch.stack(
        [weights.get(name, 1.0) * (layer(x) - 1).square().mean() for name, layer in these.items()]
    ).sum()


def step_on(
    schedule: Schedule,
    these: Mapping[str, SelectedLinear],
    optimizer: torch.optim.Optimizer,
    steps: range,
    total: int,
    weights: Mapping[str, float] | None = None,
) -> None:
    for step in steps:
        schedule.before(these, optimizer, step, total)
        optimizer.zero_grad()
        loss(these, step, weights or {}).backward()
        optimizer.step()
        schedule.after(these, optimizer, step, total)


def live(these: Mapping[str, SelectedLinear]) -> set[str]:
    return {name for name, layer in these.items() if layer.active}


def test_half_of_each_layer_trains_and_the_half_changes_with_the_interval() -> None:
    these, schedule = layers(), SCHEDULES["half"](seed=1, interval=3)
    optimizer, seen = adamw(these), []
    for step in range(30):
        schedule.before(these, optimizer, step, 30)
        assert all(len(live(these) & set(names)) == 2 for names in by_depth(these).values())
        seen.append(frozenset(live(these)))
    assert all(len(set(seen[i : i + 3])) == 1 for i in range(0, 30, 3))
    assert len(set(seen)) > 5
    assert set().union(*seen) == set(these)


def test_where_each_layer_has_one_matrix_half_of_all_train() -> None:
    these = layers([name for name in NAMES if "v_proj" in name])
    SCHEDULES["half"]().before(these, adamw(these), 0, 10)
    assert len(live(these)) == 2


@pytest.mark.parametrize("name", ["half", "layers"])
def test_what_rests_is_untouched_even_by_decay(name: str) -> None:
    these, schedule = layers(), SCHEDULES[name](seed=2, interval=1)
    optimizer = torch.optim.AdamW([m.values for m in these.values()], lr=0.01, weight_decay=0.5)
    rested = 0
    for step in range(8):
        before = {n: layer.values.detach().clone() for n, layer in these.items()}
        state = {n: copy.deepcopy(optimizer.state.get(m.values, {})) for n, m in these.items()}
        step_on(schedule, these, optimizer, range(step, step + 1), 8)
        for n, layer in these.items():
            moved = not torch.equal(layer.values, before[n])
            assert moved == layer.active
            if not layer.active:
                rested += 1
                now = optimizer.state.get(layer.values, {})
                assert set(now) == set(state[n])
                assert all(torch.equal(now[key], state[n][key]) for key in now)
    assert rested


def test_every_layer_is_seen_and_those_that_matter_train_most() -> None:
    these, schedule = layers(), SCHEDULES["layers"](seed=3, active=0.5)
    optimizer = adamw(these)
    heavy = {name: 50.0 for name in NAMES if ".2." in name}
    counts = dict.fromkeys(by_depth(these), 0)
    for step in range(40):
        step_on(schedule, these, optimizer, range(step, step + 1), 40, heavy)
        depths = {
            next(d for d, names in by_depth(these).items() if n in names) for n in live(these)
        }
        assert len(depths) == 2
        for depth in depths:
            counts[depth] += 1
    assert min(counts.values()) > 0
    assert max(counts, key=lambda depth: counts[depth]) == "2"
    assert counts["2"] > 35


def test_explored_layers_are_drawn_from_the_rest() -> None:
    names = [f"layers.{i}.fc1" for i in range(8)]
    these, schedule = layers(names), SCHEDULES["layers"](seed=0, active=0.5)
    optimizer = adamw(these)
    heavy = {f"layers.{i}.fc1": 100.0 for i in range(4)}
    step_on(schedule, these, optimizer, range(6), 60, heavy)
    explored = set()
    for step in range(6, 60):
        schedule.before(these, optimizer, step, 60)
        assert len(live(these)) == 4
        assert len(live(these) & set(heavy)) >= 3
        explored |= live(these) - set(heavy)
    assert explored == set(names) - set(heavy)


def test_growing_moves_places_to_where_the_gradient_is_and_keeps_their_number() -> None:
    """Only the first input and output of each matrix matter, which few entries start at."""
    these = layers(["layers.0.fc1"], count=6)
    layer = these["layers.0.fc1"]
    original, start = layer.base.weight.detach().clone(), layer.chosen.indices.clone()
    schedule, optimizer = SCHEDULES["grow"](interval=2, exchange=0.5), adamw(these)
    x = torch.zeros(4, WIDTH)
    x[:, 0] = torch.linspace(1, 2, 4)
    for step in range(24):
        schedule.before(these, optimizer, step, 24)
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
        places = layer.chosen.indices.clone()
        schedule.after(these, optimizer, step, 24)
        if (step + 1) % 2 or step + 1 > 18:
            assert torch.equal(layer.chosen.indices, places)
    assert len(layer.chosen.indices) == len(start) == len(layer.values)
    assert set((layer.chosen.indices % WIDTH).tolist()) == {0}
    assert set((start % WIDTH).tolist()) != {0}
    # What was dropped has its own bits back, and so has all once the layer is restored.
    layer(x)
    dropped = [i for i in start.tolist() if i not in layer.chosen.indices.tolist()]
    assert torch.equal(layer.base.weight.flatten()[dropped], original.flatten()[dropped])
    assert torch.equal(layer.restored().weight, original)


def test_what_is_grown_starts_from_zero_and_without_past() -> None:
    these = layers(["layers.0.fc1"])
    layer, optimizer = these["layers.0.fc1"], adamw(these)
    schedule = SCHEDULES["grow"](interval=5, exchange=0.5)
    step_on(schedule, these, optimizer, range(4), 20)
    places, values = layer.chosen.indices.clone(), layer.values.detach().clone()
    step_on(schedule, these, optimizer, range(4, 5), 20)
    now = layer.chosen.indices
    grown = ~torch.isin(now, places)
    assert int(grown.sum()) == round(0.5 * (1 - 4 / 20) * len(values))
    assert not layer.values[grown].any()
    for moment in ("exp_avg", "exp_avg_sq"):
        assert not optimizer.state[layer.values][moment][grown].any()
        assert optimizer.state[layer.values][moment][~grown].all()
    # Those that stay keep their own change, and they are the largest.
    kept = torch.isin(places, now)
    assert torch.allclose(layer.values[~grown], values[kept], atol=0.011)
    step_on(schedule, these, optimizer, range(5, 6), 20)
    assert layer.values[grown].all()


def test_depth_is_the_first_number_in_a_name() -> None:
    names = dict.fromkeys(["a.layers.3.x.1.y", "a.layers.10.z", "heads", "a.layers.3.q"])
    assert by_depth(names) == {
        "3": ["a.layers.3.q", "a.layers.3.x.1.y"],
        "10": ["a.layers.10.z"],
        "": ["heads"],
    }
