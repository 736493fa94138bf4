"""Light room and colour for rendered music, so that a model meets more than dry samples."""

from __future__ import annotations

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.ndimage import maximum_filter1d, uniform_filter1d
from scipy.signal import fftconvolve

Random = np.random.Generator


def colour(wave: np.ndarray, sample_rate: int, rng: Random) -> np.ndarray:
    """Each of reverb, tone, compression and noise floor by its own chance; the length stays.

    Args:
        wave: ``(samples,)``.
    """
    peak = float(np.abs(wave).max())
    if peak == 0:
        return wave
    wave = wave / peak
    if rng.random() < 0.6:
        wave = _reverb(wave, sample_rate, rng)
    if rng.random() < 0.6:
        wave = _tone(wave, sample_rate, rng)
    if rng.random() < 0.4:
        wave = _compress(wave, sample_rate, rng)
    if rng.random() < 0.5:
        wave = wave + _pink(wave.size, rng) * 10 ** (rng.uniform(-70, -50) / 20)
    return wave


def _reverb(wave: np.ndarray, sample_rate: int, rng: Random) -> np.ndarray:
    """A synthetic room: exponentially decaying noise, 0.2 to 0.9 s to -60 dB."""
    decay = rng.uniform(0.2, 0.9)
    size = int(decay * sample_rate)
    envelope = np.exp(-6.9 * np.arange(size) / size)
    tail = rng.standard_normal(size).astype(np.float32) * envelope
    tail /= np.sqrt(np.square(tail).sum())
    wet = fftconvolve(wave, tail)[: wave.size]
    return wave + wet * rng.uniform(0.1, 0.35)


def _tone(wave: np.ndarray, sample_rate: int, rng: Random) -> np.ndarray:
    """A low and a high shelf of up to 5 dB each."""
    size = next_fast_len(wave.size + sample_rate // 10, real=True)
    frequency = np.maximum(np.linspace(0, sample_rate / 2, size // 2 + 1), 1.0)
    low, high = rng.uniform(-5, 5, 2)
    gain = low / (1 + (frequency / rng.uniform(120, 400)) ** 2)
    gain = gain + high / (1 + (rng.uniform(2500, 6000) / frequency) ** 2)
    return irfft(rfft(wave, size) * 10 ** (gain / 20), size)[: wave.size]


def _compress(wave: np.ndarray, sample_rate: int, rng: Random) -> np.ndarray:
    """Turns down what passes a threshold of -24 to -12 dB under the peak, 2:1 to 4:1."""
    width = sample_rate // 100
    level = uniform_filter1d(maximum_filter1d(np.abs(wave), width), 4 * width)
    over = np.maximum(20 * np.log10(np.maximum(level, 1e-5)) - rng.uniform(-24, -12), 0.0)
    return wave * 10 ** (-over * (1 - 1 / rng.uniform(2, 4)) / 20)


def _pink(size: int, rng: Random) -> np.ndarray:
    """Noise of equal power per octave, RMS 1."""
    spectrum = rfft(rng.standard_normal(next_fast_len(size, real=True)))
    spectrum /= np.sqrt(np.maximum(np.arange(spectrum.size), 1.0))
    noise = irfft(spectrum)[:size]
    if noise.size < size:
        noise = np.pad(noise, (0, size - noise.size))
    return noise / max(float(np.sqrt(np.square(noise).mean())), 1e-9)
