"""Audiobox-Aesthetics, if its package and weights are there: what people would say of a sound."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError

AXES: Mapping[str, str] = {
    "CE": "content enjoyment",
    "CU": "content usefulness",
    "PC": "production complexity",
    "PQ": "production quality",
}
"""What is rated, by the model's own names."""

FOLDER = "MUSICTUNE_AESTHETICS"
"""Environment variable that names the folder of the weights."""

_RATE = 16_000
_WINDOW = 10 * _RATE
_INSTALL = "install it: pip install --no-deps audiobox_aesthetics"
_FETCH = (
    "fetch them once: hf download facebook/audiobox-aesthetics config.json model.safetensors "
    f"--local-dir FOLDER, and set {FOLDER}=FOLDER"
)


class Aesthetics:
    """Reward: what listeners would give a clip from 1 to 10 on one axis, as predicted.

    Audiobox-Aesthetics (Tjandra et al. 2025, arXiv 2502.05139): clips in mono at 16 kHz, in
    windows of 10 s of which a rest counts by its length. Neither the package nor the weights come
    with musictune, and neither is ever downloaded from here. Only the package's model is used,
    which does without torchaudio, and only weights in safetensors.

    Args:
        axis: one of `AXES`.
        folder: ``config.json`` and ``model.safetensors``; `FOLDER` of the environment if None.
        device: where it computes.

    Raises:
        InputError: no such axis, the package is not installed, or the weights are not there or
            not readable.
    """

    def __init__(
        self, axis: str = "PQ", folder: Path | None = None, device: torch.device | str = "cpu"
    ) -> None:
        if axis not in AXES:
            known = ", ".join(f"{name} ({meaning})" for name, meaning in AXES.items())
            raise InputError(f"axis {axis!r} of aesthetics is not known; choose from {known}")
        self.axis = axis
        self.device = torch.device(device)
        self._model = _load(_weights(folder)).to(self.device).eval()
        scale = self._model.target_transform[axis]
        self._mean, self._deviation = float(scale["mean"]), float(scale["std"])

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)`` float32, about 1 to 10."""
        return torch.tensor([self._rate(clip) for clip in clips], dtype=torch.float32)

    @torch.inference_mode()
    def _rate(self, clip: Clip) -> float:
        wave = clip.mono().resample(_RATE).wave[0]
        windows = wave.split(_WINDOW)
        lengths = torch.tensor([len(window) for window in windows])
        padded = torch.stack([F.pad(window, (0, _WINDOW - len(window))) for window in windows])
        mask = torch.arange(_WINDOW)[None] < lengths[:, None]
        answer = self._model(
            {"wav": padded[:, None].to(self.device), "mask": mask[:, None].to(self.device)}
        )
        values = answer[self.axis].double().cpu().flatten() * self._deviation + self._mean
        return float((values * lengths).sum() / lengths.sum())


def _weights(folder: Path | None) -> Path:
    named = folder or (Path(os.environ[FOLDER]) if os.environ.get(FOLDER) else None)
    if named is None:
        raise InputError(f"the weights of audiobox_aesthetics are not named; {_FETCH}")
    for file in ("config.json", "model.safetensors"):
        if not (named / file).is_file():
            raise InputError(f"{named} holds no {file} of audiobox_aesthetics; {_FETCH}")
    return named


def _load(folder: Path) -> Any:
    try:
        from audiobox_aesthetics.model.aes import AesMultiOutput
    except ImportError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"reward aesthetics cannot be used: {reason}; {_INSTALL}") from error
    try:
        # Of a folder that is there nothing is asked from the Hub.
        model = AesMultiOutput.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{folder} holds no usable weights of audiobox_aesthetics: {reason}; {_FETCH}"
        ) from error
    if set(AXES) - set(model.target_transform or {}):
        raise InputError(f"{folder}: config.json does not tell the scale of each axis; {_FETCH}")
    return model
