"""Embeddings and distances as fadtk 1.1.0 and kadtk 1.1.0 get them, to compare with papers.

Both tools turn audio into points in the same way up to how many points are kept, and neither way
is that of the embedders themselves: it measures silence that was padded on. What is reproduced and
what is not is said at each function.
"""

from __future__ import annotations

import functools
import io
import math
import re
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.base import About, Listener, Score
from musictune.metrics.embedders.base import Embedder
from musictune.metrics.embedders.clap import ClapEmbedder
from musictune.metrics.embedders.encodec import EncodecEmbedder
from musictune.metrics.embedders.mert import MertEmbedder
from musictune.metrics.embedders.vggish import VggishEmbedder
from musictune.metrics.features import Features, comparable
from musictune.metrics.frechet_influence import clip_distances
from musictune.metrics.gaussian import Gaussian, distance
from musictune.metrics.intervals import NONE

Array = np.ndarray

ABOUT = {
    "fadtk_frechet_distance": About(
        "Fréchet distance, as fadtk",
        "fadtk's own number, with the silence it pads and without debiasing: for comparison with "
        "papers only.",
        "lower",
    )
}
"""What `fadtk_score` and `fadtk_clip_distances` give, by name."""

_ZEROS, _ROLLOFF, _BETA = 64, 0.9475937167399596, 14.769656459379492
_LARGEST_FILTER = 2**26  # taps
_SUPPORTED = (ClapEmbedder, VggishEmbedder, EncodecEmbedder, MertEmbedder)
_LONGEST = {EncodecEmbedder: 180.0, MertEmbedder: 360.0}  # seconds
_ENCODEC_RATE = 24_000  # Hz
_MODELS: dict[str, type[Embedder] | None] = {
    "vggish": VggishEmbedder,
    "encodec-emb": EncodecEmbedder,
    r"clap-laion-\w+": ClapEmbedder,
    "MERT-v1-95M": MertEmbedder,
    r"MERT-v1-95M-\d+|encodec-emb-48k|clap-2023|dac-.*|cdpam-.*": None,
}
_UNLIKE = {
    ClapEmbedder: "windows that start every second and are padded with silence",
    MertEmbedder: "single frames, not of means over windows",
}


class FadtkListener(Listener):
    """`fadtk_features` as a listener.

    Args:
        embedder: a CLAP, VGGish, EnCodec or MERT.

    Raises:
        InputError: another embedder.
    """

    tool = "fadtk"
    whole = True

    def __init__(self, embedder: Embedder) -> None:
        _check_supported(embedder)
        self.embedder = embedder
        self.key = f"{self.tool}-{embedder.key}"

    def hear(self, clip: Clip) -> Array:
        """``(rows, dim)`` float32."""
        return fadtk_features(self.embedder, clip)


class KadtkListener(FadtkListener):
    """`kadtk_features` as a listener."""

    tool = "kadtk"

    def hear(self, clip: Clip) -> Array:
        """``(rows, dim)`` float32."""
        return kadtk_features(self.embedder, clip)


def fadtk_name(embedder: Embedder) -> str:
    """What fadtk calls a model; where it has several of a family, the last part of ours.

    Its names are those of the Hub for MERT (``MERT-v1-95M``, the last layer) and its own for CLAP
    (``clap-laion-music``): a folder of that name will do.
    """
    if isinstance(embedder, VggishEmbedder):
        return "vggish"
    if isinstance(embedder, EncodecEmbedder) and embedder.sample_rate == _ENCODEC_RATE:
        return "encodec-emb"
    return Path(embedder.name).name


def check_fadtk_name(name: str, embedder: Embedder) -> None:
    """Refuse statistics that fadtk made with another model, though its points may be as wide.

    Args:
        name: under which they stand; one that fadtk has not may be anything.
        embedder: what the made clips are heard by.

    Raises:
        InputError: they are of another family, another layer or another rate.
    """
    for pattern, family in _MODELS.items():
        if not re.fullmatch(pattern, name):
            continue
        fits = family is not None and isinstance(embedder, family)
        if fits and isinstance(embedder, EncodecEmbedder):
            fits = embedder.sample_rate == _ENCODEC_RATE
        if not fits:
            raise InputError(
                f"statistics {name} are of another model of fadtk's than embedder "
                f"{embedder.name}; choose the one they were made with (--embedder), or others"
            )


def unlike_fadtk(embedder: Embedder) -> str:
    """Of what else than the embedder's own points fadtk's statistics are; empty if of the same."""
    return _UNLIKE.get(type(embedder), "")  # type: ignore[call-overload]


