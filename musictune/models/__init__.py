"""Base models. ``load_model`` finds the right class for a name."""

from musictune.models.base import Batch, MusicModel
from musictune.models.loading import load_model

__all__ = ["Batch", "MusicModel", "load_model"]
