"""Opus at a bit rate that is measured, the peer of a music codec at low rates (RFC 6716).

libopus through PyAV, which the package needs anyway: music mode, variable rate, highest
complexity, 20 ms packets. The rate counts the packets alone, as ours counts tokens alone; an Ogg
file would add its pages on top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import soxr
from numpy.typing import NDArray

from musictune.errors import InputError

Wave = NDArray[np.float32]

_RATE = 48_000
_FRAME = 960  # samples of a packet: 20 ms
_CLOSE = 0.03  # relative error of the bit rate at which no further try is made
_TRIES = 6
_LOWEST, _HIGHEST = 500.0, 512_000.0  # bit/s that libopus takes
_MAX_LAG_S = 0.02


@dataclass(frozen=True)
class OpusTrip:
    """What came back, and what it took.

    Attributes:
        wave: ``(samples,)`` at the rate of the input, as long as it, its delay taken out.
        kbit_per_s: of the packets, measured.
    """

    wave: Wave
    kbit_per_s: float


def opus_round_trip(wave: Wave, rate: int, kbit_per_s: float) -> OpusTrip:
    """Code ``(samples,)`` at ``rate`` Hz so that the packets take ``kbit_per_s``, and decode it.

    What libopus is asked for is corrected, up to five times, by what it then took: with a
    variable rate it misses by a third and more on a few seconds of music. The nearest try counts.

    Raises:
        InputError: PyAV was built without libopus, or ``wave`` has no samples.
    """
    if wave.size == 0:
        raise InputError("nothing to code: 0 samples; give at least one")
    source = resampled(wave, rate, _RATE)
    asked, low, high = kbit_per_s * 1000, _LOWEST, _HIGHEST
    best: OpusTrip | None = None
    for _ in range(_TRIES):
        trip = _once(source, asked)
        if best is None or abs(trip.kbit_per_s - kbit_per_s) < abs(best.kbit_per_s - kbit_per_s):
            best = trip
        if abs(best.kbit_per_s / kbit_per_s - 1) <= _CLOSE:
            break
        low, high = (asked, high) if trip.kbit_per_s < kbit_per_s else (low, asked)
        asked *= kbit_per_s / trip.kbit_per_s
        if not low < asked < high:  # libopus changed its mode on the way, and with it the rate
            asked = math.sqrt(low * high)
    assert best is not None
    aligned = shifted(best.wave, -lag(source, best.wave, round(_MAX_LAG_S * _RATE)), source.size)
    return replace(best, wave=fitted(resampled(aligned, _RATE, rate), wave.size))


def lag(reference: Wave, wave: Wave, most: int) -> int:
    """By how many samples, at most ``most``, ``wave`` comes after ``reference``."""
    size = 1 << int(np.ceil(np.log2(reference.size + wave.size)))
    spectrum = np.conj(np.fft.rfft(reference, size)) * np.fft.rfft(wave, size)
    correlation = np.fft.irfft(spectrum, size)
    lags = np.arange(-most, most + 1)
    return int(lags[correlation[lags].argmax()])


def shifted(wave: Wave, samples: int, size: int) -> Wave:
    """``wave`` moved later by ``samples`` (earlier if negative), cut or filled up to ``size``."""
    if samples < 0:
        return fitted(wave[-samples:], size)
    return fitted(np.concatenate([np.zeros(samples, np.float32), wave]), size)


def fitted(wave: Wave, size: int) -> Wave:
    """``wave`` cut at the end, or filled up with silence, to ``size`` samples."""
    return np.pad(wave[:size], (0, max(size - wave.size, 0)))


def resampled(wave: Wave, rate: int, target: int) -> Wave:
    """``wave`` at ``target`` Hz."""
    if rate == target:
        return wave
    return cast(Wave, soxr.resample(wave, rate, target).astype(np.float32))


def libopus_version() -> str:
    """The PyAV whose libopus is used."""
    import av

    return f"libopus of PyAV {av.__version__}"


def _once(wave: Wave, bits_per_s: float) -> OpusTrip:
    import av

    try:
        encoder = av.CodecContext.create("libopus", "w")
        decoder = av.CodecContext.create("libopus", "r")
    except ValueError as error:  # UnknownCodecError is one
        raise InputError(
            "this PyAV has no libopus; install its wheel: pip install --force-reinstall av"
        ) from error
    encoder.sample_rate, encoder.layout, encoder.format = _RATE, "mono", "flt"
    encoder.bit_rate = round(bits_per_s)
    encoder.options = {"vbr": "on", "application": "audio", "compression_level": "10"}
    # Two more packets of silence: the encoder's look-ahead keeps back what comes last.
    padded = fitted(wave, -(-wave.size // _FRAME) * _FRAME + 2 * _FRAME)
    packets = []
    for start in range(0, padded.size, _FRAME):
        frame = av.AudioFrame.from_ndarray(
            padded[None, start : start + _FRAME], format="flt", layout="mono"
        )
        frame.sample_rate, frame.pts = _RATE, start
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoder.extradata = encoder.extradata
    decoder.sample_rate, decoder.layout = _RATE, "mono"
    parts = [
        frame.to_ndarray().reshape(-1)
        for packet in [*packets, None]
        for frame in decoder.decode(packet)
    ]
    decoded = np.concatenate(parts)
    scale = np.float32(32768 if decoded.dtype == np.int16 else 1)
    seconds = padded.size / _RATE
    size = sum(packet.size for packet in packets)
    return OpusTrip(decoded.astype(np.float32) / scale, size * 8 / seconds / 1000)
