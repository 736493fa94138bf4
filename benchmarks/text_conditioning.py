"""Whether the bundled language model hears its text: its loss with true, wrong and no captions.

    musictune compose --count 48 --seconds 10 --seed 900000 --out held
    python benchmarks/text_conditioning.py held [--base mini]

The seeds must not be those of the training corpora (README of the base). Six seconds of each
clip; nats per token.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from musictune import audio
from musictune.models.musicgen import MusicGen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default="mini")
    parser.add_argument("--limit", type=int, default=48)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = MusicGen.load(options.base)
    lines = (options.folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[: options.limit]]
    clips = [
        replace(
            audio.read(options.folder / row["file_name"], seconds=6),
            caption=max(row["captions"], key=len),
        )
        for row in rows
    ]
    batch = model.encode(clips)
    wrong = batch.texts[7:] + batch.texts[:7]
    for name, texts in (("true", batch.texts), ("wrong", wrong), ("none", ("",) * len(batch))):
        with torch.no_grad():
            loss = model.nll(replace(batch, texts=texts)).mean()
        print(f"{name:6} {loss:.3f}")


if __name__ == "__main__":
    main()
