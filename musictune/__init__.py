"""musictune: teach a pretrained text-to-music model your sound, and measure whether it worked.

The public names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from musictune.audio import Clip, read, write
    from musictune.data.concepts import Concept
    from musictune.errors import AudioError, CheckFailed, InputError, MusictuneError
    from musictune.generation import Engine, Sampling
    from musictune.methods import TuningMethod, load_adapter
    from musictune.models import MusicModel, load_model

_HOMES = {
    "AudioError": "musictune.errors",
    "CheckFailed": "musictune.errors",
    "Clip": "musictune.audio",
    "Concept": "musictune.data.concepts",
    "Engine": "musictune.generation",
    "InputError": "musictune.errors",
    "MusicModel": "musictune.models",
    "MusictuneError": "musictune.errors",
    "Sampling": "musictune.generation",
    "TuningMethod": "musictune.methods",
    "load_adapter": "musictune.methods",
    "load_model": "musictune.models",
    "read": "musictune.audio",
    "write": "musictune.audio",
}

__all__ = [
    "AudioError",
    "CheckFailed",
    "Clip",
    "Concept",
    "Engine",
    "InputError",
    "MusicModel",
    "MusictuneError",
    "Sampling",
    "TuningMethod",
    "load_adapter",
    "load_model",
    "read",
    "write",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'musictune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOMES)
