"""What several tests of training learn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from musictune.data.clips import prepare_folder
from musictune.data.concepts import Concept


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four crops of two seconds, prepared for a concept."""
    root = tmp_path_factory.mktemp("clips")
    time = np.arange(16_000 * 8) / 16_000
    sf.write(root / "a.wav", 0.5 * np.sin(1400 * time) * np.exp(-(time % 1) * (2 + time)), 16_000)
    prepare_folder(
        root / "a.wav", root / "made", sample_rate=16_000, seconds=2.0,
        concept=Concept("zorblax", "piano"), captioner=lambda _, subject: f"slow {subject}",
    )  # fmt: skip
    return root / "made"
