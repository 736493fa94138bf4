"""Chroma against librosa, transformers' own extractor and known pitches; melodies that are none."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.audio_utils import chroma_filter_bank

from musictune.audio import Clip, write
from musictune.errors import AudioError, InputError
from musictune.models.chroma import (
    ChromaSettings,
    _filters,
    check_melody,
    extract_chroma,
    read_melody,
)

RATE = 16_000
SMALL = ChromaSettings(sample_rate=RATE, window=4_096, hop=1_024, seconds=2)


def tone(midi: float, seconds: float = 1.0, rate: int = RATE, level: float = 0.3) -> Tensor:
    time = torch.arange(round(seconds * rate)) / rate
    return level * torch.sin(2 * torch.pi * 440 * 2 ** ((midi - 69) / 12) * time)


def clip(wave: Tensor, rate: int = RATE) -> Clip:
    return Clip(wave if wave.ndim == 2 else wave[None], rate)


def tune(*notes: int) -> Tensor:
    return torch.cat([tone(note, 0.4) for note in notes])


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """transformers' extractor with torch's own spectrogram in place of torchaudio's."""
    # Not by `from ... import`, which asks for torchaudio before it gives the module.
    module = importlib.import_module(
        "transformers.models.musicgen_melody.feature_extraction_musicgen_melody"
    )

    def spectrogram(n_fft: int, hop_length: int, power: int, normalized: bool, **_: Any) -> Any:
        window = torch.hann_window(n_fft)

        def compute(wave: Tensor) -> Tensor:
            flat = wave.reshape(-1, wave.shape[-1])
            found = torch.stft(flat, n_fft, hop_length, window=window, return_complex=True)
            if normalized:
                found = found / window.square().sum().sqrt()
            return found.abs().pow(power).view(*wave.shape[:-1], *found.shape[-2:])

        return compute

    audio = SimpleNamespace(transforms=SimpleNamespace(Spectrogram=spectrogram))
    monkeypatch.setattr(module, "torchaudio", audio, raising=False)
    return module.MusicgenMelodyFeatureExtractor


@pytest.mark.parametrize("chosen", [ChromaSettings(), SMALL], ids=["published", "small"])
def test_filters_equal_those_of_transformers(chosen: ChromaSettings) -> None:
    expected = chroma_filter_bank(chosen.window, chosen.bins, chosen.sample_rate, tuning=0)
    assert torch.allclose(_filters(chosen), torch.from_numpy(expected).float(), atol=1e-7)


@pytest.mark.parametrize("samples", [4_096, 12_345, 32_000, 50_000])
def test_equals_the_extractor_of_transformers(theirs: Any, samples: int) -> None:
    torch.manual_seed(samples)
    wave = tune(60, 64, 67, 70, 61, 73, 58, 49)[:samples] + 0.02 * torch.randn(min(samples, 51_200))
    extractor = theirs(sampling_rate=RATE, n_fft=4_096, hop_length=1_024, chunk_length=2)
    expected = extractor(wave.numpy(), sampling_rate=RATE).input_features[0]
    found = extract_chroma(clip(wave), SMALL)
    assert found.shape == (min(samples, 2 * RATE) // 1_024 + 1, 12)
    assert torch.equal(found, torch.as_tensor(expected))


def test_equals_the_extractor_of_transformers_as_published(theirs: Any) -> None:
    torch.manual_seed(1)
    wave = torch.cat([tone(note, 0.7, 32_000) for note in (60, 63, 67, 59)])
    wave = wave + 0.02 * torch.randn(len(wave))
    expected = theirs()(wave.numpy(), sampling_rate=32_000).input_features[0]
    assert torch.equal(extract_chroma(clip(wave, 32_000)), torch.as_tensor(expected))


def test_saved_settings_make_the_same_extractor(theirs: Any, tmp_path: Path) -> None:
    SMALL.save(tmp_path)
    extractor = theirs.from_pretrained(tmp_path)
    wave = tune(57, 62, 65)
    expected = extractor(wave.numpy(), sampling_rate=RATE).input_features[0]
    assert torch.equal(extract_chroma(clip(wave), SMALL), torch.as_tensor(expected))
    fields = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert ChromaSettings.from_transformers(fields) == SMALL
    assert ChromaSettings.from_transformers({}) == ChromaSettings()


def test_strongest_class_is_that_of_librosa() -> None:
    import librosa

    wave = tune(60, 64, 67, 72)
    power = np.abs(librosa.stft(wave.numpy(), n_fft=4_096, hop_length=1_024, pad_mode="reflect"))
    expected = librosa.feature.chroma_stft(S=power**2, sr=RATE, tuning=0.0).argmax(0)
    assert extract_chroma(clip(wave), SMALL).argmax(1).tolist() == expected.tolist()


@settings(max_examples=20, deadline=None)
@given(midi=st.integers(48, 84), level=st.floats(0.01, 0.9), channels=st.integers(1, 2))
def test_a_tone_is_its_pitch_class_at_any_octave_and_level(
    midi: int, level: float, channels: int
) -> None:
    found = extract_chroma(clip(tone(midi, level=level).expand(channels, -1)), SMALL)
    assert torch.equal(found.sum(1), torch.ones(len(found)))
    assert set(found[2:-2].argmax(1).tolist()) == {midi % 12}


def test_any_rate_and_only_the_first_seconds_count() -> None:
    wave = torch.cat([tone(60, 2.0, 44_100), tone(66, 1.0, 44_100)])
    found = extract_chroma(clip(wave, 44_100), SMALL)
    assert found.shape == (32, 12)
    assert set(found[:-2].argmax(1).tolist()) == {0}


@pytest.mark.parametrize(
    ("wave", "says"),
    [
        (torch.zeros(RATE), r"melody is silent in its first 1\.0 s"),
        (1e-4 * tone(60), "silent"),
        (torch.cat([torch.zeros(2 * RATE), tone(60)]), r"silent in its first 2\.0 s"),
        (tone(60, 0.2), r"has 0\.20 s; give at least 0\.26 s"),
    ],
)
def test_what_is_no_melody(wave: Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        check_melody(clip(wave), SMALL)
    assert "\n" not in str(error.value)


def test_sides_that_cancel_are_silent() -> None:
    with pytest.raises(InputError, match="silent"):
        check_melody(clip(torch.stack([tone(60), -tone(60)])), SMALL)


def test_a_melody_is_read_from_a_file(tmp_path: Path) -> None:
    write(clip(tune(60, 64, 67, 72, 60, 60, 60, 60)), tmp_path / "tune.wav")
    melody = read_melody(tmp_path / "tune.wav", SMALL)
    assert melody.seconds == pytest.approx(2.0)
    write(clip(torch.zeros(RATE)), tmp_path / "silent.wav")
    with pytest.raises(InputError, match=r"silent\.wav is silent"):
        read_melody(tmp_path / "silent.wav")
    with pytest.raises(AudioError):
        read_melody(tmp_path / "missing.wav")


@pytest.mark.parametrize("fields", [{"n_fft": 0}, {"hop_length": 1.5}, {"sampling_rate": "fast"}])
def test_damaged_settings(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be a whole number above 0"):
        ChromaSettings.from_transformers(fields)
