"""The bundled codec: EnCodec's interface, exact lengths, and a phase that keeps pitch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from musictune.models.codec import SpectralCodec, SpectralCodecConfig

RATE = 16000


@pytest.fixture(scope="module")
def codec() -> SpectralCodec:
    torch.manual_seed(0)
    config = SpectralCodecConfig(
        sampling_rate=RATE,
        window_length=1024,
        hop_length=320,
        hidden_size=24,
        encoder_layers=[1, 1],
        decoder_layers=[1, 1],
        latent_size=8,
        codebook_size=16,
    )
    return SpectralCodec(config).eval()


def tone(hertz: float, seconds: float = 1.0) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(int(RATE * seconds)) / RATE)


@pytest.mark.parametrize("samples", [1, 639, 640, 641, 9999])
def test_token_frames_cover_every_sample(codec: SpectralCodec, samples: int) -> None:
    codes = codec.encode(torch.randn(2, 1, samples)).audio_codes
    frames = -(-samples // codec.config.samples_per_token)
    assert codes.shape == (1, 2, 4, frames)
    assert codes.min() >= 0 and codes.max() < 16
    wave = codec.decode(codes).audio_values
    assert wave.shape == (2, 1, frames * codec.config.samples_per_token)
    assert wave.abs().max() <= 1


def test_frame_rate_is_what_generation_needs(codec: SpectralCodec) -> None:
    codes = codec.encode(torch.zeros(1, 1, 5 * RATE)).audio_codes
    assert codes.shape[-1] == 5 * codec.config.frame_rate


def test_quantising_picks_the_nearest_entry_level_by_level(codec: SpectralCodec) -> None:
    latents = torch.randn(2, 5, 8)
    codes = codec.quantise(latents)
    rest = latents
    for level, book in enumerate(codec.codebooks):
        expected = torch.cdist(rest.flatten(0, 1), book).argmin(-1).view(2, 5)
        assert torch.equal(codes[:, level], expected)
        rest = rest - book[expected]
    assert torch.allclose(codec.dequantise(codes), latents - rest, atol=1e-5)


def test_griffin_lim_keeps_the_pitch_of_true_magnitudes(codec: SpectralCodec) -> None:
    wave = codec.waveform(codec.spectrum(tone(440.0)[None]))[0]
    strongest = torch.fft.rfft(wave).abs().argmax() * RATE / len(wave)
    assert abs(strongest - 440) < 2


def test_the_same_tokens_give_the_same_bytes_whatever_the_seed(codec: SpectralCodec) -> None:
    codes = torch.randint(16, (1, 1, 4, 10))
    torch.manual_seed(1)
    first = codec.decode(codes).audio_values
    torch.manual_seed(2)
    assert torch.equal(first, codec.decode(codes).audio_values)


def test_auto_classes_load_what_was_saved(codec: SpectralCodec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, use_safetensors=True)
    wave = tone(300.0)[None, None]
    assert isinstance(again, SpectralCodec)
    assert torch.equal(again.encode(wave).audio_codes, codec.encode(wave).audio_codes)


def test_padding_is_silenced(codec: SpectralCodec) -> None:
    wave, mask = torch.randn(1, 1, 6400), torch.ones(1, 1, 6400)
    mask[..., 3200:] = 0
    expected = codec.encode(wave * mask).audio_codes
    assert torch.equal(codec.encode(wave, mask).audio_codes, expected)


def test_audio_given_out_is_held_and_continued(codec: SpectralCodec) -> None:
    whole = codec.spectrum(tone(440.0)[None])
    begun = codec.waveform(whole)[:, : 12 * 320]
    held = 8 * 320
    going_on = codec.waveform(whole, begun, held)
    assert going_on.shape == (1, whole.shape[1] * 320)
    assert torch.equal(going_on[:, :held], begun[:, :held])
    # A tone goes on without a step in its phase: nothing but the tone is there around the seam.
    near = going_on[0, held - 512 : held + 512] * torch.hann_window(1024)
    power = torch.fft.rfft(near).abs().square()
    assert power.argmax() == round(440 * 1024 / RATE)
    own = codec.waveform(whole, -begun, 0)[0, held - 512 : held + 512] * torch.hann_window(1024)
    apart = torch.cat([near[:512], own[512:]])
    away = torch.ones_like(power).index_fill(0, torch.arange(20, 37), 0).bool()
    broken = torch.fft.rfft(apart).abs().square()
    assert power[away].sum() / power.sum() < 0.2 * broken[away].sum() / broken.sum()
