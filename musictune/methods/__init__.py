"""Tuning methods. Each is one file; ``find`` knows them all by their short names."""

from musictune.methods.adapter import (
    adapter_folder,
    attach_adapter,
    fingerprint,
    load_adapter,
    save_adapter,
)
from musictune.methods.base import TuningMethod, trained_parameters
from musictune.methods.registry import find, methods

__all__ = [
    "TuningMethod",
    "adapter_folder",
    "attach_adapter",
    "find",
    "fingerprint",
    "load_adapter",
    "methods",
    "save_adapter",
    "trained_parameters",
]
