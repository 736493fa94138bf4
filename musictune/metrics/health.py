"""Signal health: faults of a file that need no reference, such as clipping, silence or dullness."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from musictune.audio import Clip
from musictune.metrics.base import About, ClipMetric

Array = np.ndarray

_FULL_SCALE = 32767 / 32768  # the highest sample of a 16-bit file
_RUN = 3  # samples in a row; a single one at full scale is a peak, not a cut top
_SILENT = 1e-3  # -60 dB of full scale, root mean square
_SILENCE_S = 0.05
_SPECTRUM_S = 0.046
_FRAMES = 4000  # of the spectrum; of a longer clip, evenly chosen ones
_COMMON = 95  # percentile of a frequency's power over frames: what sounds at least that often
_RANGE = 1e-8  # 80 dB below the strongest frequency
_STEP = 2.0**-15  # of 16 bits; its rounding noise is no music
_NOISES = 10.0  # dithering triples that noise, and a percentile of noise is above its mean
_SHORTEST_BLOCK_S = 0.4  # of BS.1770


class Health(ClipMetric):
    """Loudness, clipping, silence, offset and bandwidth of a clip as it is, at its own rate.

    Neither loud nor soft is better, so loudness is a value to compare and no reward.
    """

    values: ClassVar[Mapping[str, About]] = {
        "loudness": About(
            "Loudness",
            "LUFS by ITU-R BS.1770; compare with the reference, for louder is not better.",
            "neither",
        ),
        "clipping": About(
            "Clipping",
            "Share of samples in runs of three or more at full scale: cut-off peaks.",
            "lower",
            least=0,
            most=1,
        ),
        "silence": About(
            "Silence", "Share of the time below -60 dB of full scale.", "lower", least=0, most=1
        ),
        "dc_offset": About(
            "DC offset",
            "Distance of the mean sample from 0, full scale being 1.",
            "lower",
            least=0,
        ),
        "bandwidth": About(
            "Bandwidth",
            "Hz above which there is nothing; far below half the sample rate, the music was made "
            "at a lower rate or compressed.",
            "higher",
            least=0,
        ),
    }
    key = "health-1"

    def hear(self, clip: Clip) -> Array:
        """``(1, 5)`` float32: LUFS, share, share, share of full scale, Hz.

        Loudness is NaN for what is all below -70 LUFS, under 0.4 s, under 8 kHz or of more than
        five channels, where BS.1770 says nothing; bandwidth is NaN for silence.
        """
        wave = clip.wave.numpy()
        row = [
            _loudness(clip),
            _clipping(wave),
            _silence(wave, clip.sample_rate),
            float(np.abs(wave.mean(1, dtype=np.float64)).max()),
            _bandwidth(wave, clip.sample_rate),
        ]
        return np.array([row], dtype=np.float32)


def _loudness(clip: Clip) -> float:
    import pyloudnorm

    measured = clip.seconds >= _SHORTEST_BLOCK_S and clip.sample_rate >= 8000
    if not measured or clip.channels > 5:
        return math.nan
    wave = clip.wave.T.double().numpy()
    with np.errstate(divide="ignore"):
        lufs = float(pyloudnorm.Meter(clip.sample_rate).integrated_loudness(wave))
    return lufs if math.isfinite(lufs) else math.nan


def _clipping(wave: Array) -> float:
    """Share of all samples that stand in runs of at least `_RUN` at the same end of full scale."""
    clipped = 0
    for channel in wave:
        for full in (channel >= _FULL_SCALE, channel <= -_FULL_SCALE):
            edges = np.flatnonzero(np.diff(np.concatenate([[False], full, [False]])))
            lengths = edges[1::2] - edges[::2]
            clipped += int(lengths[lengths >= _RUN].sum())
    return clipped / wave.size


def _silence(wave: Array, rate: int) -> float:
    """Share of the frames of 50 ms in which no channel is above -60 dB; a rest joins the last."""
    size = max(round(_SILENCE_S * rate), 1)
    starts = np.arange(0, max(wave.shape[1] - size + 1, 1), size)
    squares = np.add.reduceat(np.square(wave, dtype=np.float64), starts, axis=1)
    lengths = np.diff(np.append(starts, wave.shape[1]))
    silent = (np.sqrt(squares / lengths) < _SILENT).all(0)
    return float(lengths[silent].sum() / lengths.sum())


def _bandwidth(wave: Array, rate: int) -> float:
    """The highest frequency with sound in at least a twentieth of the audible time.

    Sound is what is within 80 dB of the strongest frequency and above the rounding noise of a
    16-bit file. A twentieth, so that neither a click nor the cut at a file's end counts, but
    cymbals do.
    """
    from scipy.signal.windows import blackmanharris

    size = min(2 ** max(round(math.log2(_SPECTRUM_S * rate)), 6), wave.shape[1])
    if size < 16:
        return math.nan
    # Side lobes of this window are 92 dB down, so that a low tone does not fill the spectrum.
    window = blackmanharris(size, sym=False)
    starts = np.arange(0, wave.shape[1] - size + 1, max(size // 2, 1))
    if len(starts) > _FRAMES:
        starts = starts[np.linspace(0, len(starts) - 1, _FRAMES).round().astype(int)]
    power = np.zeros((len(starts), size // 2 + 1), np.float32)
    for channel in wave:
        channel = channel - channel.mean()
        for row, start in enumerate(starts):
            power[row] += np.abs(np.fft.rfft(channel[start : start + size] * window)) ** 2
    # What white noise of one rounding step would have in each frequency of this window.
    noise = len(wave) * _NOISES * _STEP**2 / 12 * float(np.square(window).sum())
    audible = power[(power > noise).any(1)]
    if not len(audible):
        return math.nan
    common = np.percentile(audible, _COMMON, axis=0)
    heard = np.flatnonzero(common > max(float(common.max()) * _RANGE, noise))
    return float(heard[-1] * rate / size) if len(heard) else math.nan
