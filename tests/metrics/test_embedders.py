"""The CLAP embedder: windows that are never random, files that are refused in one line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.embedders import ClapEmbedder


def noise(seconds: float, rate: int = 8000, channels: int = 1, seed: int = 0) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    wave = torch.rand(channels, round(seconds * rate), generator=generator) - 0.5
    return Clip(wave, rate)


@pytest.fixture(scope="module")
def embedder() -> ClapEmbedder:
    return ClapEmbedder.toy()


@pytest.fixture(scope="module")
def folder(embedder: ClapEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "clap"
    embedder.save(folder)
    return folder


@pytest.mark.parametrize(
    ("seconds", "windows"), [(0.2, 1), (1.0, 1), (1.4, 1), (1.5, 2), (3.0, 5), (3.3, 5)]
)
def test_windows_overlap_by_half_and_none_is_padded(
    embedder: ClapEmbedder, seconds: float, windows: int
):
    (points,) = embedder.audio([noise(seconds)])
    assert points.shape == (windows, embedder.dim)
    assert points.dtype == torch.float32
    assert points.norm(dim=1) == pytest.approx([1.0] * windows)


def test_windows_are_the_parts_of_the_clip(embedder: ClapEmbedder):
    clip = noise(2.0)
    together = embedder.audio([clip])[0]
    apart = [embedder.audio([clip.crop(start, 1.0)])[0] for start in (0.0, 0.5, 1.0)]
    assert torch.allclose(together, torch.cat(apart), atol=1e-5)


def test_long_clips_are_the_same_at_each_run_and_beside_any_other(embedder: ClapEmbedder):
    """The extractor itself would cut at random."""
    clip, other = noise(11.0), noise(3.0, seed=1)
    alone = embedder.audio([clip])[0]
    assert torch.equal(alone, embedder.audio(iter([other, clip]))[1])


def test_a_fusion_model_is_not_told_at_random_that_a_window_is_cut(folder: Path):
    embedder = ClapEmbedder.load(folder)
    embedder.extractor.truncation = "fusion"
    seen = []
    answer = embedder.model.get_audio_features

    def spy(input_features: torch.Tensor, is_longer: torch.Tensor) -> object:
        seen.append(is_longer)
        return answer(input_features=input_features[:, :1], is_longer=is_longer)

    embedder.model.get_audio_features = spy
    embedder.audio([noise(2.0)])
    assert not torch.cat(seen).any()


def test_any_rate_and_layout_is_read(embedder: ClapEmbedder):
    mono = noise(1.0, rate=16_000)
    stereo = Clip(mono.wave.repeat(2, 1), 16_000)
    assert torch.allclose(embedder.audio([mono])[0], embedder.audio([stereo])[0], atol=1e-5)


def test_text_is_unit_rows_in_order(embedder: ClapEmbedder):
    points = embedder.text(["piano", "drums", "piano"])
    assert points.norm(dim=1) == pytest.approx([1.0] * 3)
    assert torch.equal(points[0], points[2])
    assert not torch.allclose(points[0], points[1])
    assert embedder.text([]).shape == (0, embedder.dim)
    assert torch.isfinite(embedder.text(["very long " * 200])).all()


def test_saved_and_loaded_is_the_same(embedder: ClapEmbedder, folder: Path):
    loaded = ClapEmbedder.load(folder)
    assert torch.allclose(loaded.text(["piano"]), embedder.text(["piano"]), atol=1e-5)
    assert torch.allclose(loaded.audio([noise(2.0)])[0], embedder.audio([noise(2.0)])[0], atol=1e-5)
    assert len(loaded.hash) == 64
    assert loaded.name == str(folder)
    assert (loaded.sample_rate, loaded.window_seconds) == (8000, 1.0)


def test_half_precision_files_are_used_in_full_precision(embedder: ClapEmbedder, tmp_path: Path):
    half = ClapEmbedder.toy()
    half.model.half()
    half.save(tmp_path / "clap")
    loaded = ClapEmbedder.load(tmp_path / "clap")
    assert loaded.audio([noise(1.0)])[0].dtype == torch.float32
    assert loaded.hash != ClapEmbedder.toy().hash


def test_collapsed_text_tower_is_refused(tmp_path: Path):
    broken = ClapEmbedder.toy()
    with torch.no_grad():
        broken.model.text_projection.linear2.weight.zero_()
        broken.model.text_projection.linear2.bias.fill_(1.0)
    broken.save(tmp_path / "clap")
    with pytest.raises(InputError, match="collapsed text tower") as caught:
        ClapEmbedder.load(tmp_path / "clap")
    assert "1.000" in str(caught.value)


def test_numbers_that_are_not_finite_are_refused():
    broken = ClapEmbedder.toy()
    with torch.no_grad():
        broken.model.audio_projection.linear2.bias.fill_(math.nan)
    with pytest.raises(InputError, match="not finite"):
        broken.audio([noise(1.0)])


def test_useless_places_are_refused_in_one_line(folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "file").write_text("x")
    wrong = {
        tmp_path / "nothing": "unknown embedder",
        tmp_path / "empty": "config.json",
        tmp_path / "other": "t5",
        tmp_path / "file": "is a file",
    }
    for path, words in wrong.items():
        with pytest.raises(InputError, match=words) as caught:
            ClapEmbedder.load(path)
        assert "\n" not in str(caught.value)


def test_damaged_weights_are_refused(folder: Path, tmp_path: Path):
    damaged = tmp_path / "clap"
    ClapEmbedder.toy().save(damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        ClapEmbedder.load(damaged)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_never_read(tmp_path: Path):
    toy = ClapEmbedder.toy()
    toy.save(tmp_path / "clap")
    (tmp_path / "clap" / "model.safetensors").unlink()
    torch.save(toy.model.state_dict(), tmp_path / "clap" / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded"):
        ClapEmbedder.load(tmp_path / "clap")
