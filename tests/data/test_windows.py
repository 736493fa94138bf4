"""Cutting recordings, silence, near-duplicates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.audio import Clip, read
from musictune.data.windows import Duplicates, cut, is_silent, spread

RATE = 8_000


def melody(pitches: list[int], note: float = 0.4, rate: int = 16_000, seed: int = 0) -> Clip:
    """Plucked tones with a little noise."""
    time = np.arange(round(note * rate)) / rate
    notes = []
    for pitch in pitches:
        base = 440 * 2 ** ((pitch - 69) / 12)
        tone = sum(np.sin(2 * np.pi * base * k * time) / k for k in range(1, 5))
        notes.append(0.2 * tone * np.exp(-4 * time))
    wave = np.concatenate(notes)
    wave = wave + np.random.default_rng(seed).normal(0, 1e-4, len(wave))
    return Clip(torch.from_numpy(wave)[None].float(), rate)


@given(
    samples=st.integers(1, 60_000),
    seconds=st.floats(0.3, 4.0),
    on_silence=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_windows_cover_the_recording_without_overlap(
    tmp_path_factory: pytest.TempPathFactory, samples: int, seconds: float, on_silence: bool
) -> None:
    path = tmp_path_factory.mktemp("cut") / "x.wav"
    data = np.random.default_rng(samples).uniform(-0.9, 0.9, samples).astype(np.float32)
    soundfile.write(path, data, RATE, subtype="FLOAT")
    windows = list(cut(path, seconds, on_silence=on_silence))
    assert np.array_equal(torch.cat([w.clip.wave for w in windows], 1)[0].numpy(), data)
    assert all(w.clip.samples <= round(seconds * RATE) for w in windows)
    ends = np.cumsum([w.clip.samples for w in windows]) / RATE
    assert np.allclose([w.start for w in windows], [0, *ends[:-1]])


def test_cuts_lie_in_the_pauses(tmp_path: Path) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 30 * RATE)
    pauses = [9.0, 17.5, 26.0]
    for pause in pauses:
        wave[round((pause - 0.2) * RATE) : round((pause + 0.2) * RATE)] = 0
    soundfile.write(tmp_path / "x.wav", wave, RATE)
    starts = [w.start for w in cut(tmp_path / "x.wav", 10.0)]
    assert np.allclose(starts[1:], pauses, atol=0.2)
    even = [w.start for w in cut(tmp_path / "x.wav", 10.0, on_silence=False)]
    assert even == [0.0, 10.0, 20.0]


def test_spread_windows_lie_evenly(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.linspace(-0.5, 0.5, 100 * RATE), RATE, subtype="FLOAT")
    windows = list(spread(tmp_path / "x.wav", 3.0, 4))
    assert [w.start for w in windows] == [0, 25, 50, 75]
    for window in windows:
        assert torch.equal(window.clip.wave, read(tmp_path / "x.wav", window.start, 3.0).wave)


def test_silence_is_known() -> None:
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (1, 4000))).float()
    assert is_silent(Clip(torch.zeros(1, 4000), RATE))
    assert is_silent(Clip(noise * 1e-5, RATE))
    assert not is_silent(Clip(noise * 3e-3, RATE))


class TestDuplicates:
    TUNE = [60, 64, 67, 72, 71, 67, 64, 62, 60, 59, 60, 64, 67, 64, 60, 60]

    def found(self, one: Clip, other: Clip) -> bool:
        duplicates = Duplicates()
        assert duplicates.find(other) is None
        duplicates.add(one, "one")
        return duplicates.find(other) == "one"

    def test_a_copy_at_another_loudness_and_rate_is_found(self) -> None:
        tune = melody(self.TUNE)
        quieter = Clip(tune.resample(32_000).wave * 0.3, 32_000)
        assert self.found(tune, quieter)

    def test_a_lossy_copy_is_found(self, tmp_path: Path) -> None:
        tune = melody(self.TUNE)
        soundfile.write(tmp_path / "x.ogg", tune.wave[0].numpy(), tune.sample_rate)
        assert self.found(tune, read(tmp_path / "x.ogg"))

    def test_a_copy_with_another_end_is_found(self) -> None:
        tune = melody(self.TUNE)
        assert self.found(tune, tune.crop(0, tune.seconds - 0.2))

    @pytest.mark.parametrize("change", ["one note", "order", "transposed", "half"])
    def test_music_that_is_only_alike_is_kept(self, change: str) -> None:
        tune = melody(self.TUNE)
        other = {
            "one note": [*self.TUNE[:8], 67, *self.TUNE[9:]],
            "order": self.TUNE[8:] + self.TUNE[:8],
            "transposed": [pitch + 1 for pitch in self.TUNE],
            "half": self.TUNE[:8],
        }[change]
        assert not self.found(tune, melody(other))
