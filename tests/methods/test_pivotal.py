"""The pivotal method with each rule and granularity, its files, and what it refuses."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from musictune.errors import InputError
from musictune.methods.base import trained_parameters
from musictune.methods.pivotal import Pivotal
from musictune.methods.selection import RULES, looks
from musictune.methods.storage import load_tensors
from musictune.methods.units import Granularity
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen
from tests.methods.toys import base, toy

TOTAL = 8 * 16 * 16  # of the toy's self-attention


def batch(step: int = 0) -> Batch:
    codes = torch.randint(0, 64, (2, 4, 8), generator=torch.Generator().manual_seed(step))
    return Batch(codes, torch.tensor([8, 6]), ("slow piano", "guitar"))


def output(model: MusicGen) -> Tensor:
    with torch.no_grad():
        return model.nll(batch())


def attached(method: Pivotal) -> MusicGen:
    model = toy()
    method.prepare(model, itertools.repeat(batch()))
    method.attach(model)
    return model


def train(
    model: MusicGen,
    method: Pivotal,
    optimizer: torch.optim.Optimizer,
    steps: range,
    total: int,
) -> None:
    for step in steps:
        method.before_step(model, optimizer, step, total)
        optimizer.zero_grad()
        model.nll(batch(step)).mean().backward()
        optimizer.step()
        method.after_step(model, optimizer, step, total)


def adamw(model: MusicGen) -> torch.optim.AdamW:
    parameters = [p for _, p in sorted(trained_parameters(model).items())]
    return torch.optim.AdamW(parameters, lr=2e-2, weight_decay=0)


def fits(selection: str, granularity: str) -> bool:
    only = {"heads": "head", "grow": "element"}
    return only.get(selection, granularity) == granularity


CASES = [
    # Every rule at one granularity, and every granularity with one rule.
    pytest.param(s, g, marks=() if g in (first, "head") or s == "delta" else pytest.mark.slow)
    for s in RULES
    for first in ("element" if fits(s, "element") else "head",)
    for g in get_args(Granularity)
    if fits(s, g)
]


@pytest.mark.parametrize(("selection", "granularity"), CASES)
def test_every_rule_at_every_granularity_keeps_what_a_method_promises(
    selection: str, granularity: Granularity, tmp_path: Path
) -> None:
    method = Pivotal(
        fraction=0.3, rounds=2, probe_steps=1, selection=selection, granularity=granularity,
        interval=2,
    )  # fmt: skip
    model = attached(method)
    assert torch.equal(output(model), output(base()))
    trained = sum(p.numel() for p in trained_parameters(model).values())
    facts = method.describe()
    assert facts["trained_parameters"] == trained <= round(0.3 * TOTAL)
    assert (facts["selection"], facts["granularity"]) == (selection, granularity)
    train(model, method, adamw(model), range(4), 8)
    tuned = output(model)
    assert not torch.equal(tuned, output(base()))
    with method.disabled(model):
        assert torch.equal(output(model), output(base()))
    assert torch.equal(output(model), tuned)
    method.save(model, tmp_path)
    fresh = toy()
    loaded = Pivotal.load(fresh, tmp_path)
    assert torch.equal(output(fresh), tuned)
    assert list(trained_parameters(fresh)) == list(trained_parameters(model))
    assert (loaded.selection, loaded.granularity) == (selection, granularity)
    loaded.merge(fresh)
    assert torch.allclose(output(fresh), tuned, atol=2e-5)
    method.detach(model)
    for name, parameter in base().backbone.named_parameters():
        assert torch.equal(model.backbone.get_parameter(name), parameter)


@pytest.mark.parametrize("selection", ["delta", "half", "layers", "grow"])
def test_a_resumed_training_is_the_same_to_the_bit(selection: str, tmp_path: Path) -> None:
    """From the saved adapter and the optimiser's state alone, at a step amid an interval."""

    def method() -> Pivotal:
        return Pivotal(fraction=0.1, selection=selection, interval=3, rounds=1, probe_steps=1)

    straight, one = method(), None
    one = attached(straight)
    train(one, straight, adamw(one), range(14), 14)
    first = method()
    model = attached(first)
    optimizer = adamw(model)
    train(model, first, optimizer, range(7), 14)
    first.save(model, tmp_path)
    state = copy.deepcopy(optimizer.state_dict())
    fresh = toy()
    second = Pivotal.load(fresh, tmp_path)
    resumed = adamw(fresh)
    resumed.load_state_dict(state)
    train(fresh, second, resumed, range(7, 14), 14)
    for name, parameter in trained_parameters(one).items():
        assert torch.equal(trained_parameters(fresh)[name], parameter), name
    for name, layer in straight.layers.items():
        assert torch.equal(second.layers[name].chosen.indices, layer.chosen.indices)
        assert torch.equal(second.chosen[name].indices, layer.chosen.indices)


