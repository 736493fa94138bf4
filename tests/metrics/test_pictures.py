"""Sound inside a page: the right part of it, dark where it is silent, of any length."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path

import pytest
import soundfile
import torch
from PIL import Image

from musictune.audio import Clip, write
from musictune.errors import InputError
from musictune.metrics.pictures import excerpt


def tone(path: Path, seconds: float, sounding: tuple[float, float]) -> Path:
    time = torch.arange(round(seconds * 8000)) / 8000
    wave = 0.3 * torch.sin(2 * math.pi * 440 * time)
    wave[(time < sounding[0]) | (time >= sounding[1])] = 0
    write(Clip(wave.repeat(2, 1), 8000), path)
    return path


def heard(uri: str):
    return soundfile.read(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def seen(uri: str) -> torch.Tensor:
    picture = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("L")
    pixels = torch.tensor(list(picture.get_flattened_data()))
    return pixels.view(picture.height, picture.width).float()


def test_excerpt_is_the_beginning_as_mp3_and_png(tmp_path: Path):
    path = tone(tmp_path / "long.wav", 25, (0, 2))
    part = excerpt(path, 4.0)
    assert (part.start, part.seconds, part.whole) == (0.0, 4.0, False)
    data, rate = heard(part.audio)
    assert data.ndim == 1
    assert len(data) / rate == pytest.approx(4.0, abs=0.1)
    pixels = seen(part.picture)
    sounding, silent = pixels[:, :200], pixels[:, 280:]
    assert sounding.max() > 200
    assert silent.max() < 20
    assert sounding.mean(1).argmax() > pixels.shape[0] / 2  # 440 Hz lies in the lower half
    assert excerpt(path).seconds == 20.0


def test_excerpt_may_begin_later(tmp_path: Path):
    path = tone(tmp_path / "late.wav", 6, (4, 5))
    part = excerpt(path, 2.0, 3.0)
    assert (part.start, part.seconds, part.whole) == (3.0, 2.0, False)
    pixels = seen(part.picture)
    assert pixels[:, :200].max() < 20
    assert pixels[:, 280:].max() > 200
    assert excerpt(path, 4.0, 5.0).seconds == pytest.approx(1.0)
    with pytest.raises(InputError, match="no samples at 7 s"):
        excerpt(path, 1.0, 7.0)


def test_silence_is_dark(tmp_path: Path):
    part = excerpt(tone(tmp_path / "silent.wav", 1, (2, 3)))
    assert part.whole
    assert seen(part.picture).max() < 20


@pytest.mark.parametrize("samples", [1, 7, 200])
def test_very_short_clips_have_sound_and_picture(tmp_path: Path, samples: int):
    part = excerpt(tone(tmp_path / "short.wav", samples / 8000, (0, 1)))
    assert part.whole
    assert len(heard(part.audio)[0]) > 0
    assert seen(part.picture).numel() > 0
