"""Which class loads which base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musictune.models.musicgen import MusicGen


def load_model(base: str | Path, device: str = "auto") -> MusicGen:
    """Load the base model ``base``: ``mini``, a local folder, or a Hugging Face id.

    The class follows from ``model_type`` in its ``config.json``; no code of the base is run.

    Raises:
        InputError: unknown base or device, or files that are missing, corrupt or incomplete.
    """
    from musictune.models import checkpoint  # transformers takes seconds to import
    from musictune.models.melody import MusicGenMelody
    from musictune.models.musicgen import MusicGen

    kinds = {model.kind: model for model in (MusicGen, MusicGenMelody)}
    return kinds[checkpoint.kind(str(base))].load(base, device)