def test_growing_trains_other_weights_than_it_began_with() -> None:
    method = Pivotal(fraction=0.1, selection="grow", interval=2)
    model = attached(method)
    before = {name: part.indices.clone() for name, part in method.chosen.items()}
    train(model, method, adamw(model), range(6), 8)
    moved = [n for n, part in method.chosen.items() if not torch.equal(part.indices, before[n])]
    assert len(moved) == len(before)
    assert sum(len(part.indices) for part in method.chosen.values()) == round(0.1 * TOTAL)


def test_the_choice_follows_from_seed_and_batches_alone() -> None:
    def choice(chance: int, training: bool) -> list[int]:
        method, model = Pivotal.toy(), toy()
        model.train(training)
        torch.manual_seed(chance)
        method.prepare(model, (batch(step) for step in itertools.count()))
        assert model.training == training
        return [i for part in method.chosen.values() for i in part.indices.tolist()]

    assert choice(0, False) == choice(1, False) == choice(2, True)


def test_short_names_budget_in_bytes_and_the_files_they_end_in(tmp_path: Path) -> None:
    for granularity in ("element", "column"):
        method = Pivotal(kilobytes=2, targets="all", selection="magnitude", granularity=granularity)
        model = attached(method)
        method.save(model, tmp_path / granularity)
        tensors = load_tensors(tmp_path / granularity / "pivotal.safetensors")
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        assert 1700 < size <= 2000
        assert all(t.dtype == torch.int32 for n, t in tensors.items() if n.endswith(".indices"))
        kinds = {layer.chosen.kind for layer in method.layers.values()}
        assert kinds == {"elements" if granularity == "element" else "columns"}


def test_facts_say_where_in_depth_the_trained_weights_are() -> None:
    method = Pivotal(count=40, selection="random", targets="value,feed_forward")
    assert method.fraction is None
    model = attached(method)
    facts = method.describe()
    counts = [part.split(": ") for part in str(facts["trained_by_depth"]).split(", ")]
    assert [depth for depth, _ in counts] == ["0", "1"]
    assert sum(int(count) for _, count in counts) == 40
    assert float(facts["selection_seconds"]) >= 0
    assert facts["share_of_backbone"] == pytest.approx(
        40 / sum(p.numel() for p in model.backbone.parameters() if not p.requires_grad), rel=0.01
    )


