"""What every embedder offers, and how a clip becomes windows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.base import Listener


class Embedder(Listener):
    """A model that turns audio into points.

    A clip is cut into windows of ``window_seconds``, each starting ``hop_seconds`` after the one
    before; a rest that does not fill a window is left out, so that no silence is measured. A
    clip shorter than one window is one window, repeated until it is full. A clip's points do not
    depend on what is embedded beside it.

    Attributes:
        model_types: the ``model_type`` of the transformers configs that this family loads.
        role: what it is for, as the option that names it and its messages say.
        default: the Hub id or folder it loads where only its family is named; empty for none.
        model: the module that computes.
        name: the folder, file or id it was loaded from.
        hash: hex SHA-256 over the weights and settings it was loaded from.
        dim: size of a point.
        sample_rate: Hz of the audio it reads.
        window_seconds, hop_seconds: how clips are cut.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    role: ClassVar[str] = "embedder"
    default: ClassVar[str] = ""

    model: Any
    name: str
    hash: str
    dim: int
    sample_rate: int
    window_seconds: float
    hop_seconds: float

    @classmethod
    @abstractmethod
    def load(cls, path_or_id: str | Path | None = None) -> Self:
        """Load from a folder, file or Hub id, and check it. Nothing is unpickled.

        Raises:
            InputError: it is not there, of another family, damaged, or fails its self-test.
        """

    @classmethod
    @abstractmethod
    def toy(cls) -> Self:
        """A random small one, built offline in a moment, for tests and dry runs."""

    @abstractmethod
    def embed(self, windows: Sequence[np.ndarray]) -> Tensor:
        """Points of mono windows at ``sample_rate``, all as long as a window or shorter.

        Returns:
            ``(points, dim)`` float32, one or more for each window.
        """

    @property
    def key(self) -> str:  # type: ignore[override]
        """Names family, weights and windows."""
        cut = f"{self.sample_rate}-{self.window_seconds:g}-{self.hop_seconds:g}"
        # A GPU rounds otherwise.
        where = "" if self.device.type == "cpu" else f"-{self.device.type}"
        return f"{type(self).__name__}-{self.hash[:16]}-{cut}{where}"

    @property
    def device(self) -> torch.device:
        """Where it computes; what it takes and gives is on the CPU."""
        found: torch.device = next(self.model.parameters()).device
        return found

    def to(self, device: torch.device | str) -> Self:
        """Compute on another device from now on."""
        self.model.to(device)
        return self

    def hear(self, clip: Clip) -> np.ndarray:
        """``(points, dim)`` float32."""
        with torch.inference_mode():
            points = self.embed(list(self.windows(clip)))
        if not torch.isfinite(points).all():
            raise InputError(
                f"{self.role} {self.name} answers with numbers that are not finite for "
                f"{clip.source or 'a clip'}; choose another --{self.role}"
            )
        return points.numpy()

    def audio(self, clips: Iterable[Clip]) -> list[Tensor]:
        """Embed clips of any rate, layout and length, one by one, so that they may be a stream.

        Returns:
            one ``(points, dim)`` float32 tensor per clip.

        Raises:
            InputError: the model answers with numbers that are not finite.
        """
        return [torch.from_numpy(self.hear(clip)) for clip in clips]

    def windows(self, clip: Clip) -> Iterator[np.ndarray]:
        """The mono windows of a clip as arrays, at the model's rate."""
        wave = clip.mono().resample(self.sample_rate).wave[0].numpy()
        size = round(self.window_seconds * self.sample_rate)
        hop = round(self.hop_seconds * self.sample_rate)
        if len(wave) < size:
            yield self._fill(wave, size)
            return
        for start in range(0, len(wave) - size + 1, hop):
            yield wave[start : start + size]

    def _fill(self, wave: np.ndarray, size: int) -> np.ndarray:
        return np.resize(wave, size)  # numpy repeats


@runtime_checkable
class TextReader(Protocol):
    """An embedder that also reads text, into the same space."""

    def text(self, texts: Sequence[str]) -> Tensor:
        """``(texts, dim)`` float32, unit rows."""