def fadtk_features(embedder: Embedder, clip: Clip) -> Array:
    """The points that fadtk gets of a clip.

    Reproduced: the mean of the channels; resampling by a Kaiser-windowed sinc; rounding to 16-bit
    PCM; CLAP in 10 s windows every second, to the very end, so that all that reach over it are
    padded with silence, and CLAP's second rounding; VGGish padded with silence to 1 s; EnCodec's
    frames of the first 3 minutes in one piece, the last frame padded; MERT's frames of the last
    layer over the first 6 minutes in one piece; rounding of the points to float16.

    Not reproduced: laion-clap's and encodec's own code, whose models transformers' compute to
    rounding; other checkpoints than the embedder's; other decoders than ours, which for MP3 start
    some samples apart. Samples of float files above 1 are clipped by fadtk and scaled down here.

    Args:
        embedder: a CLAP, VGGish, EnCodec or MERT.
        clip: as a whole, as windows depend on where it ends.

    Returns:
        ``(rows, dim)`` float32 holding float16 values.

    Raises:
        InputError: another embedder, a rate whose filter would be too large, or an answer that is
            not finite as float16.
    """
    _check_supported(embedder)
    samples = _pcm(clip, embedder.sample_rate)
    if isinstance(embedder, VggishEmbedder):
        samples = np.pad(samples, (0, max(embedder.sample_rate - len(samples), 0)))
    return _as_half(embedder, _points(embedder, samples), clip)


