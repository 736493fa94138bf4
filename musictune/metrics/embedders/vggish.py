"""VGGish: a convolutional network over log mel patches, the embedder of the first papers on FAD."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.files import sha256
from musictune.metrics.embedders.base import Embedder
from musictune.metrics.embedders.folders import aligned
from musictune.metrics.embedders.selftest import check_embedder
from musictune.metrics.embedders.weights import fill, read_weights

RATE = 16_000
WIDTHS = (64, 128, 256, 256, 512, 512)  # of the convolutions
HIDDEN, DIM = 4096, 128

_FRAME, _HOP, _FFT = 400, 160, 512  # samples: 25 ms, 10 ms
_BANDS, _LOWEST, _HIGHEST = 64, 125.0, 7500.0  # Hz
_OFFSET = 0.01
_FRAMES = 96  # of a patch
_PATCHES_AT_ONCE = 16
_POOLED_AFTER = (0, 1, 3, 5)  # which convolutions are followed by pooling
_CONVOLUTIONS = (0, 3, 6, 8, 11, 13)  # where they are among the layers, therefore


class VggishEmbedder(Embedder):
    """VGGish (arXiv 1609.09430) with weights from a file, one point for each patch of 0.96 s.

    A patch is 96 frames, which take 0.975 s of audio, and starts 0.96 s after the one before, as
    in the original. Points are those before the last activation, without PCA or quantisation, as
    in fadtk.

    Weights are a PyTorch state dict, as in the ``.pth`` of harritaylor/torchvggish, or
    safetensors with the same names (``features.0.weight`` to ``embeddings.4.bias``). Widths are
    read from the weights.
    """

    def __init__(self, network: Vgg, name: str, hash: str) -> None:
        self.model = aligned(network)
        self.name = name
        self.hash = hash
        self.dim = network.dim
        self.sample_rate = RATE
        self.window_seconds = (_FRAME + (_FRAMES - 1) * _HOP) / RATE
        self.hop_seconds = _FRAMES * _HOP / RATE

    @classmethod
    def load(cls, path_or_id: str | Path | None = None) -> Self:
        """Load a weights file: ``.pth`` with tensors only, or ``.safetensors``.

        Raises:
            InputError: there is no such file, or not with VGGish's weights.
        """
        if not path_or_id or not Path(path_or_id).is_file():
            raise InputError(
                f"embedder vggish:{path_or_id or ''} names no file; give its weights, such as "
                f"vggish:vggish-10086976.pth"
            )
        path = Path(path_or_id)
        weights = read_weights(path, str(path))
        network = Vgg(*_sizes(weights, str(path)))
        fill(network, weights, str(path))
        embedder = cls(network, name=str(path), hash=sha256(path))
        check_embedder(embedder)
        return embedder

    @classmethod
    def toy(cls) -> Self:
        """A random one with a few thousand weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = Vgg((2, 2, 4, 4, 4, 4), 16, 8)
            for tensor in network.parameters():
                tensor.data.normal_(0, 0.3)
        return cls(network, name="toy", hash="toy")

    def embed(self, windows: Sequence[np.ndarray]) -> Tensor:
        """One row for each window; a longer window gives one for each patch in it."""
        patches = np.concatenate([mel_patches(window) for window in windows])
        return self.model.patches(torch.from_numpy(patches).to(self.device)).cpu()


class Vgg(nn.Module):
    """Configuration A of VGG without its last block, named as in torchvggish.

    Args:
        widths: channels of the six convolutions.
        hidden: units of the two hidden layers.
        dim: size of a point.
    """

    def __init__(self, widths: Sequence[int], hidden: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        layers: list[nn.Module] = []
        channels = 1
        for index, width in enumerate(widths):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] * (index in _POOLED_AFTER)
            channels = width
        self.features = nn.Sequential(*layers)
        flat = channels * (_FRAMES // 16) * (_BANDS // 16)
        self.embeddings = nn.Sequential(
            nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, dim),
        )  # fmt: skip

    def patches(self, mel: Tensor) -> Tensor:
        """``(patches, dim)`` of ``(patches, 96, 64)`` log mel values."""
        found = []
        for some in mel.split(_PATCHES_AT_ONCE):
            maps = self.features(some[:, None])
            # TensorFlow keeps channels last, and so are they flattened in the trained weights.
            found.append(self.embeddings(maps.permute(0, 2, 3, 1).flatten(1)))
        return torch.cat(found) if found else mel.new_empty(0, self.dim)


def mel_patches(wave: np.ndarray) -> np.ndarray:
    """The patches VGGish looks at, only of whole frames: nothing is padded.

    Magnitudes of 25 ms Hann windows every 10 ms in 64 triangular bands, whose edges and slopes are
    even on the HTK mel scale between 125 and 7500 Hz; their logarithm after adding 0.01.

    Args:
        wave: ``(samples,)`` mono at 16 kHz.

    Returns:
        ``(patches, 96, 64)`` float32; none from less than 0.975 s.
    """
    count = max(len(wave) - _FRAME, -_HOP) // _HOP + 1
    patches = count // _FRAMES
    if patches == 0:
        return np.empty((0, _FRAMES, _BANDS), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(wave, _FRAME)[::_HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FRAME) / _FRAME)
    bands = _mel_bands()
    found = np.empty((patches, _FRAMES, _BANDS), np.float32)
    for index in range(patches):  # one by one: memory does not grow with the clip
        some = frames[index * _FRAMES : (index + 1) * _FRAMES]
        magnitudes = np.abs(np.fft.rfft(some * window, _FFT))
        found[index] = np.log(magnitudes @ bands + _OFFSET)
    return found


def _mel_bands() -> np.ndarray:
    """``(bins, bands)`` weights, triangles in mel (not in Hz as librosa's)."""

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return np.asarray(1127.0 * np.log1p(np.asarray(hertz) / 700.0))

    edges = np.linspace(mel(_LOWEST), mel(_HIGHEST), _BANDS + 2)
    bins = mel(np.linspace(0, RATE / 2, _FFT // 2 + 1))[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    weights = np.minimum(rising, falling).clip(0)
    weights[0] = 0.0  # the mean is no sound
    return np.asarray(weights)


def _sizes(weights: dict[str, Tensor], name: str) -> tuple[list[int], int, int]:
    try:
        widths = [len(weights[f"features.{index}.weight"]) for index in _CONVOLUTIONS]
        hidden, dim = len(weights["embeddings.0.weight"]), len(weights["embeddings.4.weight"])
    except KeyError as error:
        raise InputError(
            f"embedder {name} does not hold VGGish's weights ({error} is missing); use "
            f"torchvggish's vggish-10086976.pth"
        ) from error
    return widths, hidden, dim
