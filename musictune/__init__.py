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
    from musictune.evaluation.plan import Plan
    from musictune.evaluation.run import Measured, evaluate
    from musictune.generation import Engine, Sampling
    from musictune.methods import TuningMethod, load_adapter
    from musictune.methods.switching import Adapters
    from musictune.metrics.embedders import load_embedder
    from musictune.metrics.features import Features
    from musictune.metrics.frechet import frechet_distance
    from musictune.models import MusicModel, load_model

_HOMES = {
    "Adapters": "musictune.methods.switching",
    "AudioError": "musictune.errors",
    "CheckFailed": "musictune.errors",
    "Clip": "musictune.audio",
    "Concept": "musictune.data.concepts",
    "Engine": "musictune.generation",
    "Features": "musictune.metrics.features",
    "InputError": "musictune.errors",
    "Measured": "musictune.evaluation.run",
    "MusicModel": "musictune.models",
    "MusictuneError": "musictune.errors",
    "Plan": "musictune.evaluation.plan",
    "Sampling": "musictune.generation",
    "TuningMethod": "musictune.methods",
    "evaluate": "musictune.evaluation.run",
    "frechet_distance": "musictune.metrics.frechet",
    "load_adapter": "musictune.methods",
    "load_embedder": "musictune.metrics.embedders",
    "load_model": "musictune.models",
    "read": "musictune.audio",
    "write": "musictune.audio",
}

__all__ = [
    "Adapters",
    "AudioError",
    "CheckFailed",
    "Clip",
    "Concept",
    "Engine",
    "Features",
    "InputError",
    "Measured",
    "MusicModel",
    "MusictuneError",
    "Plan",
    "Sampling",
    "TuningMethod",
    "evaluate",
    "frechet_distance",
    "load_adapter",
    "load_embedder",
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
