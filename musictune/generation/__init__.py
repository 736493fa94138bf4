"""Making music: the decode loop and its sampling."""

from musictune.generation.engine import Engine
from musictune.generation.sampling import Sampling

__all__ = ["Engine", "Sampling"]
