"""Pairs of tiny sounds to vote on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from musictune.data.preferences import Pair, pair_id
from musictune.files import sha256


def put_pairs(folder: Path, count: int) -> list[Pair]:
    pairs = []
    for index in range(count):
        paths = [folder / system / f"{index}.wav" for system in ("old", "new")]
        for number, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.full(800, 0.001 * (2 * index + number + 1)), 8_000)
        prompt = f"piece {index}"
        name = pair_id(prompt, sha256(paths[0]), sha256(paths[1]))
        pairs.append(Pair(name, prompt, *paths, "old", "new"))
    return pairs
