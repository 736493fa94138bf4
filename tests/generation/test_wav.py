"""WAV by pieces gives the bytes that soundfile writes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import soundfile
import torch

from musictune.audio import Clip, write
from musictune.generation.wav import pcm16, wav_bytes, wav_header


@pytest.mark.parametrize("channels", [1, 2])
def test_the_bytes_are_those_of_a_written_file(channels: int, tmp_path: Path) -> None:
    wave = torch.rand(channels, 999) * 2 - 1
    wave[:, :4] = torch.tensor([1.0, -1.0, 0.0, 1e-6])
    clip = Clip(wave, 22_050)
    write(clip, tmp_path / "clip.wav")
    assert wav_bytes(clip) == (tmp_path / "clip.wav").read_bytes()
    parts = [Clip(wave[:, :100], 22_050), Clip(wave[:, 100:], 22_050)]
    assert wav_bytes(clip)[44:] == pcm16(parts[0]) + pcm16(parts[1])


def test_a_length_that_is_not_known_reads_to_the_end() -> None:
    clip = Clip(torch.rand(1, 500), 8_000)
    data = wav_header(8_000, 1) + pcm16(clip)
    sound, rate = soundfile.read(io.BytesIO(data))
    assert rate == 8_000 and len(sound) == 500
    assert wav_header(8_000, 2, 2**32)[40:44] == b"\xff\xff\xff\xff"
