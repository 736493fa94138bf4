"""WAV by pieces: a header for a length known beforehand or not, then samples as they are made.

:func:`musictune.audio.write` writes whole clips; the bytes of both are the same.
"""

from __future__ import annotations

import struct

from musictune.audio import Clip

_UNKNOWN = 0xFFFFFFFF  # players then read to the end of the stream
_HEADER = 44  # bytes
_DEPTH = 2  # bytes of a sample


def wav_header(sample_rate: int, channels: int, samples: int | None = None) -> bytes:
    """The head of a 16-bit PCM file.

    Args:
        sample_rate: Hz.
        channels: 1 or more.
        samples: of each channel; None if that is not known yet, or too many for the format.
    """
    frame = channels * _DEPTH
    size = _UNKNOWN if samples is None else samples * frame
    whole = min(size + _HEADER - 8, _UNKNOWN)
    size = min(size, _UNKNOWN)
    form = struct.pack("<HHIIHH", 1, channels, sample_rate, sample_rate * frame, frame, 8 * _DEPTH)
    return struct.pack("<4sI8sI", b"RIFF", whole, b"WAVEfmt ", len(form)) + (
        form + struct.pack("<4sI", b"data", size)
    )


def pcm16(clip: Clip) -> bytes:
    """The samples of a clip as they stand in a WAV file, the channels interleaved."""
    # libsndfile rounds to 32 bits and drops the lower half; this is the same.
    deep = (clip.wave.T.double() * 2**31).round()
    return (deep / 2**16).floor().clamp(-(2**15), 2**15 - 1).numpy().astype("<i2").tobytes()


def wav_bytes(clip: Clip) -> bytes:
    """A whole WAV file."""
    return wav_header(clip.sample_rate, clip.channels, clip.samples) + pcm16(clip)
