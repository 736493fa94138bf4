"""Stored statistics of a reference: ours, fadtk's and those of stable-audio-metrics.

All three are ``.npz`` files; nothing in them is unpickled, and sizes are checked before they are
read.

=====================  =========================================================================
layout                 arrays
=====================  =========================================================================
musictune              ``mu``, ``cov``, ``n_clips``, ``n_frames``, ``name``, ``key``
fadtk                  ``EMBEDDER.mu`` and ``EMBEDDER.cov``, of several embedders
stable-audio-metrics   ``mu_ref`` and ``sigma_ref``
=====================  =========================================================================
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from musictune.errors import InputError
from musictune.files import publish_file
from musictune.metrics.features import Features
from musictune.metrics.gaussian import Gaussian, Groups

Array = np.ndarray
Layout = Literal["musictune", "fadtk", "stable-audio-metrics"]

_WIDEST = 16_384  # dimensions; an embedder's have a thousand or so
_HEADER = 4096  # bytes before the numbers of an array
# What zipfile and numpy raise for bytes that are not what they say.
_DAMAGE = (OSError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of a reference whose clips are not at hand.

    Attributes:
        gaussian: they themselves, with the numbers of clips and frames, 0 where not known.
        name: of the embedder, or of the file where the layout has none.
        key: of the listener, as in `Features`; empty where the layout has none.
        layout: of the file.
    """

    gaussian: Gaussian
    name: str
    key: str = ""
    layout: Layout = "musictune"

    @classmethod
    def of(cls, features: Features, name: str) -> Statistics:
        """Measured on finite features.

        Raises:
            InputError: fewer than two rows.
        """
        return cls(Groups(features).whole, name, features.key)

    def check_fits(self, features: Features) -> None:
        """Refuse what another embedder heard, as far as that can be told.

        Raises:
            InputError: another width, or another listener.
        """
        self.check_heard_by(features.width, features.key)

    def check_heard_by(self, width: int, key: str) -> None:
        """As `check_fits`, for a listener that has not heard anything yet.

        Args:
            width: of the rows it will give.
            key: its own; empty if not known.

        Raises:
            InputError: another width, or another listener.
        """
        if width != self.gaussian.dim:
            raise InputError(
                f"statistics {self.name} have {self.gaussian.dim} dimensions, the made clips "
                f"{width}; choose the embedder they were made with (--embedder)"
            )
        if self.key and key and self.key != key:
            raise InputError(
                f"statistics {self.name} are of {self.key}, the made clips of {key}; "
                f"choose the embedder they were made with (--embedder), or make them anew"
            )


def read_statistics(path: Path | str, name: str = "") -> Statistics:
    """Read a ``.npz`` file of any of the three layouts.

    Args:
        name: which embedder's, in fadtk's layout; not needed where there is only one.

    Raises:
        InputError: there is no such file or embedder in it, it is of no known layout, too large or
            damaged, or it holds no mean and covariance.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"statistics {path} are not there; give a .npz file")
    try:
        if not zipfile.is_zipfile(path):
            raise InputError(f"statistics {path} are no .npz archive; give one")
        with np.load(path, allow_pickle=False) as archive:
            return _read(archive, path, name)
    except _DAMAGE as error:
        raise InputError(f"statistics {path} cannot be read ({error}); get them anew") from error


def write_statistics(
    path: Path | str, statistics: Statistics, *, layout: Layout = "musictune"
) -> None:
    """Write a ``.npz`` file; one of that name is replaced.

    Raises:
        InputError: the layout is unknown, the name does not end in ``.npz``, or the file cannot be
            written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise InputError(f"statistics {path} must be named .npz; choose another name")
    gaussian = statistics.gaussian
    arrays: dict[str, Array]
    if layout == "fadtk":
        arrays = {f"{statistics.name}.mu": gaussian.mu, f"{statistics.name}.cov": gaussian.cov}
    elif layout == "stable-audio-metrics":
        arrays = {"mu_ref": gaussian.mu, "sigma_ref": gaussian.cov}
    elif layout == "musictune":
        arrays = {
            "mu": gaussian.mu,
            "cov": gaussian.cov,
            "n_clips": np.array(gaussian.n_clips),
            "n_frames": np.array(gaussian.n_frames),
            "name": np.array(statistics.name),
            "key": np.array(statistics.key),
        }
    else:
        raise InputError(
            f"layout {layout!r} is unknown; choose musictune, fadtk or stable-audio-metrics"
        )
    with publish_file(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)  # type: ignore[arg-type]


