"""How much of the music is left after a round trip: measures between a wave and its copy.

Each takes two mono waves ``(samples,)`` of equal length and rate. NaN says that there was nothing
to measure, such as onsets in silence.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import cast

import librosa
import mir_eval
import numpy as np
import soxr
import torch
from numpy.typing import NDArray

Wave = NDArray[np.float32]

_WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)
_BANDS = (5, 10, 20, 40, 80, 160, 320)
_FLOOR = 1e-5
_AUDIBLE = 1e-3  # root mean square of a frame, full scale 1
_CHROMA = {"n_fft": 4096, "hop_length": 1024}
_ONSET_WINDOW_S = 0.05
_PITCH_RATE = 16_000
_CENTS = 50.0


def mel_distance(reference: Wave, copy: Wave, rate: int) -> float:
    """Multi-resolution log-mel distance, in decades summed over seven scales; 0 is equal.

    As descript-audio-codec (arXiv 2306.06546) trains with: Hann windows of 32 to 2,048 samples, a
    quarter of that as hop, 5 to 320 Slaney mel bands over the whole spectrum, magnitudes of at
    least 1e-5, the mean absolute difference of their base-10 logarithms at each scale. It is
    comparable only at the same sample rate.
    """
    total = 0.0
    for window, bands in zip(_WINDOWS, _BANDS, strict=True):
        a, b = (_log_mel(x, rate, window, bands) for x in (reference, copy))
        total += float((a - b).abs().mean())
    return total


def chroma_agreement(reference: Wave, copy: Wave, rate: int) -> float:
    """Share of audible frames whose strongest pitch class is the same."""
    # One tuning for both: an estimate of its own would hide a copy that is out of tune.
    tuning = float(librosa.estimate_tuning(y=reference, sr=rate)) if reference.any() else 0.0
    strongest = [
        librosa.feature.chroma_stft(y=x, sr=rate, tuning=tuning, **_CHROMA).argmax(0)
        for x in (reference, copy)
    ]
    level = librosa.feature.rms(
        y=reference, frame_length=_CHROMA["n_fft"], hop_length=_CHROMA["hop_length"]
    )[0]
    audible = level > _AUDIBLE
    return _share((strongest[0] == strongest[1])[audible])


def onset_f(reference: Wave, copy: Wave, rate: int) -> float:
    """F measure of the onsets found in the copy, within 50 ms of those found in the reference.

    Matched one to one by mir_eval; NaN if the reference has none.
    """
    times = [librosa.onset.onset_detect(y=x, sr=rate, units="time") for x in (reference, copy)]
    if len(times[0]) == 0:
        return math.nan
    if len(times[1]) == 0:
        return 0.0
    return float(mir_eval.onset.f_measure(*times, window=_ONSET_WINDOW_S)[0])


def pitch_share(reference: NDArray[np.float64], copy: NDArray[np.float64]) -> float:
    """Share of the reference's voiced frames in which the copy is voiced within 50 cents of it.

    Args:
        reference, copy: tracks of `pitch_track` with equal settings. A frame of the copy that is
            not voiced counts as lost.
    """
    voiced = np.isfinite(reference)
    cents = np.abs(1200 * np.log2(copy[voiced] / reference[voiced]))
    return _share(np.nan_to_num(cents, nan=np.inf) <= _CENTS)


def pitch_track(wave: Wave, rate: int, low_hz: float, high_hz: float) -> NDArray[np.float64]:
    """Hz per frame of 16 ms by pYIN (Mauch and Dixon 2014), NaN where there is no voice.

    Searched from ``low_hz`` to ``high_hz``, at 16 kHz.
    """
    if rate != _PITCH_RATE:
        wave = soxr.resample(wave, rate, _PITCH_RATE)
    # Two of the longest periods must fit into the window that pYIN compares, half a frame.
    frame = 1024 if low_hz > 4 * _PITCH_RATE / 1024 else 2048
    pitch, _, _ = librosa.pyin(
        wave,
        sr=_PITCH_RATE,
        fmin=max(low_hz, 4 * _PITCH_RATE / frame),
        fmax=min(high_hz, _PITCH_RATE / 4),
        frame_length=frame,
        hop_length=256,
        resolution=0.2,  # of a semitone; 0.1 takes five times as long
    )
    return cast(NDArray[np.float64], pitch)


def perplexity_shares(codes: NDArray[np.int64], size: int) -> list[float]:
    """How much of each codebook is used: exp(entropy) of its entries over ``size``.

    Args:
        codes: ``(codebooks, frames)``. With few frames per entry the share comes out too low.
        size: entries of a codebook.
    """
    shares = []
    for row in codes:
        counts = np.bincount(row, minlength=size)
        p = counts[counts > 0] / counts.sum()
        shares.append(float(np.exp(-(p * np.log(p)).sum()) / size))
    return shares


def _log_mel(wave: Wave, rate: int, window: int, bands: int) -> torch.Tensor:
    stft = torch.stft(
        torch.from_numpy(wave),
        window,
        window // 4,
        window=torch.hann_window(window),
        return_complex=True,
    )
    return (_filters(rate, window, bands) @ stft.abs()).clamp_min(_FLOOR).log10()


@functools.cache
def _filters(rate: int, window: int, bands: int) -> torch.Tensor:
    with warnings.catch_warnings():
        # The lowest bands are narrower than a bin and stay empty, in both waves alike.
        warnings.filterwarnings("ignore", message="Empty filters")
        return torch.from_numpy(librosa.filters.mel(sr=rate, n_fft=window, n_mels=bands))


def _share(hits: NDArray[np.bool_]) -> float:
    return float(hits.mean()) if hits.size else math.nan
