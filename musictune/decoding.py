"""Opening and decoding audio files in a way that a hostile or broken file cannot hurt.

Decoding is libsndfile's work (wav, flac, ogg, opus, mp3, aiff) and FFmpeg's (m4a, mp4, aac).
Three rules make it safe on files from strangers. Only regular files are opened, and the decoder
gets the open file object, never the path, so a playlist in disguise cannot reach a URL or another
file. The container is told from the first bytes, never from the suffix. And decoding goes chunk
by chunk, since a megabyte of FLAC can unfold into gigabytes.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

import numpy as np
import soundfile
from numpy.typing import NDArray

from musictune.errors import AudioError

if TYPE_CHECKING:
    from av.container import InputContainer

MAX_CHANNELS = 8
MIN_RATE, MAX_RATE = 1_000, 384_000  # Hz

_CHUNK = 8_192  # frames decoded at a time; an error loses as many
_WHOLE = 0.9  # a file that stops before this share of its declared length is refused
_PCM, _FLOAT, _ALAW, _ULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE  # WAVE format tags

Samples = NDArray[np.float32]  # (frames, channels)


def check_layout(name: str, channels: int, rate: int) -> None:
    """Raise `AudioError` unless there are 1 to 8 channels at 1 to 384 kHz."""
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(f"{name} has {channels} channels; 1 to {MAX_CHANNELS} can be used")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"{name} has a sample rate of {rate} Hz; {MIN_RATE} to {MAX_RATE} is used")


class Reader(Protocol):
    """An open audio file.

    Attributes:
        rate: Hz.
        channels: how many.
        frames: samples per channel as declared; 0 if unknown.
    """

    rate: int
    channels: int
    frames: int

    def chunks(self, start: int) -> Iterator[Samples]:
        """Decoded audio from frame ``start`` to the end, a second or so at a time.

        Raises:
            AudioError: it breaks off before 90 % of its declared length.
        """


@contextlib.contextmanager
def open_audio(path: Path | str) -> Iterator[Reader]:
    """Open a regular file whose first bytes are a known kind of audio.

    Raises:
        AudioError: it cannot be used; the message says why.
    """
    with _regular_file(path) as file:
        head = file.read(65_536)
        file.seek(0)
        container = _container(head)
        if container is None:
            raise AudioError(f"{path} is not audio that can be read; convert it to wav or flac")
        reader: Reader
        if container in ("mp4", "aac"):
            reader = _FfmpegReader(file, container, path)
        else:
            reader = _SoundfileReader(file, head, path)
        check_layout(f"audio {path}", reader.channels, reader.rate)
        yield reader


def _regular_file(path: Path | str) -> BinaryIO:
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise AudioError(f"audio file {path} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"audio file {path} cannot be opened: {reason}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise AudioError(f"{path} is not a regular file; give an audio file")
    if status.st_size == 0:
        os.close(descriptor)
        raise AudioError(f"audio file {path} is empty; remove it or export it again")
    return os.fdopen(descriptor, "rb")


def _container(head: bytes) -> str | None:
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[:4] in (b"fLaC", b"OggS"):
        return "flac" if head[0] == ord("f") else "ogg"
    if head[4:8] == b"ftyp":
        return "mp4"
    if len(head) > 2 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "aac"
    if head[:3] == b"ID3" or (len(head) > 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0):
        return "mp3"
    return None


class _SoundfileReader:
    def __init__(self, file: BinaryIO, head: bytes, path: Path | str) -> None:
        self.path = path
        declared = _wav_frames(head, path)
        try:
            self.file = soundfile.SoundFile(file)
        except (soundfile.SoundFileError, TypeError, ValueError) as error:
            raise AudioError(
                f"{path} is not audio that can be read ({_reason(error)}); export it again"
            ) from error
        self.rate = self.file.samplerate
        self.channels = self.file.channels
        self.frames = declared or self.file.frames
        # A stream without a length in its header is declared as the largest number there is.
        if self.frames >= 2**62:
            self.frames = 0

    def chunks(self, start: int) -> Iterator[Samples]:
        position = start
        reason = "it ends early"
        try:
            if start and start < self.file.frames:
                self.file.seek(start)
            while start < self.file.frames:
                chunk = self.file.read(_CHUNK, dtype="float32", always_2d=True)
                if len(chunk) == 0:
                    break
                position += len(chunk)
                yield chunk
        except (soundfile.SoundFileError, ValueError) as error:
            reason = _reason(error)
        if start < self.frames and position < _WHOLE * self.frames:
            raise _truncated(self.path, position / self.rate, self.frames / self.rate, reason)


def _wav_frames(head: bytes, path: Path | str) -> int:
    """Frames that a WAV header declares, 0 if none; libsndfile shows only those really there.

    Raises:
        AudioError: coded otherwise than PCM, float, A-law or mu-law. The rarer decoders of
            libsndfile have a history of memory errors (CVE-2026-37555).
    """
    if head[:4] not in (b"RIFF", b"RIFX"):
        return 0
    order = "<" if head[:4] == b"RIFF" else ">"
    position, align = 12, 0
    while position + 8 <= len(head):
        name, size = struct.unpack_from(f"{order}4sI", head, position)
        body = position + 8
        if name == b"fmt " and body + 16 <= len(head):
            tag, _, _, _, align = struct.unpack_from(f"{order}HHIIH", head, body)
            if tag == _EXTENSIBLE and body + 26 <= len(head):
                (tag,) = struct.unpack_from(f"{order}H", head, body + 24)
            if tag not in (_PCM, _FLOAT, _ALAW, _ULAW):
                raise AudioError(
                    f"audio {path} is a WAV coded as format {tag:#x}; export it as PCM"
                )
        if name == b"data":
            return 0 if size >= 0x7FFFFFFF or not align else size // align
        position = body + size + size % 2
    return 0


class _FfmpegReader:
    def __init__(self, file: BinaryIO, container: str, path: Path | str) -> None:
        import av

        self.path = path
        try:
            self.container = cast("InputContainer", av.open(file, format=container))
            self.stream = self.container.streams.audio[0]
            self.rate = self.stream.codec_context.sample_rate
            self.channels = self.stream.codec_context.layout.nb_channels
        except Exception as error:  # PyAV raises nine kinds on damaged files, MemoryError too
            raise AudioError(
                f"{path} is not audio that can be read ({_reason(error)}); export it again"
            ) from error
        # Raw AAC carries no length; FFmpeg would guess one from the bit rate.
        length, base = self.stream.duration, self.stream.time_base
        self.frames = 0
        if container == "mp4" and length and base:
            self.frames = int(length * base * self.rate)

    def chunks(self, start: int) -> Iterator[Samples]:
        position = 0
        try:
            for place, data in self._frames(start):
                skip = max(start - place, 0)
                position = place + len(data)
                if skip < len(data):
                    yield data[skip:]
            reason = "it ends early"
        except Exception as error:
            reason = _reason(error)
            if not self.frames:
                raise AudioError(f"audio {self.path} cannot be decoded: {reason}") from error
        if start < self.frames and position < _WHOLE * self.frames:
            raise _truncated(self.path, position / self.rate, self.frames / self.rate, reason)

    def _frames(self, start: int) -> Iterator[tuple[int, Samples]]:
        """Decoded frames, each with the place of its first sample."""
        import av

        seekable = self.frames > 0 and start > 0
        self.container.seek(int(start / self.rate * av.time_base) if seekable else 0)
        resampler = av.AudioResampler(format="fltp")
        place = 0
        for frame in self.container.decode(self.stream):
            if seekable and frame.time is not None:
                place = round(frame.time * self.rate)
                seekable = False
            for plain in resampler.resample(frame):
                data = np.ascontiguousarray(plain.to_ndarray().T, dtype=np.float32)
                yield place, data
                place += len(data)


def _truncated(path: Path | str, found: float, declared: float, reason: str) -> AudioError:
    return AudioError(
        f"audio {path} is truncated: {found:.1f} s of {declared:.1f} s decode ({reason}); "
        f"export it again"
    )


def _reason(error: BaseException) -> str:
    """An error as one short line without addresses of objects."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()).rstrip(".")[:120] or type(error).__name__
