"""Audio in memory: `Clip`, and reading and writing it, always in bounded memory."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from musictune.decoding import Samples, check_layout, open_audio
from musictune.errors import AudioError
from musictune.files import publish_file

AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".m4a", ".mp4", ".aac"}
)
MAX_SAMPLES = 2**27  # of all channels together in one read: 512 MiB as float32

_MAX_GAIN_DB = 60.0


@dataclass(frozen=True, eq=False)
class Clip:
    """A piece of audio, checked when it is built and trusted afterwards.

    A peak above 1, as resampling and float files bring, scales the whole clip down to 1.

    Attributes:
        wave: ``(channels, samples)`` float32 on the CPU, finite, ``|x| <= 1``.
        sample_rate: Hz.
        caption: what the music is, in words.
        source: the file or prompt it came from.

    Raises:
        AudioError: no samples, more than eight channels, a rate outside 1 to 384 kHz, NaN.
    """

    wave: Tensor
    sample_rate: int
    caption: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        name = f"audio {self.source}" if self.source else "audio"
        shape = tuple(self.wave.shape)
        if self.wave.ndim != 2 or 0 in shape:
            raise AudioError(f"{name} has shape {shape}; (channels, samples) is needed, not empty")
        check_layout(name, shape[0], self.sample_rate)
        wave = self.wave.detach().to("cpu", torch.float32)
        peak = float(wave.abs().max())
        if not math.isfinite(peak):
            raise AudioError(f"{name} holds samples that are not finite numbers; export it again")
        object.__setattr__(self, "wave", wave / peak if peak > 1 else wave)

    @property
    def channels(self) -> int:
        return self.wave.shape[0]

    @property
    def samples(self) -> int:
        """Samples of each channel."""
        return self.wave.shape[1]

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate

    def mono(self) -> Clip:
        """The mean of all channels."""
        if self.channels == 1:
            return self
        return replace(self, wave=self.wave.mean(0, keepdim=True))

    def resample(self, rate: int) -> Clip:
        """The same music at ``rate`` Hz, by soxr's high-quality filter."""
        if rate == self.sample_rate:
            return self
        check_layout("audio", self.channels, rate)
        wave = soxr.resample(self.wave.T.numpy(), self.sample_rate, rate)
        return replace(self, wave=torch.from_numpy(wave.T.copy()), sample_rate=rate)

    def crop(self, start_s: float, seconds: float) -> Clip:
        """``seconds`` from ``start_s`` on, or what there is of them.

        Raises:
            AudioError: nothing is left there.
        """
        first = max(round(start_s * self.sample_rate), 0)
        wave = self.wave[:, first : first + max(round(seconds * self.sample_rate), 0)]
        if wave.shape[1] == 0:
            raise AudioError(
                f"nothing to cut at {start_s:g} s for {seconds:g} s; there are {self.seconds:g} s"
            )
        return replace(self, wave=wave)

    def level(self, lufs: float = -20.0, peak: float = 0.98) -> Clip:
        """Brought to ``lufs`` (ITU-R BS.1770), less where the peak would pass ``peak``.

        Silence stays as it is.
        """
        heard = loudness(self)
        if not math.isfinite(heard):
            return self
        gain = 10 ** (min(lufs - heard, _MAX_GAIN_DB) / 20)
        gain = min(gain, peak / float(self.wave.abs().max()))
        return replace(self, wave=self.wave * gain)


@dataclass(frozen=True)
class AudioInfo:
    """What a file says about itself: length in seconds and frames, Hz, channels."""

    seconds: float
    sample_rate: int
    channels: int
    frames: int


def info(path: Path | str) -> AudioInfo:
    """Length, rate and channels of an audio file.

    Raises:
        AudioError: it cannot be used; the message says why.
    """
    with open_audio(path) as reader:
        # Raw AAC does not know its length: it has to be counted.
        frames = reader.frames or sum(len(chunk) for chunk in reader.chunks(0))
        return AudioInfo(frames / reader.rate, reader.rate, reader.channels, frames)


