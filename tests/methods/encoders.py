"""Small random audio encoders that tests of methods share, and what they hear."""

from __future__ import annotations

import copy
import functools
import itertools

import torch
from torch import Tensor

from musictune.methods.base import TuningMethod, trained_parameters
from musictune.models.classifier import Classifier, LabelledBatch

KINDS = ("ast", "wav2vec2", "hubert")


@functools.cache
def base(kind: str) -> Classifier:
    """Nobody changes this one."""
    return Classifier.toy(kind)


def toy(kind: str) -> Classifier:
    """One to change."""
    return copy.deepcopy(base(kind))


@functools.cache
def batch(kind: str) -> LabelledBatch:
    """Two clips, the second of three quarters of what is heard at once."""
    front, steps = base(kind).front, base(kind).steps
    generator = torch.Generator().manual_seed(1)
    heard = [
        torch.randn((n, front.bands) if front.bands else (n,), generator=generator)
        for n in (steps, steps * 3 // 4)
    ]
    return base(kind).batch(heard, torch.eye(3)[:2])


def output(model: Classifier, kind: str) -> Tensor:
    """Scores of :func:`batch`."""
    with torch.no_grad():
        return model.logits(batch(kind).inputs, batch(kind).lengths)


def states(model: Classifier, kind: str) -> Tensor:
    """Last states of :func:`batch`."""
    with torch.no_grad():
        return model.states(batch(kind).inputs, batch(kind).lengths)[0]


def perturb(model: Classifier, seed: int = 3) -> None:
    """Move everything that trains."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in trained_parameters(model).values():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))


def attached(method: TuningMethod, kind: str, model: Classifier | None = None) -> Classifier:
    """A toy with ``method`` attached, which looked at :func:`batch` before."""
    model = model or toy(kind)
    method.prepare(model, itertools.repeat(batch(kind)))
    method.attach(model)
    return model
