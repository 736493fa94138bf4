"""Two tasks for an audio encoder that was trained on `musictune compose`'s own corpus.

    python benchmarks/classify/data.py DATA

writes DATA/families and DATA/styles, AudioFolders with `label` and `split` in each line of
`metadata.jsonl`. `families`: who leads, of nine families, each played by programs of General MIDI
that no corpus has, alone or over an instrument of none of the nine. `styles`: which of the ten
styles a band plays that no corpus has, on instruments that corpora do have. Every clip has a seed
of its own, so no tune is on two sides of a split; programs are on all three sides.

Needs the extra `compose` and a SoundFont, as `musictune compose` does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from musictune import audio
from musictune.compose.instruments import DRUMS, HELD_OUT, INSTRUMENTS, instrument
from musictune.compose.render import Renderer
from musictune.compose.score import Score, write_score
from musictune.compose.styles import HELD_OUT_STYLES
from musictune.console import say, track
from musictune.files import check_target, publish_folder

FIRST_SEED = 80_000_000  # far from those of corpora, concept sets and other benchmarks
SECONDS = 5.5
CLIPS = {"train": 24, "validation": 12, "test": 32}
"""Of each class."""
_SEEDS_OF_A_CLASS = 100_000
_SOLOS = (True, True, False)  # in turn; the others are duos

# Programs that nobody composes for, each written for as for one that is known, and of its family.
# The truth has the known name. They enter the renderer's table of instruments while this runs.
_LIKE = {
    17: 16, 20: 19, 23: 21,  # organ: percussive, reed, bandoneon
    43: 42, 44: 48, 49: 48, 51: 50, 110: 40,  # strings: double bass bowed, tremolo, slow, fiddle
    106: 107,  # plucked: shamisen
    62: 61, 63: 61,  # brass: two synthetic sections
    69: 68, 111: 68,  # reed: cor anglais, shanai
    76: 73,  # flute: blown bottle
    82: 80, 83: 80, 84: 81, 86: 81,  # synth lead: calliope, chiff, charang, fifths
    92: 89, 93: 88,  # synth pad: bowed, metallic
}  # fmt: skip
MORE = {program: replace(instrument(like), program=program) for program, like in _LIKE.items()}


@dataclass(frozen=True)
class Planned:
    """One clip to be: its class, its part, and its score."""

    label: str
    split: str
    seed: int
    score: Score
    program: int | None = None


def families(clips: Mapping[str, int]) -> Iterator[Planned]:
    """Families led by held-out programs, the programs in turn."""
    programs: dict[str, list[int]] = {}
    for item in sorted((HELD_OUT | MORE).values(), key=lambda item: item.program):
        programs.setdefault(item.family, []).append(item.program)
    for number, (family, own) in enumerate(sorted(programs.items())):
        seeds = itertools.count(FIRST_SEED + number * _SEEDS_OF_A_CLASS)
        order = (part for part, count in clips.items() for _ in range(count))
        for place, part in enumerate(order):
            program = own[place % len(own)]
            texture = "solo" if _SOLOS[place // len(own) % len(_SOLOS)] else "duo"
            for seed in seeds:
                score = _led(program, seed, texture)
                others = set(score.truth.families) - {family}
                if not others & set(programs):
                    yield Planned(family, part, seed, score, program)
                    break


def _led(program: int, seed: int, texture: str) -> Score:
    known = _LIKE.get(program, program)
    score = write_score(seed, seconds=SECONDS, program=known, texture=texture)
    return replace(
        score,
        parts=tuple(
            replace(part, program=program)
            if part.program == known and part.role != DRUMS  # where it is the number of a kit
            else part
            for part in score.parts
        ),
    )


def styles(clips: Mapping[str, int]) -> Iterator[Planned]:
    """Bands in held-out styles."""
    for number, style in enumerate(sorted(HELD_OUT_STYLES)):
        seeds = itertools.count(FIRST_SEED + 10_000_000 + number * _SEEDS_OF_A_CLASS)
        order = (part for part, count in clips.items() for _ in range(count))
        for seed, part in zip(seeds, order, strict=False):
            score = write_score(seed, seconds=SECONDS, style=style, texture="band")
            yield Planned(style, part, seed, score)


TASKS = {"families": families, "styles": styles}


def main() -> None:
    """Write both tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    for part, count in CLIPS.items():
        parser.add_argument(f"--{part}", type=int, default=count, help="clips of each class")
    parser.add_argument("--soundfont", type=Path)
    parser.add_argument("--overwrite", action="store_true")
    asked = parser.parse_args()
    clips = {part: getattr(asked, part) for part in CLIPS}
    if played := (set(INSTRUMENTS) | set(HELD_OUT)) & set(MORE):
        parser.error(f"the composer plays program {min(played)} by now; take it out of _LIKE")
    HELD_OUT.update(MORE)
    for task in TASKS:
        check_target(asked.out / task, overwrite=asked.overwrite)
    renderer = Renderer(asked.soundfont)
    asked.out.mkdir(parents=True, exist_ok=True)
    for task, plan in TASKS.items():
        began, planned = time.monotonic(), list(plan(clips))
        with publish_folder(asked.out / task, overwrite=asked.overwrite) as folder:
            (folder / "audio").mkdir()
            with (folder / "metadata.jsonl").open("w", encoding="utf-8") as lines:
                for number, item in enumerate(track(planned, task, len(planned))):
                    name = f"audio/{number:05d}.flac"
                    audio.write(renderer.render(item.score, effects_seed=item.seed), folder / name)
                    row = {"file_name": name, "label": item.label, "split": item.split}
                    row |= {"group": str(item.seed), "seconds": SECONDS, "program": item.program}
                    lines.write(
                        json.dumps(row | {"seed": item.seed} | asdict(item.score.truth)) + "\n"
                    )
        classes = len({item.label for item in planned})
        spent = time.monotonic() - began
        say(f"{asked.out / task}: {len(planned)} clips of {classes} classes in {spent:.0f} s")


if __name__ == "__main__":
    main()
