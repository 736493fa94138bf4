"""The soft mixture of adapters against sums written out, and its symmetry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.methods.soft_moa import MixedAdapters, SoftMoa
from tests.methods import toys
from tests.methods.encoders import attached, output, perturb, toy

FEATURES = 5


def mixture(experts: int, slots: int, width: int, seed: int = 0) -> MixedAdapters:
    generator = torch.Generator().manual_seed(seed)
    base = nn.Linear(FEATURES, FEATURES)
    made = MixedAdapters(base, FEATURES, experts, slots, width, generator, "parallel")
    with torch.no_grad():
        for parameter in made.learned().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return made


def written_out(made: MixedAdapters, x: Tensor, slots: int) -> Tensor:
    """One clip, slot by slot."""
    logits = x @ made.slots
    found = torch.zeros_like(x)
    for slot in range(logits.shape[1]):
        expert = slot // slots
        read = (logits[:, slot].softmax(0)[:, None] * x).sum(0)
        narrow = nn.functional.gelu(read @ made.down[expert] + made.down_bias[expert, 0])
        answer = narrow @ made.up[expert] + made.up_bias[expert, 0]
        found = found + logits.softmax(1)[:, slot, None] * answer
    return found


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    tokens=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_a_mixture_is_its_formula(sizes: tuple[int, int, int], tokens: int, seed: int) -> None:
    torch.manual_seed(seed)
    made, x = mixture(*sizes, seed=seed), torch.randn(2, tokens, FEATURES)
    found = made.change(x)
    for row, clip in zip(found, x, strict=True):
        assert torch.allclose(row, written_out(made, clip, sizes[1]), atol=1e-4)
    # Tokens have no order for it.
    order = torch.randperm(tokens)
    assert torch.allclose(made.change(x[:, order]), found[:, order], atol=1e-4)


def test_slots_begin_within_the_bounds_of_their_draw() -> None:
    model, method = toy("ast"), SoftMoa(experts=7)
    method.attach(model)
    reach = (6 / (16 + 7)) ** 0.5
    slots = [p for n, p in method._learned().items() if n.endswith("slots")]
    assert len(slots) == 2
    for drawn in slots:
        assert drawn.shape == (16, 7)
        assert 0.9 * reach < drawn.abs().max() <= reach


def test_it_reads_what_attention_reads() -> None:
    method = SoftMoa(experts=2, norms=False)
    model = attached(method, "ast")
    assert sorted(method._attached()) == [
        f"layers.{i}.attention.{part}" for i in (0, 1) for part in ("o_proj", "q_proj")
    ]
    perturb(model)
    layer = model.backbone.get_submodule("layers.0.attention")
    mixed = layer.get_submodule("o_proj")
    assert isinstance(mixed, MixedAdapters)
    x = torch.randn(2, 4, 16)
    with torch.no_grad():
        whole = layer(x)[0]
        with method.disabled(model):
            plain = layer(x)[0]
        assert torch.allclose(whole - plain, mixed.change(x), atol=1e-5)


def test_width_is_a_share_of_the_channels() -> None:
    model, method = toy("ast"), SoftMoa(norms=False)
    method.attach(model)
    adapter = 2 * 16 * 1 + 1 + 16
    assert method.describe()["trained_parameters"] == 2 * (7 * adapter + 16 * 7)


def test_options_build_it_again() -> None:
    model, method = toy("ast"), SoftMoa(3, 2, 2, 1)
    method.attach(model)
    other = toy("ast")
    again = SoftMoa(**method.options())
    again.attach(other)
    assert again.options() == method.options() and method.options()["norms"] is True
    perturb(model)
    perturb(other)
    assert torch.equal(output(model, "ast"), output(other, "ast"))


def test_what_it_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="method soft_moa lets every step hear later ones"):
        SoftMoa().check(toys.base())
    for name in ("experts", "slots", "width"):
        with pytest.raises(InputError, match=f"{name} 0 must be"):
            SoftMoa(**{name: 0})
