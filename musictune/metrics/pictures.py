"""Sound inside a page: a small MP3 and a mel-spectrogram, both as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from musictune.audio import Clip, read

LONGEST = 20.0  # seconds; a page with whole songs in it does not open on a phone
RATE = 32_000  # Hz; one for all, so that pictures can be compared
LOWEST, HIGHEST = 40, 14_000  # Hz

_COLUMNS, _BANDS = 480, 112
_WINDOW = 2048  # samples
_RANGE_DB = 80.0
_QUIETEST = 1e-7  # power of what is taken for the loudest of a silent clip


@dataclass(frozen=True)
class Excerpt:
    """A part of a recording.

    Attributes:
        start: seconds before it.
        seconds: its length.
        whole: whether it is all of it.
        audio: data URI of a mono MP3, which every browser plays.
        picture: data URI of a PNG, time to the right, mel bands upwards.
    """

    start: float
    seconds: float
    whole: bool
    audio: str
    picture: str


def excerpt(path: Path, seconds: float = LONGEST, start: float = 0.0) -> Excerpt:
    """``seconds`` (at most 20) of a file from ``start`` on, or what there is, to hear and to see.

    Raises:
        InputError: the file cannot be read, or ends before ``start``.
    """
    seconds = min(seconds, LONGEST)
    clip = read(path, start, seconds + 0.1).mono().resample(RATE)
    part = clip.crop(0, seconds)
    return Excerpt(
        start=start,
        seconds=part.seconds,
        whole=start == 0 and clip.samples == part.samples,
        audio="data:audio/mpeg;base64," + _encoded(_mp3(part)),
        picture="data:image/png;base64," + _encoded(_spectrogram(part)),
    )


def _mp3(clip: Clip) -> bytes:
    # Ogg would carry a random stream number: other bytes at each run.
    file = io.BytesIO()
    wave = clip.wave[0].numpy()
    soundfile.write(file, wave, clip.sample_rate, format="MP3", compression_level=0.6)
    return file.getvalue()


def _spectrogram(clip: Clip) -> bytes:
    import librosa
    import matplotlib
    from PIL import Image

    wave = clip.wave[0].numpy()
    power = librosa.feature.melspectrogram(
        y=np.pad(wave, (0, max(_WINDOW - len(wave), 0))),
        sr=clip.sample_rate,
        n_fft=_WINDOW,
        hop_length=max(clip.samples // _COLUMNS, 1),
        n_mels=_BANDS,
        fmin=LOWEST,
        fmax=HIGHEST,
    )[:, :_COLUMNS]
    # Not just the maximum: digital silence would be as loud as its loudest moment.
    loudest = max(float(power.max()), _QUIETEST)
    level = librosa.power_to_db(power, ref=loudest, amin=_QUIETEST * 1e-9, top_db=_RANGE_DB)
    shades = np.round((level / _RANGE_DB + 1) * 255).clip(0, 255).astype(np.uint8)
    # A palette of 256 keeps the PNG a quarter as large as full colour, without loss.
    image = Image.fromarray(np.ascontiguousarray(shades[::-1]))
    palette = matplotlib.colormaps["magma"](np.arange(256), bytes=True)[:, :3]
    image.putpalette(palette.tobytes())
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