def kadtk_features(embedder: Embedder, clip: Clip) -> Array:
    """The points that kadtk gets of a clip: as `fadtk_features`, with two differences.

    EnCodec's and MERT's frames are replaced by means of about one second, a last incomplete one
    left out; and VGGish is not padded.

    Returns:
        ``(rows, dim)`` float32 holding float16 values.

    Raises:
        InputError: as `fadtk_features`, or the clip is so short that kadtk fails on it.
    """
    _check_supported(embedder)
    samples = _pcm(clip, embedder.sample_rate)
    points = _points(embedder, samples)
    if isinstance(embedder, EncodecEmbedder | MertEmbedder):
        seconds = min(len(samples) / embedder.sample_rate, _LONGEST[type(embedder)])
        stride = int(len(points) / seconds)
        points = points[: len(points) // stride * stride].unflatten(0, (-1, stride)).mean(1)
    if len(points) == 0:
        raise InputError(
            f"kadtk hears nothing in {clip.source or 'a clip'} of {clip.seconds:g} s; give clips "
            f"of a second or more"
        )
    return _as_half(embedder, points, clip)


def fadtk_score(made: Features, reference: Features | Gaussian) -> Score:
    """fadtk's distance of the made clips from the reference, as far as it is well defined.

    Reproduced: the mean of each clip is rounded to float16 before those of clips are combined, the
    covariance is not; all points count alike, whatever clip they are of; no debiasing.

    Not reproduced: the root by general eigenvectors, which with fewer points than dimensions gives
    noise of either sign where the distance itself is well defined; and NaN for a clip of one
    point, which here adds no spread of its own.

    Args:
        made: what a `FadtkListener` heard.
        reference: the same, or the Gaussian of fadtk's own statistics.

    Returns:
        the score without an interval.

    Raises:
        InputError: other embedders, values not finite, or fewer than two points in a set.
    """
    value = distance(fadtk_gaussian(made), _target(made, reference))
    return Score(value, *NONE, n=len(made), better="lower")


def fadtk_clip_distances(made: Features, reference: Features | Gaussian) -> Array:
    """The distance of each clip alone from the reference, which fadtk lists with ``--indiv``.

    Reproduced and not reproduced: as in `fadtk_score`.

    Args:
        made, reference: as there.

    Returns:
        ``(clips,)``; NaN for a clip of one point, which fadtk leaves out of its list.

    Raises:
        InputError: as `fadtk_score`.
    """
    target = _target(made, reference)
    distances = clip_distances(made, target)
    for index in np.flatnonzero(~np.isnan(distances)):
        # Only the mean is rounded, so only the gap between the means is another.
        gaps = (np.square(mean - target.mu).sum() for mean in _means(made[int(index)]))
        rounded, exact = gaps
        distances[index] += rounded - exact
    return distances.clip(0)


def fadtk_gaussian(features: Features) -> Gaussian:
    """Mean and covariance as fadtk keeps them in its statistics.

    Raises:
        InputError: fewer than two points.
    """
    if len(features.points) < 2:
        raise InputError(
            f"a Fréchet distance needs two embeddings or more, not {len(features.points)}"
        )
    mu, scatter = np.zeros(features.width), np.zeros((features.width, features.width))
    count = 0
    for clip in features:
        if len(clip) == 0:
            continue
        mean, exact = _means(clip)
        centred = clip - exact
        gap, total = mean - mu, count + len(clip)
        scatter += centred.T @ centred + np.outer(gap, gap) * (count * len(clip) / total)
        mu += len(clip) / total * gap
        count = total
    return Gaussian(mu, scatter / (count - 1), len(features), count)


def _target(made: Features, reference: Features | Gaussian) -> Gaussian:
    if isinstance(reference, Features):
        comparable(made, reference)
        return fadtk_gaussian(reference)
    comparable(made, made)
    if made.width != reference.dim:
        raise InputError(
            f"embeddings of {made.width} dimensions and statistics of {reference.dim} cannot be "
            f"compared; use one embedder for both"
        )
    return reference


def _means(clip: Array) -> tuple[Array, Array]:
    """``(dim,)`` float64 mean of a clip as fadtk rounds it, and as it is."""
    # numpy adds float16 up as float32 and rounds the mean to float16 again.
    rounded = np.asarray(clip, np.float16).mean(0).astype(np.float64)
    return rounded, np.asarray(clip, np.float64).mean(0)


def kaiser_resample(wave: Tensor, rate: int, target: int) -> Tensor:
    """Resample as ``torchaudio.transforms.Resample`` does with fadtk's settings.

    Each output sample is the sum of inputs weighted by ``sinc(t) I0(β √(1 - (t/64)²)) / I0(β)``,
    with ``t`` counted in zero crossings of a low pass at 0.9476 of the lower Nyquist frequency and
    β = 14.77; silence is assumed around the wave.

    Args:
        wave: ``(channels, samples)`` float32.
        rate, target: Hz.

    Returns:
        ``(channels, ceil(samples · target / rate))`` float32.

    Raises:
        InputError: the rates have so few factors in common that the filter would be too large.
    """
    if rate == target:
        return wave
    common = math.gcd(rate, target)
    old, new = rate // common, target // common
    weights, reach = _kaiser_filter(old, new)
    padded = torch.nn.functional.pad(wave, (reach, reach + old))
    phases = torch.nn.functional.conv1d(padded[:, None], weights[:, None], stride=old)
    # Rounded up in float32, as there.
    count = int(torch.ceil(torch.tensor(new * wave.shape[1] / old)))
    return phases.transpose(1, 2).flatten(1)[:, :count]


@functools.lru_cache(maxsize=8)
def _kaiser_filter(old: int, new: int) -> tuple[Tensor, int]:
    """``(new, taps)`` float32, one filter for each output phase, and how far they reach back."""
    cutoff = min(old, new) * _ROLLOFF
    reach = math.ceil(_ZEROS * old / cutoff)
    if new * (2 * reach + old) > _LARGEST_FILTER:
        raise InputError(
            f"fadtk's resampling between rates of ratio {old}:{new} needs a filter of "
            f"{new * (2 * reach + old)} taps; resample the files to 44100 or 48000 Hz first"
        )
    taps = torch.arange(-reach, reach + old, dtype=torch.float64) / old
    phases = torch.arange(0, -new, -1) / new  # float32, as there
    t = ((phases[:, None] + taps) * cutoff).clamp(-_ZEROS, _ZEROS)
    beta = torch.tensor(_BETA)
    window = torch.i0(beta * torch.sqrt(1 - (t / _ZEROS) ** 2)) / torch.i0(beta)
    return (torch.sinc(t) * window * (cutoff / old)).float(), reach


def _pcm(clip: Clip, rate: int) -> Array:
    """``(samples,)`` int16: what fadtk writes to its converted WAV files and reads back."""
    wave = kaiser_resample(clip.wave.mean(0, keepdim=True), clip.sample_rate, rate)
    file = io.BytesIO()
    soundfile.write(file, wave[0].numpy(), rate, format="WAV", subtype="PCM_16")
    file.seek(0)
    return np.asarray(soundfile.read(file, dtype="int16")[0])


def _points(embedder: Embedder, samples: Array) -> Tensor:
    limit = _LONGEST.get(type(embedder), math.inf) * embedder.sample_rate
    wave = samples[: int(min(limit, len(samples)))] / 32_768.0
    with torch.inference_mode():
        if isinstance(embedder, ClapEmbedder):
            return embedder.embed(_clap_windows(embedder, wave))
        if isinstance(embedder, MertEmbedder):
            return embedder.frames(wave)
        return embedder.embed([wave.astype(np.float32)])


def _clap_windows(embedder: ClapEmbedder, wave: Array) -> list[Array]:
    coarse = (np.clip(wave, -1, 1) * 32_767.0).astype(np.int16)
    rounded = (coarse / 32_767.0).astype(np.float32)
    size = round(embedder.window_seconds * embedder.sample_rate)
    padded = np.pad(rounded, (0, size))
    return [padded[start : start + size] for start in range(0, len(wave), embedder.sample_rate)]


def _as_half(embedder: Embedder, points: Tensor, clip: Clip) -> Array:
    with np.errstate(over="ignore"):
        rounded = points.numpy().astype(np.float16).astype(np.float32)
    if not np.isfinite(rounded).all():
        raise InputError(
            f"embedder {embedder.name} answers with numbers that are not finite as float16 for "
            f"{clip.source or 'a clip'}; choose another --embedder"
        )
    return rounded


def _check_supported(embedder: Embedder) -> None:
    if not isinstance(embedder, _SUPPORTED):
        names = ", ".join(kind.__name__.removesuffix("Embedder").lower() for kind in _SUPPORTED)
        raise InputError(f"fadtk has no {type(embedder).__name__}; choose one of {names}")
