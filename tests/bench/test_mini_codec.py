"""The codec's table on codecs whose figures are known beforehand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from musictune import audio
from musictune.audio import Clip
from musictune.bench import codec_quality
from musictune.bench.codec_quality import measure_codec, renders, round_trip
from musictune.bench.mini import load_codec
from musictune.compose.render import SOUNDFONTS, Renderer
from musictune.errors import InputError
from musictune.models.codec import SpectralCodec, SpectralCodecConfig

pytest.importorskip("tinysoundfont", reason="the extra 'compose' is not installed")
pytestmark = pytest.mark.skipif(
    not any(path.is_file() for path in SOUNDFONTS), reason="no General MIDI SoundFont installed"
)
RATE = 16_000


class Perfect:
    """Gives back what it was given; its two codebooks of four use one entry and all of them."""

    config = SimpleNamespace(sampling_rate=RATE, codebook_size=4, frame_rate=25.0)

    def encode(self, wave: torch.Tensor) -> SimpleNamespace:
        self.wave = wave
        frames = torch.arange(wave.shape[-1] // 640)
        codes = torch.stack([frames * 0, frames % 4])
        return SimpleNamespace(audio_codes=codes[None, None])

    def decode(self, codes: torch.Tensor, scales: list[None]) -> SimpleNamespace:
        return SimpleNamespace(audio_values=self.wave)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_quality, "SECONDS", 2.0)
    monkeypatch.setattr(codec_quality, "_PITCH_S", 1.0)


def tiny() -> SpectralCodec:
    torch.manual_seed(0)
    config = SpectralCodecConfig(
        sampling_rate=RATE,
        window_length=512,
        hop_length=320,
        hidden_size=8,
        encoder_layers=[1, 1],
        decoder_layers=[1, 1],
        latent_size=8,
        codebook_size=16,
        griffin_lim_iterations=4,
    )
    return SpectralCodec(config).eval()


def test_a_perfect_codec_has_perfect_rows(tmp_path: Path) -> None:
    time = torch.arange(3 * RATE) / RATE
    tone = 0.3 * torch.sin(2 * torch.pi * 220 * time) * torch.exp(-3 * (time % 0.5))
    audio.write(Clip(tone[None], RATE), tmp_path / "tone.wav")
    rows = measure_codec(Perfect(), count=2, recordings=tmp_path)
    cases: dict[str, list[float]] = {}
    for row in rows:
        assert row.part == "codec"
        cases.setdefault(row.case, []).append(row.ours)
    assert cases["mel distance, renders"] == [0, 0]
    assert cases["mel distance, recordings"] == [0, 0]
    assert cases["chroma agreement, renders"] == [1, 1]
    assert cases["chroma agreement, recordings"] == [1, 1]
    assert cases["pitch within 50 cents, solo renders"] == [1, 1]
    assert cases["pitch within 50 cents, recordings"] == [1, 1]
    assert cases["onset F, 50 ms, renders"] == [1, 1]
    # Two bits in each of two codebooks, 25 times a second.
    assert cases["bit rate"] == pytest.approx([0.1, 0.1])
    assert cases["use of codebook 1"] == [0.25]
    assert cases["use of codebook 2"] == pytest.approx([1.0], abs=1e-3)
    met = {row.case: row.met for row in rows if row.target is not None}
    assert met["mel distance, renders"] is True
    assert met["use of codebook 1"] is False
    assert not any("recordings" in case for case in met)


def test_opus_stands_beside_on_the_same_audio() -> None:
    rows = measure_codec(Perfect(), count=2)
    peers = {(row.case, row.peer_name): row.peer for row in rows}
    assert 5 < (peers["bit rate", "Opus 6"] or 0) < 7.5
    assert 11 < (peers["bit rate", "Opus 12"] or 0) < 13
    worst, better = (peers["mel distance, renders", f"Opus {k}"] for k in (6, 12))
    assert worst is not None and better is not None
    assert worst > better > 0.1
    assert not any("recordings" in row.case for row in rows)


def test_a_spectral_codec_also_has_its_ceiling() -> None:
    rows = measure_codec(tiny(), count=2)
    ceiling = {row.case: row for row in rows if row.peer_name == "true magnitudes"}
    row = ceiling["mel distance, renders"]
    assert row.peer is not None
    assert 0 < row.peer < row.ours
    assert row.n == 2


def test_renders_alternate_solos_of_one_note_at_a_time_with_others() -> None:
    renderer = Renderer()
    samples = renders(renderer, 4, 70_000_000, RATE)
    assert [s.group for s in samples] == ["solo renders", "other renders"] * 2
    assert all((s.pitches is not None) == (s.group == "solo renders") for s in samples)
    assert all(s.wave.shape == (2 * RATE,) for s in samples)
    again = renders(renderer, 4, 70_000_000, RATE)
    assert all(np.array_equal(a.wave, b.wave) for a, b in zip(samples, again, strict=True))


def test_a_round_trip_is_as_long_as_what_went_in() -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 5001).astype(np.float32)
    copy, codes = round_trip(tiny(), wave)
    assert copy.shape == wave.shape
    assert codes.shape == (4, 8)


def test_recordings_that_are_too_short_are_refused(tmp_path: Path) -> None:
    audio.write(Clip(torch.zeros(1, 800), RATE), tmp_path / "tick.wav")
    with pytest.raises(InputError, match="shorter than 1 s"):
        measure_codec(Perfect(), count=2, recordings=tmp_path)


def test_a_codec_folder_is_read_and_others_are_refused(tmp_path: Path) -> None:
    codec = tiny()
    codec.save_pretrained(tmp_path / "codec")
    loaded = load_codec(tmp_path / "codec")
    wave = np.random.default_rng(0).normal(0, 0.1, 3200).astype(np.float32)
    assert np.array_equal(round_trip(codec, wave)[1], round_trip(loaded, wave)[1])
    with pytest.raises(InputError, match=r"config\.json"):
        load_codec(tmp_path)
    (tmp_path / "codec" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_codec(tmp_path / "codec")
