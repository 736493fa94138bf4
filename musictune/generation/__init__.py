"""Making music: the engine, what is asked of it, and its sampling."""

from musictune.generation.adapters import AdapterSet
from musictune.generation.engine import Engine
from musictune.generation.longform import LongForm
from musictune.generation.request import Request
from musictune.generation.sampling import Sampling
from musictune.generation.session import Session
from musictune.generation.streaming import StreamDecoder, stream_clip

__all__ = [
    "AdapterSet",
    "Engine",
    "LongForm",
    "Request",
    "Sampling",
    "Session",
    "StreamDecoder",
    "stream_clip",
]
