"""What every tuning method promises on audio encoders, for each one found that fits them.

The same promises as on music models (``test_contract_methods``), with a head for new labels beside
the method, as every run that learns labels has.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musictune.errors import InputError
from musictune.methods import attach_adapter, methods, save_adapter
from musictune.methods.base import TuningMethod, trained_parameters
from musictune.methods.combined import Combined
from musictune.methods.linear_probe import LinearProbe
from musictune.methods.peft import Peft
from musictune.models.classifier import Classifier, LabelledBatch

KINDS = ("ast", "wav2vec2", "hubert")
PEFT_KINDS: dict[str, dict[str, object]] = {"lora": {"r": 4}, "dora": {"r": 4}, "ia3": {}}
LABELS = ("one", "two", "three")
FAST = {
    "full": 1e-2,
    "ia3": 1e-1,
    "lora": 5e-2,
    "dora": 5e-2,
    "prefix": 1e-1,
    "deep_prompt": 1e-1,
    "shallow_prompt": 1e-1,
}


@functools.cache
def untouched(kind: str) -> Classifier:
    return Classifier.toy(kind)


def fresh(kind: str) -> Classifier:
    return copy.deepcopy(untouched(kind))


def build(case: str) -> TuningMethod:
    if case in PEFT_KINDS:
        return Peft(case, PEFT_KINDS[case])
    return methods()[case].toy()


def fits(case: str, kind: str) -> bool:
    """Whether a method is for such encoders; what is for music only refuses them."""
    try:
        build(case).check(untouched(kind))
    except InputError:
        return False
    return True


NAMES = [*(n for n in methods() if n not in ("peft", "combined")), *PEFT_KINDS]
CASES = [(name, kind) for name in NAMES for kind in KINDS if fits(name, kind)]


EVERYWHERE = ("lora", "bottleneck", "pivotal")
OFTEN = (*EVERYWHERE, "convolution", "full", "prefix", "shallow_prompt")


def param(name: str, kind: str) -> Any:
    """All methods on an AST, some on wave encoders, fewer on HuBERT, whose layers are those of
    wav2vec 2.0; the other cases are slow tests."""
    quick = {"ast": tuple(NAMES), "wav2vec2": OFTEN, "hubert": EVERYWHERE}[kind]
    marks = [] if name in quick else [pytest.mark.slow]
    return pytest.param((name, kind), id=f"{name}-{kind}", marks=marks)


PARAMS = [param(name, kind) for name, kind in CASES]
ALONE = [param(name, kind) for name, kind in CASES if name != "linear_probe"]


def batch(kind: str) -> LabelledBatch:
    """Four clips that differ as sounds do: each in its own bands, or at its own pitch."""
    model, generator = untouched(kind), torch.Generator().manual_seed(5)
    bands, heard = model.front.bands, []
    for number in range(4):
        shape = (model.steps, bands) if bands else (model.steps,)
        noise = torch.randn(shape, generator=generator)
        if bands:
            heard.append(noise + 3 * torch.randn(bands, generator=generator))
        else:
            pitch = 150 * 2**number
            heard.append(noise + 3 * (torch.arange(model.steps) * pitch / 8000 * 6.283).sin())
    return model.batch(heard, torch.eye(3)[[0, 1, 2, 0]])


def output(model: Classifier, kind: str) -> Tensor:
    given = batch(kind)
    with torch.no_grad():
        return model.logits(given.inputs, given.lengths)


def with_head(method: TuningMethod) -> TuningMethod:
    if isinstance(method, LinearProbe):
        return method
    return Combined([LinearProbe(LABELS), method])


def attached(case: str, kind: str) -> tuple[Classifier, TuningMethod]:
    model, method = fresh(kind), with_head(build(case))
    torch.manual_seed(0)
    method.prepare(model, itertools.repeat(batch(kind)))
    method.attach(model)
    return model, method


def learn(model: Classifier, kind: str, steps: int = 3, lr: float = 1e-2) -> tuple[float, float]:
    model.train()
    optimizer = torch.optim.AdamW(trained_parameters(model).values(), lr=lr, weight_decay=0)
    losses = []
    for _ in range(steps + 1):
        optimizer.zero_grad()
        loss = model.nll(batch(kind)).mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    model.eval()
    return losses[0], losses[-1]


@pytest.fixture(params=PARAMS)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    yield request.param


@pytest.mark.parametrize("alone", ALONE)
def test_starts_as_the_identity(alone: tuple[str, str]) -> None:
    """Without a head of its own, the answer is the base's to the last bit or nearly."""
    name, kind = alone
    model, method = fresh(kind), build(name)
    method.prepare(model, itertools.repeat(batch(kind)))
    method.attach(model)
    assert torch.allclose(output(model, kind), output(untouched(kind), kind), atol=1e-5)


