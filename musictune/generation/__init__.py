"""Making music: the engine, what is asked of it, and its sampling."""

from musictune.generation.engine import Engine
from musictune.generation.request import Request
from musictune.generation.sampling import Sampling
from musictune.generation.session import Session

__all__ = ["Engine", "Request", "Sampling", "Session"]
