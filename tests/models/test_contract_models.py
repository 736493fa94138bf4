"""What every base model promises, asked of every subclass in ``musictune.models``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import musictune.models
from musictune.audio import Clip
from musictune.models.base import Batch, MusicModel


def found() -> list[type[MusicModel]]:
    classes = set()
    for module in pkgutil.iter_modules(musictune.models.__path__, "musictune.models."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(kind, MusicModel) and not inspect.isabstract(kind):
                classes.add(kind)
    return sorted(classes, key=lambda kind: kind.__name__)


@pytest.fixture(params=found(), ids=lambda kind: kind.__name__)
def model(request: pytest.FixtureRequest) -> MusicModel:
    return request.param.toy()


def sound(seconds: float, rate: int, channels: int = 1, caption: str = "slow piano") -> Clip:
    time = torch.arange(round(seconds * rate)) / rate
    wave = 0.3 * torch.sin(2 * torch.pi * 300 * time) + 0.1 * torch.randn(channels, len(time))
    return Clip(wave, rate, caption)


@pytest.fixture
def batch(model: MusicModel) -> Batch:
    clips = [
        sound(0.6, model.sample_rate),
        sound(0.35, model.sample_rate, caption=""),
        sound(0.5, model.sample_rate, caption="fast drums, bright"),
    ]
    return model.encode(clips)


def test_there_is_a_model_to_test() -> None:
    assert found()


def test_encode_takes_any_rate_and_channels(model: MusicModel) -> None:
    clips = [sound(0.5, 44_100, 2), sound(0.3, 8_000, 1), sound(0.2, 48_000, 4)]
    batch = model.encode(clips)
    assert batch.codes.dtype == batch.lengths.dtype == torch.int64
    assert batch.codes.ndim == 3 and len(batch.codes) == len(batch) == 3
    assert batch.codes.shape[-1] == batch.lengths.max()
    ratio = batch.lengths / torch.tensor([0.5, 0.3, 0.2])
    assert ratio.max() / ratio.min() < 1.1
    assert batch.texts == tuple(clip.caption for clip in clips)


def test_codes_depend_on_the_sound_and_not_on_the_neighbours(model: MusicModel) -> None:
    first, second = sound(0.4, model.sample_rate), sound(0.7, model.sample_rate)
    both = model.encode([first, second])
    alone = model.encode([first])
    assert torch.equal(both.codes[:1, :, : alone.codes.shape[-1]], alone.codes)
    assert not torch.equal(both.codes[1, :, : alone.codes.shape[-1]], alone.codes[0])


def test_decode_gives_clips_of_their_own_length(model: MusicModel, batch: Batch) -> None:
    clips = model.decode(batch)
    assert [clip.sample_rate for clip in clips] == [model.sample_rate] * 3
    assert [clip.seconds for clip in clips] == pytest.approx([0.6, 0.35, 0.5], abs=0.05)
    assert all(clip.wave.std() > 0 for clip in clips)


def test_nll_is_one_finite_number_per_clip(model: MusicModel, batch: Batch) -> None:
    nll = model.nll(batch)
    assert nll.shape == (3,) and nll.dtype == torch.float32
    assert nll.isfinite().all() and (nll > 0).all()
    assert len(set(nll.tolist())) == 3


def test_nll_of_a_clip_does_not_change_with_padding_or_neighbours(
    model: MusicModel, batch: Batch
) -> None:
    together = model.nll(batch)
    for i, length in enumerate(batch.lengths.tolist()):
        alone = Batch(
            batch.codes[i : i + 1, :, :length], batch.lengths[i : i + 1], (batch.texts[i],)
        )
        assert torch.allclose(model.nll(alone)[0], together[i], atol=1e-5)
    junk = F.pad(batch.codes, (0, 9), value=3)
    junk[1, :, int(batch.lengths[1]) :] = 5
    assert torch.allclose(model.nll(replace(batch, codes=junk)), together, atol=1e-5)


def test_nll_hears_the_text_and_the_codes(model: MusicModel, batch: Batch) -> None:
    before = model.nll(batch)
    other = model.nll(replace(batch, texts=("loud guitar solo",) * 3))
    assert ((before - other).abs() > 1e-6).all()
    changed = batch.codes.clone()
    changed[0, 0, 3] = (changed[0, 0, 3] + 1) % 2
    after = model.nll(replace(batch, codes=changed))
    assert after[0] != before[0]
    assert torch.allclose(after[1:], before[1:], atol=1e-5)


def test_gradient_reaches_what_may_be_adapted(model: MusicModel, batch: Batch) -> None:
    import re

    model.nll(batch).mean().backward()
    touched = [
        module.weight.grad
        for name, module in model.backbone.named_modules()
        if re.search(model.targets, name)
    ]
    assert touched
    assert all(grad is not None and grad.abs().sum() > 0 for grad in touched)


def test_rollout_is_seeded_and_its_codes_are_its_audio(model: MusicModel) -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    batch, clips = model.rollout(["slow piano", ""], 0.4, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    again, same = model.rollout(["slow piano", ""], 0.4, seed=3)
    other, _ = model.rollout(["slow piano", ""], 0.4, seed=4)
    assert torch.equal(batch.codes, again.codes) and not torch.equal(batch.codes, other.codes)
    assert batch.texts == ("slow piano", "")
    for clip, copy, decoded in zip(clips, same, model.decode(batch), strict=True):
        assert torch.equal(clip.wave, copy.wave)
        assert clip.seconds == pytest.approx(0.4, abs=0.05)
        assert torch.allclose(clip.wave, decoded.wave, atol=1e-5)


def test_rollout_leaves_training_on(model: MusicModel) -> None:
    model.train()
    model.rollout(["slow piano"], 0.1, seed=0)
    assert model.training and model.backbone.training


def test_toy_is_always_the_same(model: MusicModel) -> None:
    again = type(model).toy()
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) < 100_000