def read(path: Path | str, start: float = 0.0, seconds: float | None = None) -> Clip:
    """Read a file, or ``seconds`` of it from ``start`` on (or what there is of them).

    A file that breaks off is used if at least 90 % of its declared length decodes, else refused.

    Raises:
        AudioError: missing, not a regular file, not audio, empty, truncated, not finite, more than
            eight channels, or too long for one read (then give ``seconds``, or use `stream`).
    """
    with open_audio(path) as reader:
        limit = MAX_SAMPLES // reader.channels
        wanted = limit + 1 if seconds is None else max(round(seconds * reader.rate), 1)
        first = max(round(start * reader.rate), 0)
        parts, count = [], 0
        for chunk in reader.chunks(first):
            parts.append(chunk[: wanted - count])
            count += len(parts[-1])
            if min(wanted, max(reader.frames - first, count)) > limit:
                raise AudioError(
                    f"audio {path} is longer than {limit / reader.rate:.0f} s, too long to read at "
                    f"once; read a part of it"
                )
            if count >= wanted:
                break
        if count == 0:
            raise AudioError(f"audio {path} has no samples at {start:g} s; nothing to read")
        return _clip(np.concatenate(parts), reader.rate, path)


def stream(path: Path | str, seconds: float) -> Iterator[Clip]:
    """The whole file in consecutive blocks of ``seconds``, the last one shorter, in bounded memory.

    Raises:
        AudioError: as `read`; a truncated file raises when the break is reached.
    """
    with open_audio(path) as reader:
        size = max(round(seconds * reader.rate), 1)
        parts: list[Samples] = []
        count = 0
        empty = True
        for chunk in reader.chunks(0):
            empty = False
            while count + len(chunk) >= size:
                parts.append(chunk[: size - count])
                chunk = chunk[size - count :]
                yield _clip(np.concatenate(parts), reader.rate, path)
                parts, count = [], 0
            parts.append(chunk)
            count += len(chunk)
        if count:
            yield _clip(np.concatenate(parts), reader.rate, path)
        if empty:
            raise AudioError(f"audio {path} has no samples; nothing to read")


def write(clip: Clip, path: Path | str) -> None:
    """Write 16-bit WAV or FLAC, by the suffix of ``path``, whole or not at all.

    Raises:
        AudioError: another suffix.
        InputError: the folder is missing, not writable, or the disk is full.
    """
    path = Path(path)
    format_ = {".wav": "WAV", ".flac": "FLAC"}.get(path.suffix.lower())
    if format_ is None:
        raise AudioError(f"cannot write {path}: the name must end in .wav or .flac")
    # Encoded in memory, so that a full disk is an ordinary OSError of Python's own write.
    encoded = io.BytesIO()
    soundfile.write(
        encoded, clip.wave.T.numpy(), clip.sample_rate, format=format_, subtype="PCM_16"
    )
    with publish_file(path) as temporary:
        temporary.write_bytes(encoded.getbuffer())


def _clip(data: Samples, rate: int, path: Path | str) -> Clip:
    return Clip(torch.from_numpy(np.ascontiguousarray(data.T)), rate, source=str(path))


def loudness(clip: Clip) -> float:
    """LUFS; the plain power where BS.1770 is not defined (very short, low rate, 6+ channels)."""
    wave = clip.wave.T.double().numpy()
    if clip.seconds >= 0.5 and clip.sample_rate >= 8_000 and clip.channels <= 5:
        import pyloudnorm

        with np.errstate(divide="ignore"):
            return float(pyloudnorm.Meter(clip.sample_rate).integrated_loudness(wave))
    power = float(np.square(wave).mean(0).sum())
    return 10 * math.log10(power) - 0.691 if power > 1e-10 else -math.inf
