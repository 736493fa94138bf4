"""Which class loads which base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musictune.models.musicgen import MusicGen


def load_model(base: str | Path, device: str = "auto") -> MusicGen:
    """Load the base model ``base``: ``mini``, a local folder, or a Hugging Face id.

    Raises:
        InputError: unknown base or device, or files that are missing, corrupt or incomplete.
    """
    from musictune.models.musicgen import MusicGen  # transformers takes seconds to import

    return MusicGen.load(base, device)
