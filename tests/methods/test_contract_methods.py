"""What every tuning method promises, for each one found in ``musictune.methods``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from musictune.errors import InputError
from musictune.methods import attach_adapter, load_adapter, methods, save_adapter
from musictune.methods.base import TuningMethod, trained_parameters
from musictune.methods.bottleneck import Bottleneck
from musictune.methods.combined import Combined
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.full import Full
from musictune.methods.peft import Peft
from musictune.methods.pivotal import Pivotal
from musictune.methods.prefix import Prefix
from musictune.methods.prompt import PromptTuning
from musictune.methods.scale_shift import ScaleShift
from musictune.models.base import Batch, MusicModel
from tests.methods.toys import base, fits, toy

PEFT_KINDS: dict[str, dict[str, object]] = {
    "lora": {"r": 2},
    "dora": {"r": 2},
    "rslora": {"r": 2},
    "pissa": {"r": 2},
    "miss": {"r": 2},
    "oft": {"oft_block_size": 4},
    "vera": {"r": 4},
    "shira": {"r": 2},
    "ia3": {},
    "lokr": {"r": 2},
}


def build(case: str) -> TuningMethod:
    if case in PEFT_KINDS:
        return Peft(case, PEFT_KINDS[case])
    if case == "combined_peft":
        return Combined([ConceptTokens.toy(), Peft.toy()])
    if case == "combined_live":
        return Combined([ConceptTokens.toy(), Bottleneck.toy()])
    return methods()[case].toy()


CASES = [*(n for n in methods() if n != "peft"), *PEFT_KINDS, "combined_peft", "combined_live"]
CASES = [case for case in CASES if fits(build(case))]
FAST = {"full": 1e-2, "oft": 3e-2, "ia3": 5e-2, "vera": 1e-1, "prefix": 1e-1, "prompt_tuning": 1e-1}
LIVE = [n for n in CASES if n in methods() and not methods()[n].mergeable] + ["combined_live"]
MERGED = [case for case in CASES if case not in LIVE]


def batch(text: str = "a zorblax piano") -> Batch:
    codes = torch.randint(0, 64, (2, 4, 12), generator=torch.Generator().manual_seed(5))
    return Batch(codes, torch.tensor([12, 9]), (text, "slow guitar"))


def attached(case: str) -> tuple[MusicModel, TuningMethod]:
    model, method = toy(), build(case)
    torch.manual_seed(0)
    method.prepare(model, itertools.repeat(batch()))
    method.attach(model)
    return model, method


def learn(model: MusicModel, steps: int = 3, lr: float = 2e-2) -> tuple[float, float]:
    optimizer = torch.optim.AdamW(trained_parameters(model).values(), lr=lr, weight_decay=0)
    losses = []
    for _ in range(steps + 1):
        optimizer.zero_grad()
        loss = model.nll(batch()).mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return losses[0], losses[-1]


def output(model: MusicModel, text: str = "a zorblax piano") -> Tensor:
    with torch.no_grad():
        return model.nll(batch(text))


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def test_starts_as_the_identity(case: str) -> None:
    """On a text without new words: those mean something else than an unknown word at once."""
    model, _ = attached(case)
    expected = output(base(), "a bright piano")
    assert torch.allclose(output(model, "a bright piano"), expected, atol=1e-6)


def test_gradients_reach_every_part_and_only_its_own_weights_move(case: str) -> None:
    model, method = attached(case)
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    # A method may write its change into the weights, or take its start out of them; switched off,
    # it has to bring them back.
    with method.disabled(model):
        before = {name: parameter.detach().clone() for name, parameter in frozen.items()}
    buffers = {n: b.detach().clone() for n, b in model.named_buffers()}
    learn(model, steps=3)
    trained = trained_parameters(model)
    reached = [n for n, p in trained.items() if p.grad is not None and p.grad.abs().sum() > 0]
    # A norm that a model does not use is no fault of the method.
    assert len(reached) >= 0.7 * len(trained)
    assert all(parameter.grad is None for parameter in frozen.values())
    with method.disabled(model):
        for name, parameter in frozen.items():
            assert torch.equal(parameter, before[name]), name
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_disabled_is_the_base_and_comes_back(case: str) -> None:
    model, method = attached(case)
    learn(model)
    changed = output(model)
    trained = list(trained_parameters(model))
    with method.disabled(model):
        assert torch.equal(output(model), output(base()))
    assert torch.equal(output(model), changed)
    assert list(trained_parameters(model)) == trained
    assert not torch.equal(changed, output(base()))


def test_saved_and_loaded_is_equal_and_still_trains(case: str, tmp_path: Path) -> None:
    model, method = attached(case)
    learn(model)
    save_adapter(model, method, tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in {".bin", ".pt", ".pkl", ".ckpt"}]
    fresh = toy()
    attach_adapter(fresh, tmp_path)
    assert torch.equal(output(fresh), output(model))
    ours, theirs = trained_parameters(model), trained_parameters(fresh)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("case", MERGED)
def test_merged_is_close_and_leaves_plain_modules(case: str) -> None:
    model, method = attached(case)
    learn(model)
    expected = output(model)
    method.merge(model)
    assert torch.allclose(output(model), expected, atol=2e-5)
    names = {name for name, _ in model.backbone.named_parameters()}
    assert names == {name for name, _ in base().backbone.named_parameters()}
    kinds = {type(module).__name__ for module in model.modules()}
    assert kinds == {type(module).__name__ for module in base().modules()}


@pytest.mark.parametrize("case", MERGED)
def test_half_the_weight_is_half_the_way(case: str, tmp_path: Path) -> None:
    model, method = attached(case)
    learn(model)
    save_adapter(model, method, tmp_path)
    states = {}
    for weight in (0.0, 0.5, 1.0):
        fresh = toy()
        load_adapter(fresh, tmp_path, weight)
        states[weight] = {n: p.detach() for n, p in fresh.named_parameters()}
    none, half, whole = states[0.0], states[0.5], states[1.0]
    assert any(not torch.equal(none[n], whole[n]) for n in none)
    for name in none:
        assert torch.allclose(half[name], (none[name] + whole[name]) / 2, atol=1e-5), name
    for name, parameter in base().backbone.named_parameters():
        assert torch.allclose(none[f"network.decoder.{name}"], parameter, atol=1e-6), name


@pytest.mark.parametrize("case", LIVE)
def test_what_cannot_be_merged_says_so_and_stays_as_it_is(case: str) -> None:
    model, method = attached(case)
    learn(model)
    expected = output(model)
    with pytest.raises(InputError, match="cannot be folded") as caught:
        method.merge(model)
    assert "\n" not in str(caught.value)
    assert torch.equal(output(model), expected)


def test_nothing_is_merged_where_one_of_several_cannot_be() -> None:
    """Wherever it stands among them."""
    model, method = toy(), Combined([Bottleneck.toy(), Pivotal(0.1, selection="random")])
    method.prepare(model, itertools.repeat(batch()))
    method.attach(model)
    learn(model)
    expected = output(model)
    with pytest.raises(InputError, match="bottleneck cannot be folded"):
        method.merge(model)
    assert torch.equal(output(model), expected)
    method.detach(model)
    assert torch.equal(output(model), output(base()))


@pytest.mark.parametrize("case", LIVE)
def test_what_cannot_be_merged_is_loaded_live_and_scaled(case: str, tmp_path: Path) -> None:
    model, method = attached(case)
    learn(model)
    save_adapter(model, method, tmp_path)
    given = "a bright piano"  # no new word: those come whole or not at all
    heard = {}
    for weight in (0.0, 0.5, 1.0):
        fresh = toy()
        load_adapter(fresh, tmp_path, weight)
        heard[weight] = output(fresh, given)
    assert torch.equal(heard[0.0], output(base(), given))
    assert torch.allclose(heard[1.0], output(model, given), atol=1e-6)
    assert not torch.allclose(heard[0.5], heard[0.0], atol=1e-6)
    assert not torch.allclose(heard[0.5], heard[1.0], atol=1e-6)


def test_one_batch_overfits(case: str) -> None:
    model, _ = attached(case)
    first, last = learn(model, steps=15, lr=FAST.get(case, 2e-2))
    assert last < first - 0.005


def test_detached_is_the_base_to_the_bit(case: str) -> None:
    model, method = attached(case)
    learn(model)
    method.detach(model)
    ours, theirs = dict(model.named_parameters()), dict(base().named_parameters())
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(output(model), output(base()))


def test_prepare_leaves_the_model_as_it_came(case: str) -> None:
    model, method = toy(), build(case)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    method.prepare(model, itertools.repeat(batch()))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert torch.equal(output(model), output(base()))


def test_describes_what_it_trains(case: str) -> None:
    model, method = attached(case)
    count = sum(p.numel() for p in trained_parameters(model).values())
    assert method.describe()["trained_parameters"] == count


@pytest.mark.parametrize(
    "kind", [Pivotal, Peft, Full, Bottleneck, ScaleShift, Prefix, PromptTuning]
)
def test_targets_that_match_nothing_are_an_error(kind: type[TuningMethod]) -> None:
    method = kind(targets=r"no_such_layer$")  # type: ignore[call-arg]
    model = toy()
    with pytest.raises(InputError, match="matched no layer"):
        method.prepare(model, itertools.repeat(batch()))
        method.attach(model)


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_method_is_documented_and_has_a_rate(name: str) -> None:
    kind = methods()[name]
    assert kind.__doc__
    assert kind.toy().learning_rate > 0
    assert kind.name == name
