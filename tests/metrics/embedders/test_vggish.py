"""VGGish: its patches against another formulation, and files with its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers.audio_utils import mel_filter_bank

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.embedders.loading import load_embedder
from musictune.metrics.embedders.vggish import DIM, HIDDEN, WIDTHS, Vgg, VggishEmbedder, mel_patches

PATCH, HOP = 15_600, 15_360  # samples that 96 frames take, and from patch to patch


def noise(samples: int, seed: int = 0) -> np.ndarray:
    wave = np.random.default_rng(seed).uniform(-0.5, 0.5, samples)
    return wave.astype(np.float32)


def test_patches_are_those_of_another_formulation():
    wave = noise(40_000)
    spectrum = torch.stft(
        torch.from_numpy(wave).double(),
        512,
        160,
        400,
        # torch centres a short window in the transform; a late one is the same magnitude.
        torch.hann_window(400, periodic=True, dtype=torch.float64),
        center=False,
        pad_mode="constant",
        return_complex=True,
    ).abs()
    # torch's frames begin 56 samples before its centred window does.
    bands = torch.from_numpy(
        mel_filter_bank(
            257, 64, 125.0, 7500.0, 16_000, mel_scale="kaldi", triangularize_in_mel_space=True
        )
    )
    expected = (spectrum.T @ bands + 0.01).log()[:96]
    shifted = mel_patches(wave[56:])[0]
    assert np.allclose(shifted, expected.numpy(), atol=1e-4)


def test_bands_follow_the_pitch_of_a_tone():
    time = np.arange(PATCH) / 16_000
    mels = 1127 * np.log1p(np.array([300.0, 1000.0, 4000.0]) / 700)
    edges = np.linspace(*1127 * np.log1p(np.array([125.0, 7500.0]) / 700), 66)
    for hertz, mel in zip((300.0, 1000.0, 4000.0), mels, strict=True):
        (patch,) = mel_patches(np.sin(2 * np.pi * hertz * time))
        centre = int(np.abs(edges[1:-1] - mel).argmin())
        assert abs(int(patch.mean(0).argmax()) - centre) <= 1


def test_silence_is_the_logarithm_of_the_offset():
    assert mel_patches(np.zeros(PATCH)) == pytest.approx(np.log(0.01))


@given(samples=st.integers(0, 60_000))
@settings(max_examples=20, deadline=None)
def test_only_whole_patches_count(samples: int):
    patches = mel_patches(np.zeros(samples))
    assert patches.shape == (max(samples - PATCH + HOP, 0) // HOP, 96, 64)


def test_windows_give_the_patches_of_the_whole_clip():
    embedder = VggishEmbedder.toy()
    wave = noise(2 * HOP + PATCH + 900)
    windows = list(embedder.windows(Clip(torch.from_numpy(wave)[None], 16_000)))
    assert np.array_equal(np.concatenate([mel_patches(w) for w in windows]), mel_patches(wave))
    assert torch.allclose(embedder.embed(windows), embedder.embed([wave]), atol=1e-5)
    assert embedder.embed([wave]).shape == (3, embedder.dim)


def test_the_network_has_the_published_shape():
    with torch.device("meta"):
        network = Vgg(WIDTHS, HIDDEN, DIM)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes["features.0.weight"] == (64, 1, 3, 3)
    assert shapes["features.13.weight"] == (512, 512, 3, 3)
    assert shapes["embeddings.0.weight"] == (4096, 512 * 4 * 6)
    assert shapes["embeddings.4.weight"] == (128, 4096)
    assert len(shapes) == 18


def test_maps_are_flattened_channels_last():
    network = Vgg((2, 2, 2, 2, 2, 2), 3, 3).eval()
    seen = []
    network.embeddings[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    mel = torch.randn(1, 96, 64)
    with torch.inference_mode():
        network.patches(mel)
        maps = network.features(mel[:, None])
    assert maps.shape == (1, 2, 6, 4)
    assert torch.equal(seen[0][0, :2], maps[0, :, 0, 0])


def toy_weights() -> dict[str, torch.Tensor]:
    return VggishEmbedder.toy().model.state_dict()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_are_read_from_a_file(tmp_path: Path, suffix: str):
    path = tmp_path / f"vggish.{suffix}"
    if suffix == "pth":
        # The published file also holds PCA, which has no place here.
        torch.save(toy_weights() | {"pproc.pca_means": torch.zeros(8, 1)}, path)
    else:
        save_file(toy_weights(), path)
    embedder = load_embedder(f"vggish:{path}")
    clip = Clip(torch.from_numpy(noise(40_000))[None], 16_000)
    assert np.array_equal(embedder.hear(clip), VggishEmbedder.toy().hear(clip))
    assert len(embedder.hash) == 64
    assert embedder.key != VggishEmbedder.toy().key


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("unpickled",))


@pytest.mark.parametrize("content", [b"no weights", "evil", "list", "other", "lacking", "mixed"])
def test_files_that_are_no_vggish_are_refused(
    tmp_path: Path, content: str | bytes, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "weights.pth"
    weights = toy_weights()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "evil":
        torch.save({"features.0.weight": Evil()}, path)
    elif content == "list":
        torch.save([torch.zeros(2)], path)
    elif content == "other":
        torch.save({"weight": torch.zeros(2)}, path)
    elif content == "lacking":
        del weights["features.6.bias"]
        torch.save(weights, path)
    else:
        weights["features.6.weight"] = torch.zeros(9, 9, 3, 3)
        torch.save(weights, path)
    with pytest.raises(InputError, match="weights") as caught:
        load_embedder(f"vggish:{path}")
    assert "\n" not in str(caught.value)
    assert "unpickled" not in capsys.readouterr().out


def test_a_missing_file_and_no_file_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="names no file"):
        load_embedder(f"vggish:{tmp_path / 'nothing.pth'}")
    with pytest.raises(InputError, match="needs its weights"):
        load_embedder("vggish")
