"""EnCodec: frames before the quantiser, none of them padded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EncodecConfig, EncodecModel

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.embedders.encodec import EncodecEmbedder
from musictune.metrics.embedders.loading import load_embedder

RATE, FRAME = 8000, 32  # of the toy


def noise(samples: int, seed: int = 0) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    return Clip(torch.rand(1, samples, generator=generator) - 0.5, RATE)


@pytest.fixture(scope="module")
def embedder() -> EncodecEmbedder:
    return EncodecEmbedder.toy()


@pytest.mark.parametrize(
    ("samples", "frames"),
    [
        (100, 250),  # repeated up to a second
        (8000, 250),
        (8031, 250),  # a begun frame is left out
        (80_000, 2500),
        (87_999, 2500),  # a rest under a second too
        (88_000, 2750),
        (200_000, 6250),
    ],
)
def test_one_point_for_each_whole_frame(embedder: EncodecEmbedder, samples: int, frames: int):
    assert embedder.hear(noise(samples)).shape == (frames, embedder.dim)


def test_points_are_the_encoder_before_the_quantiser(embedder: EncodecEmbedder):
    clip = noise(8000)
    with torch.inference_mode():
        expected = embedder.model.encoder(clip.wave[None])[0].T
    assert np.allclose(embedder.hear(clip), expected.numpy(), atol=1e-6)


def test_what_follows_the_last_whole_frame_changes_nothing(embedder: EncodecEmbedder):
    clip = noise(8000 + FRAME - 1)
    assert np.array_equal(embedder.hear(clip), embedder.hear(Clip(clip.wave[:, :8000], RATE)))


def test_blocks_do_not_grow_with_the_clip(embedder: EncodecEmbedder):
    sizes = {len(window) for window in embedder.windows(noise(10 * 80_000 + 500))}
    assert sizes == {80_000}


def test_folding_weight_normalisation_changes_nothing(tmp_path: Path):
    torch.manual_seed(0)
    config = EncodecConfig(
        num_filters=4, hidden_size=8, codebook_dim=8, codebook_size=16,
        upsampling_ratios=[4, 4, 2], sampling_rate=RATE, target_bandwidths=[1.0],
    )  # fmt: skip
    model = EncodecModel(config).eval()
    model.save_pretrained(tmp_path / "encodec")
    loaded = load_embedder(tmp_path / "encodec")
    clip = noise(8000)
    with torch.inference_mode():
        expected = model.encoder(clip.wave[None])[0].T
    assert isinstance(loaded, EncodecEmbedder)
    assert np.allclose(loaded.hear(clip), expected.numpy(), atol=1e-6)
    assert len(loaded.hash) == 64


def test_a_stereo_codec_and_a_damaged_one_are_refused(tmp_path: Path):
    config = EncodecConfig(
        audio_channels=2, num_filters=4, hidden_size=8, codebook_dim=8, codebook_size=16,
        upsampling_ratios=[4, 4, 2], sampling_rate=RATE, target_bandwidths=[1.0],
    )  # fmt: skip
    EncodecModel(config).save_pretrained(tmp_path / "stereo")
    with pytest.raises(InputError, match="2 channels"):
        load_embedder(tmp_path / "stereo")
    weights = tmp_path / "stereo" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        load_embedder(tmp_path / "stereo")
    assert "\n" not in str(caught.value)
