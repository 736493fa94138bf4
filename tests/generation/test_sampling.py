"""Sampling from scores, and the checks of its options."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TopKLogitsWarper, TopPLogitsWarper

from musictune.errors import InputError
from musictune.generation.sampling import Sampling, draw, guide, uniforms


def frequencies(logits: torch.Tensor, sampling: Sampling, count: int = 20_000) -> torch.Tensor:
    luck = torch.rand(count, generator=torch.Generator().manual_seed(0))
    tokens = draw(logits.expand(count, -1), luck, sampling)
    return torch.bincount(tokens, minlength=logits.shape[-1]) / count


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -5.0])
    shares = frequencies(logits, Sampling(top_k=0))
    assert torch.allclose(shares, logits.softmax(0), atol=0.015)


def test_temperature_sharpens_and_flattens() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -5.0])
    for temperature in (0.5, 2.0):
        shares = frequencies(logits, Sampling(temperature=temperature, top_k=0))
        assert torch.allclose(shares, (logits / temperature).softmax(0), atol=0.015)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("top_k", [1, 3, 50])
def test_filters_allow_the_tokens_that_transformers_allows(top_k: int, top_p: float) -> None:
    logits = torch.randn(1, 12) * 2
    kept = TopPLogitsWarper(top_p)(None, TopKLogitsWarper(top_k)(None, logits.clone()))
    shares = frequencies(logits, Sampling(top_k=top_k, top_p=top_p))
    assert torch.allclose(shares, kept.softmax(-1)[0], atol=0.02)
    assert (shares[kept[0] == -math.inf] == 0).all()


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=9),
    luck=st.sampled_from([0.0, 0.5, 1 - 2**-24]),
    top_k=st.integers(0, 12),
    top_p=st.floats(0, 1),
)
def test_every_luck_gives_an_allowed_token(
    logits: list[float], luck: float, top_k: int, top_p: float
) -> None:
    scores = torch.tensor([logits])
    token = int(draw(scores, torch.tensor([luck]), Sampling(top_k=top_k, top_p=top_p)))
    rank = int((scores[0] > scores[0, token]).sum())
    assert 0 <= token < len(logits)
    assert rank < (top_k or len(logits))
    assert scores.softmax(-1)[0, token] > 0


def test_draw_keeps_shape() -> None:
    logits = torch.randn(3, 4, 64)
    luck = torch.rand(3, 4)
    tokens = draw(logits, luck, Sampling(top_k=10))
    assert tokens.shape == (3, 4)
    assert torch.equal(draw(logits, luck, Sampling(top_k=1)), logits.argmax(-1))


def test_guidance_is_that_of_transformers() -> None:
    from transformers import ClassifierFreeGuidanceLogitsProcessor

    logits = torch.randn(6, 10)
    theirs = ClassifierFreeGuidanceLogitsProcessor(3.0)(torch.zeros(3, 1), logits)
    assert torch.allclose(guide(logits, 3.0), theirs)
    assert torch.allclose(guide(logits, 1.0), logits[:3], atol=1e-6)


def test_luck_depends_on_the_seed_alone() -> None:
    both = uniforms([5, 9], steps=20, codebooks=4)
    assert both.shape == (20, 2, 4) and both.min() >= 0 and both.max() < 1
    assert torch.equal(both[:, 1:], uniforms([9], 20, 4))
    assert not torch.equal(both[:, 0], both[:, 1])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"temperature": math.inf}, "temperature inf"),
        ({"top_k": -1}, "top-k -1"),
        ({"top_p": 1.5}, "top-p 1.5"),
        ({"top_p": math.nan}, "top-p nan"),
        ({"guidance": 0.5}, "guidance 0.5"),
        ({"guidance": math.nan}, "guidance nan"),
    ],
)
def test_bad_options_are_named(options: dict[str, float], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Sampling(**options)