def test_gradients_reach_every_part_and_only_its_own_weights_move(case: tuple[str, str]) -> None:
    model, method = attached(*case)
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    with method.disabled(model):
        before = {name: parameter.detach().clone() for name, parameter in frozen.items()}
    first = model.nll(batch(case[1])).mean()
    first.backward()
    named = trained_parameters(model).items()
    at_once = [n for n, p in named if p.grad is not None and p.grad.any()]
    assert any("head" not in name for name in at_once) or case[0] == "linear_probe"
    learn(model, case[1], steps=3)
    trained = trained_parameters(model)
    reached = [n for n, p in trained.items() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(reached) >= 0.7 * len(trained)
    assert all(parameter.grad is None for parameter in frozen.values())
    with method.disabled(model):
        for name, parameter in frozen.items():
            assert torch.equal(parameter, before[name]), name


def test_disabled_is_the_base_and_comes_back(case: tuple[str, str]) -> None:
    model, method = attached(*case)
    learn(model, case[1])
    changed = output(model, case[1])
    trained = list(trained_parameters(model))
    with method.disabled(model):
        assert torch.equal(output(model, case[1]), output(untouched(case[1]), case[1]))
    assert torch.equal(output(model, case[1]), changed)
    assert list(trained_parameters(model)) == trained


def test_saved_and_loaded_is_equal_and_still_trains(case: tuple[str, str], tmp_path: Path) -> None:
    model, method = attached(*case)
    learn(model, case[1])
    save_adapter(model, method, tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in {".bin", ".pt", ".pkl", ".ckpt"}]
    other = fresh(case[1])
    attach_adapter(other, tmp_path)
    assert other.labels == LABELS
    assert torch.equal(output(other, case[1]), output(model, case[1]))
    ours, theirs = trained_parameters(model), trained_parameters(other)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_detached_is_the_base_to_the_bit(case: tuple[str, str]) -> None:
    model, method = attached(*case)
    learn(model, case[1])
    method.detach(model)
    base = untouched(case[1])
    ours, theirs = model.state_dict(), base.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(output(model, case[1]), output(base, case[1]))


def test_merged_is_close_or_refused(case: tuple[str, str]) -> None:
    model, method = attached(*case)
    learn(model, case[1])
    expected = output(model, case[1])
    live = not build(case[0]).mergeable
    if live:
        with pytest.raises(InputError, match="cannot be folded"):
            method.merge(model)
        assert torch.equal(output(model, case[1]), expected)
        return
    method.merge(model)
    assert torch.allclose(output(model, case[1]), expected, atol=1e-4)
    names = {name for name, _ in model.backbone.named_parameters()}
    assert names == {name for name, _ in untouched(case[1]).backbone.named_parameters()}


def test_one_batch_overfits(case: tuple[str, str]) -> None:
    model, _ = attached(*case)
    steps = 60 if case[0] in PEFT_KINDS else 25
    first, last = learn(model, case[1], steps, FAST.get(case[0], 2e-2))
    assert last < 0.9 * first


def test_describes_what_it_trains(case: tuple[str, str]) -> None:
    model, method = attached(*case)
    count = sum(p.numel() for p in trained_parameters(model).values())
    assert method.describe()["trained_parameters"] == count


def test_most_methods_fit_every_kind_of_encoder() -> None:
    """A method that refuses encoders by mistake would slip through all the tests above."""
    for kind in KINDS:
        found = {name for name, other in CASES if other == kind}
        assert {"linear_probe", "full", "pivotal", "bottleneck", "ssf", "lora"} <= found