def _read(archive: np.lib.npyio.NpzFile, path: Path, name: str) -> Statistics:
    there = set(archive.files)
    if {"mu", "cov", "n_clips", "n_frames"} <= there:
        clips, frames = (int(_array(archive, k, 0)) for k in ("n_clips", "n_frames"))
        if not 0 <= clips <= frames:
            raise InputError(f"statistics {path} speak of {clips} clips in {frames} frames")
        own = str(_array(archive, "name", 0)) if "name" in there else path.stem
        key = str(_array(archive, "key", 0)) if "key" in there else ""
        return Statistics(_gaussian(archive, "mu", "cov", path, clips, frames), own, key)
    if {"mu_ref", "sigma_ref"} <= there:
        gaussian = _gaussian(archive, "mu_ref", "sigma_ref", path)
        return Statistics(gaussian, path.stem, layout="stable-audio-metrics")
    names = sorted(k[:-3] for k in there if k.endswith(".mu") and f"{k[:-3]}.cov" in there)
    if not names:
        raise InputError(
            f"statistics {path} hold {', '.join(sorted(there)[:8]) or 'nothing'}; needed are mu, "
            f"cov, n_clips and n_frames, or fadtk's EMBEDDER.mu and EMBEDDER.cov, or mu_ref and "
            f"sigma_ref"
        )
    if not name and len(names) == 1:
        name = names[0]
    if name not in names:
        raise InputError(
            f"statistics {path} hold no embedder {name!r}; name one of {', '.join(names)}"
        )
    return Statistics(_gaussian(archive, f"{name}.mu", f"{name}.cov", path), name, layout="fadtk")


def _gaussian(
    archive: np.lib.npyio.NpzFile, mu: str, cov: str, path: Path, clips: int = 0, frames: int = 0
) -> Gaussian:
    """Checked: of fitting shapes, finite, symmetric and without negative variance."""
    mean = _array(archive, mu, _WIDEST)
    covariance = _array(archive, cov, mean.size**2)
    for array in (mean, covariance):
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise InputError(f"statistics {path} hold values that are not finite; get them anew")
    if mean.ndim != 1 or not mean.size or covariance.shape != (mean.size, mean.size):
        raise InputError(
            f"statistics {path} hold a mean of shape {mean.shape} and a covariance of shape "
            f"{covariance.shape}; (dim,) and (dim, dim) are needed"
        )
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    scale = float(np.abs(covariance).max())
    if not np.allclose(covariance, covariance.T, rtol=0, atol=1e-6 * scale):
        raise InputError(f"statistics {path} hold a covariance that is not symmetric")
    gaussian = Gaussian(mean, (covariance + covariance.T) / 2, clips, frames)
    # What the root lacks of the trace is negative variance; some comes of float32.
    if abs(float(np.square(gaussian.root).sum()) - gaussian.trace) > 1e-4 * abs(gaussian.trace):
        raise InputError(f"statistics {path} hold a covariance with negative variances")
    return gaussian


def _array(archive: np.lib.npyio.NpzFile, key: str, most: int) -> Array:
    """One array of ``most`` numbers or fewer; 0 stands for a word or a number."""
    assert archive.zip is not None
    names = {info.filename.removesuffix(".npy"): info for info in archive.zip.infolist()}
    if names[key].file_size > 8 * most + _HEADER:
        raise InputError(
            f"{key} in statistics {archive.zip.filename} has {names[key].file_size} bytes, more "
            f"than a mean or covariance of up to {_WIDEST} dimensions that fit each other"
        )
    return np.asarray(archive[key])
