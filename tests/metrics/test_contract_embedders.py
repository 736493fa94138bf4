"""What every embedder must keep, whatever its model: each family is tried through its toy."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.audio import Clip
from musictune.metrics.classifier import AstClassifier
from musictune.metrics.embedders.base import Embedder
from musictune.metrics.embedders.loading import embedders
from musictune.metrics.embedders.selftest import check_embedder

TOYS: dict[str, Embedder] = {name: kind.toy() for name, kind in embedders().items()}
TOYS["ast"] = AstClassifier.toy()


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(embedders()))
def test_a_gpu_hears_the_same_to_rounding(name: str) -> None:
    clip = Clip(0.1 * torch.randn(1, 24_000, generator=torch.Generator().manual_seed(0)), 8000)
    here, there = embedders()[name].toy(), embedders()[name].toy().to("cuda")
    assert here.key != there.key
    heard = there.hear(clip)
    np.testing.assert_allclose(heard, here.hear(clip), rtol=1e-3, atol=1e-4)


every = pytest.mark.parametrize("embedder", TOYS.values(), ids=TOYS.keys())


def noise(seconds: float, rate: int = 16_000, channels: int = 1, seed: int = 0) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    return Clip(torch.rand(channels, round(seconds * rate), generator=generator) - 0.5, rate)


def tone(seconds: float, rate: int, hertz: float = 300.0) -> Clip:
    time = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return Clip((0.5 * torch.sin(2 * math.pi * hertz * time))[None].float(), rate)


def test_each_family_of_the_suite_is_found():
    assert set(embedders()) == {"clap", "encodec", "mert", "vggish"}


@every
def test_rows_have_the_width_that_is_promised(embedder: Embedder):
    rows = embedder.hear(noise(2.2))
    assert rows.dtype == np.float32
    assert rows.shape[1] == embedder.dim
    assert len(rows) >= 1
    assert np.isfinite(rows).all()


@every
def test_hearing_again_and_beside_others_gives_the_same_bits(embedder: Embedder):
    clip, other = noise(2.2), noise(1.3, seed=1)
    alone = embedder.hear(clip)
    assert np.array_equal(alone, embedder.hear(clip))
    assert np.array_equal(alone, embedder.audio([other, clip])[1].numpy())
    assert not np.array_equal(alone[:1], embedder.hear(other)[:1])


@every
def test_layout_does_not_matter(embedder: Embedder):
    mono = noise(1.5)
    both = Clip(mono.wave.repeat(2, 1), mono.sample_rate)
    assert np.allclose(embedder.hear(mono), embedder.hear(both), atol=1e-5)


@every
def test_rate_matters_less_than_pitch(embedder: Embedder):
    here, there = (tone(2.0, rate) for rate in (24_000, 32_000))
    wrong = Clip(there.wave, 24_000)
    mean = embedder.hear(here).mean(0)
    near = np.linalg.norm(embedder.hear(there).mean(0) - mean)
    assert near < 0.1 * np.linalg.norm(embedder.hear(wrong).mean(0) - mean)


@every
@given(samples=st.integers(1, 40_000))
@settings(max_examples=12, deadline=None)
def test_windows_are_parts_of_the_clip_and_never_padded(embedder: Embedder, samples: int):
    wave = torch.linspace(0.25, 0.5, samples)  # no zero, and every sample another
    clip = Clip(wave[None], embedder.sample_rate)
    windows = list(embedder.windows(clip))
    assert windows
    for window in windows:
        first = int(np.argmin(np.abs(wave.numpy() - window[0])))
        again = np.resize(wave.numpy()[first:], len(window))
        assert np.array_equal(window, again)
        assert window.min() >= 0.25


@every
@pytest.mark.parametrize("samples", [1, 2, 50])
def test_a_very_short_clip_is_heard(embedder: Embedder, samples: int):
    rows = embedder.hear(Clip(torch.full((1, samples), 0.1), 16_000))
    assert len(rows) >= 1
    assert np.isfinite(rows).all()


@every
def test_silence_is_heard_as_numbers(embedder: Embedder):
    assert np.isfinite(embedder.hear(Clip(torch.zeros(2, 32_000), 16_000))).all()


@every
def test_another_process_hears_the_same(embedder: Embedder):
    twin = pickle.loads(pickle.dumps(embedder))  # noqa: S301 - of our own making
    assert twin.key == embedder.key
    assert np.array_equal(twin.hear(noise(2.2)), embedder.hear(noise(2.2)))


@every
def test_the_key_names_weights_and_windows(embedder: Embedder):
    keys = {embedder.key}
    for change in ({"hash": "other"}, {"window_seconds": 7.5}, {"hop_seconds": 3.25}):
        changed = pickle.loads(pickle.dumps(embedder))  # noqa: S301
        for name, value in change.items():
            setattr(changed, name, value)
        keys.add(changed.key)
    assert len(keys) == 4


def test_keys_of_families_differ():
    assert len({toy.key for toy in TOYS.values()}) == len(TOYS)


@every
def test_weights_that_are_not_finite_are_noticed(embedder: Embedder):
    from musictune.errors import InputError

    broken = pickle.loads(pickle.dumps(embedder))  # noqa: S301
    module = broken.model
    for tensor in module.parameters():
        tensor.data.fill_(math.nan)
    with pytest.raises(InputError, match="not finite"):
        broken.hear(noise(1.2))


@every
def test_toys_pass_the_self_test(embedder: Embedder):
    check_embedder(embedder)
