"""How ``demos/steelpan.flac`` was made: steel drums, which the bundled base has never heard.

    python demos/make_reference.py

Eight pieces of twelve seconds, solo, in several keys and tempi, by our own composer.
Needs a SoundFont and tinysoundfont: make compose-setup.
"""

from __future__ import annotations

from pathlib import Path

import torch

from musictune import audio
from musictune.compose.render import Renderer, find_soundfont
from musictune.compose.score import write_score

STEEL_DRUMS = 114
STYLES = ("folk", "country", "lullaby", "soul", "disco", "folk", "pop", "waltz")


def main() -> None:
    renderer = Renderer(find_soundfont())
    clips = [
        renderer.render(
            write_score(seed, seconds=12.0, program=STEEL_DRUMS, style=style, texture="solo")
        )
        for seed, style in enumerate(STYLES, start=700_000)
    ]
    whole = torch.cat([clip.level().wave for clip in clips], 1)
    audio.write(audio.Clip(whole, clips[0].sample_rate), Path(__file__).parent / "steelpan.flac")


if __name__ == "__main__":
    main()
