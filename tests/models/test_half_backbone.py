"""The backbone held in bfloat16, once."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch

from musictune.generation import Engine
from musictune.generation.sampling import Sampling
from musictune.methods import attach_adapter, fingerprint, save_adapter
from musictune.methods.base import trained_parameters
from musictune.methods.pivotal import Pivotal
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen


def batch() -> Batch:
    codes = torch.randint(0, 64, (2, 4, 12), generator=torch.Generator().manual_seed(5))
    return Batch(codes, torch.tensor([12, 9]), ("a bright piano", "slow guitar"))


@pytest.fixture
def half() -> MusicGen:
    model = MusicGen.toy()
    model.half_backbone()
    return model


def test_only_the_backbone_is_cast(half: MusicGen) -> None:
    full = MusicGen.toy()
    assert {p.dtype for p in half.backbone.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.text_encoder.parameters()} == {torch.float32}
    assert half.codec_key == full.codec_key
    assert fingerprint(half) == fingerprint(full)


def test_the_loss_is_near(half: MusicGen) -> None:
    full = MusicGen.toy()
    with torch.no_grad():
        assert torch.allclose(half.nll(batch()), full.nll(batch()), rtol=1e-2)
        assert half.nll(batch()).dtype == torch.float32
        twin = copy.deepcopy(half)
        twin.half_backbone()
        assert torch.equal(twin.nll(batch()), half.nll(batch()))


def test_every_way_of_making_music_works(half: MusicGen) -> None:
    _, clips = half.rollout(["a bright piano"], 0.2, 0)
    _, ours = Engine(half).rollout(["a bright piano"], 0.2, [0], Sampling())
    for clip in (*clips, *ours):
        assert clip.wave.dtype == torch.float32 and clip.wave.isfinite().all()


@pytest.mark.parametrize("granularity", ["element", "row", "column"])
def test_an_adapter_trained_on_it_fits_the_base_in_full_precision(
    half: MusicGen, granularity: str, tmp_path: Path
) -> None:
    method = Pivotal(
        fraction=0.2,
        rounds=1,
        probe_steps=2,
        selection="magnitude",
        granularity=granularity,  # type: ignore[arg-type]
    )
    method.prepare(half, itertools.repeat(batch()))
    method.attach(half)
    trained = trained_parameters(half)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    optimizer = torch.optim.AdamW(trained.values(), lr=2e-2, weight_decay=0)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = half.nll(batch()).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    save_adapter(half, method, tmp_path)
    full = MusicGen.toy()
    attach_adapter(full, tmp_path)
    with torch.no_grad():
        assert torch.allclose(full.nll(batch()), half.nll(batch()), rtol=1e-2)


@pytest.mark.slow
def test_mini_is_as_good_and_makes_music() -> None:
    model = MusicGen.load("mini")
    made, _ = model.rollout(["a bright piano", "slow guitar"], 1.0, 0)
    with torch.no_grad():
        full = model.nll(made)
        model.half_backbone()
        assert torch.allclose(model.nll(made), full, rtol=1e-2)
    _, clips = Engine(model).rollout(["a bright piano"], 0.5, [0], Sampling())
    assert clips[0].wave.isfinite().all() and clips[0].wave.abs().max() > 0