def test_dropout_reaches_the_layers_and_is_off_outside_training() -> None:
    method = Pivotal(fraction=0.2, selection="random", dropout=0.5)
    model = attached(method)
    assert {layer.dropout for layer in method.layers.values()} == {0.5}
    with torch.no_grad():
        for layer in method.layers.values():
            layer.values.fill_(0.2)
    assert torch.equal(output(model), output(model))
    model.train(True)
    torch.manual_seed(1)
    dropped = output(model)
    model.train(False)
    assert not torch.equal(dropped, output(model))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fraction": 0.0}, "fraction 0.0"),
        ({"fraction": float("nan")}, "fraction nan"),
        ({"fraction": 1.5}, "fraction 1.5"),
        ({"count": 0}, "count 0"),
        ({"kilobytes": -1.0}, "kilobytes -1.0"),
        ({"fraction": 0.1, "kilobytes": 1.0}, "one of fraction, count and kilobytes"),
        ({"rounds": 0}, "rounds 0"),
        ({"probe_steps": 0}, "probe_steps 0"),
        ({"interval": 0}, "interval 0"),
        ({"probe_lr": float("nan")}, "probe_lr nan"),
        ({"scope": "layer"}, "'layer' must be 'global' or 'matrix'"),
        ({"selection": "gradiant"}, "'gradiant' is unknown; choose from delta"),
        ({"granularity": "block"}, "'block' is unknown; choose from element, row"),
        ({"selection": "heads", "granularity": "row"}, "granularity row cannot be"),
        ({"selection": "grow", "granularity": "column"}, "granularity column cannot be"),
        ({"active": 0.0}, "active 0.0"),
        ({"exchange": 1.5}, "exchange 1.5"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Pivotal(**options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kilobytes": 0.001}, "1 bytes, less than one element of 8 bytes"),
        ({"fraction": 1e-9}, "0 weights, less than one element"),
        ({"fraction": 0.1, "granularity": "head"}, "205 weights, less than one head of 512"),
        ({"fraction": 1.0}, "selects all of .* use method full"),
        ({"targets": "value", "granularity": "channel"}, "couples .*v_proj with out_proj"),
        ({"targets": "feed_forward", "granularity": "head"}, "not an attention projection"),
        ({"targets": "feed_forward", "selection": "heads"}, "not an attention projection"),
        ({"targets": "nothing_here"}, "matched no layer"),
        ({"targets": "("}, "no regular expression"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_any_looking(
    options: dict[str, Any], says: str
) -> None:
    model = toy()
    with pytest.raises(InputError, match=says):
        Pivotal(**options).check(model)
    with pytest.raises(InputError, match=says):
        Pivotal(**options).prepare(model, iter(()))


def test_a_choice_of_a_whole_matrix_is_refused_by_name() -> None:
    """All that can be learned lies in one matrix, so the rule takes all of it."""
    model, method = toy(), Pivotal(fraction=1 / 8, selection="gradient", rounds=1, probe_steps=1)
    original = model.nll

    def nll(given: Batch) -> Tensor:
        loss = original(given)
        for name, p in model.backbone.named_parameters():
            if p.requires_grad and "layers.1.self_attn.v_proj" not in name:
                p.register_hook(torch.zeros_like)
        return loss

    model.nll = nll  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"selects all of model\.decoder\.layers\.1.*full tuning"):
        method.prepare(model, itertools.repeat(batch()))
    assert not method.chosen
    with pytest.raises(InputError, match="call prepare"):
        method.attach(model)


@pytest.mark.parametrize("selection", [name for name in RULES if looks(name)])
def test_rules_look_at_a_base_in_half_precision_too(selection: str) -> None:
    model = toy()
    model.half_backbone()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    method = Pivotal(fraction=0.3, rounds=2, probe_steps=1, selection=selection)
    method.prepare(model, itertools.repeat(batch()))
    assert sum(len(part.indices) for part in method.chosen.values())
    for name, p in model.named_parameters():
        assert p.dtype == before[name].dtype
        assert torch.equal(p, before[name])


@pytest.mark.parametrize("selection", ["half", "layers"])
def test_dropout_of_resting_layers_follows_from_the_step_alone(selection: str) -> None:
    """As a resumed run needs it, which does not know what was drawn before."""

    def held(steps: range) -> list[Tensor]:
        method = Pivotal(fraction=0.2, selection=selection, dropout=0.5, interval=1)
        model = attached(method).train()
        for layer in method.layers.values():
            torch.nn.init.constant_(layer.values, 0.1)
        optimizer = torch.optim.AdamW(trained_parameters(model).values(), lr=1e-3)
        for step in steps:
            method.before_step(model, optimizer, step, 9)
            torch.manual_seed(step)
            model.nll(batch())
        return [layer.base.weight.clone() for layer in method.layers.values()]

    whole, resumed = held(range(3)), held(range(2, 3))
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(whole, held(range(2)), strict=True))
