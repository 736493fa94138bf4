"""Making the audio of a concept set: composed from seeds, or cut from recordings.

Both write, whole or not at all, the layout that `concept_set` reads.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from musictune import audio
from musictune.bench.concept_set import BenchConcept, parse_concept, write_concept
from musictune.compose.instruments import INSTRUMENTS, instrument
from musictune.compose.notes import Score, Truth
from musictune.compose.render import Renderer, find_soundfont
from musictune.compose.score import write_score
from musictune.compose.styles import find_style
from musictune.console import track
from musictune.errors import InputError
from musictune.files import check_target, publish_file, publish_folder, sha256

CLIPS, SECONDS = 12, 10.0
"""Clips of each folder and their length: two minutes to learn from, two to measure with."""

_HELD_OUT = 5_000  # seeds from the reference clips to the held-out ones
_TEXTURES = ("solo", "duo", "solo", "solo", "band", "duo")
# What plays a style must follow its rhythm: basses and slow sounds cannot lead it.
_LEADS = tuple(i for i in INSTRUMENTS.values() if i.family != "bass" and not i.slow)


@dataclass(frozen=True)
class Plan:
    """A concept to compose.

    Attributes:
        concept: with the folders its audio is to have.
        seed: of its first clip.
        choices: ``program`` or ``style``, as `write_score` takes it.
    """

    concept: BenchConcept
    seed: int
    choices: Mapping[str, Any]


def read_plans(path: Path, out: Path, names: Sequence[str] = ()) -> list[Plan]:
    """The concepts of a ``concepts.json`` that are to be composed into ``out``, all or by name.

    Raises:
        InputError: the file is damaged, or a name is not in it.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["concepts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a list of concepts: {error}") from error
    plans = [_plan(entry, out, path) for entry in entries]
    known = [plan.concept.name for plan in plans]
    for name in names:
        if name not in known:
            raise InputError(f"concept {name!r} is not known; choose of {', '.join(known)}")
    return [plan for plan in plans if not names or plan.concept.name in names]


def render_set(
    plans: Sequence[Plan],
    *,
    workers: int = 1,
    soundfont: Path | None = None,
    overwrite: bool = False,
) -> dict[str, str]:
    """Compose and render each plan into its folder; two processes share a set of twenty evenly.

    Returns:
        `pcm_sha256` of each folder of audio, by ``<name>/reference`` and ``<name>/heldout``.

    Raises:
        InputError: no SoundFont or tinysoundfont, or a concept's folder is there already.
    """
    font = find_soundfont(soundfont)
    for plan in plans:
        check_target(plan.concept.reference.parent, overwrite=overwrite)
    work = functools.partial(_render, soundfont=str(font), overwrite=overwrite)
    made: dict[str, str] = {}
    if workers <= 1:
        for plan in track(plans, "concepts"):
            made |= work(plan)
    else:
        spawn = multiprocessing.get_context("spawn")
        executor = ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (1,))
        try:
            futures = [executor.submit(work, plan) for plan in plans]
            for future in track(as_completed(futures), "concepts", len(futures)):
                made |= future.result()
        finally:
            executor.shutdown(cancel_futures=True)
    return dict(sorted(made.items()))


def compositions(plan: Plan, *, heldout: bool = False) -> Iterator[tuple[int, Score]]:
    """The `CLIPS` scores of the reference, or of the held-out folder, with their seeds.

    An instrument plays alone or leads others; a style has another lead in each clip of both
    folders, so that the style is all they share. What the class word means is not among the
    accompaniment, for a caption could not tell the two apart.
    """
    concept = plan.concept
    leads = np.random.default_rng(plan.seed).permutation(len(_LEADS))
    seed = plan.seed + _HELD_OUT * heldout
    for number in range(CLIPS):
        if concept.kind == "style":
            lead = _LEADS[leads[number + CLIPS * heldout]]
            wishes = {"texture": "band", "program": lead.program}
        else:
            wishes = {"texture": _TEXTURES[number % len(_TEXTURES)]}
        while True:
            score = write_score(seed, seconds=SECONDS, **plan.choices, **wishes)
            seed += 1
            if not _confusing(score.truth, concept):
                yield seed - 1, score
                break


def pcm_sha256(folder: Path) -> str:
    """Hex SHA-256 of the 16-bit samples of an AudioFolder's clips, in order."""
    digest = hashlib.sha256()
    for path in sorted((folder / "audio").iterdir()):
        digest.update(soundfile.read(path, dtype="int16")[0].astype("<i2").tobytes())
    return digest.hexdigest()


def write_sums(out: Path) -> None:
    """``SHA256SUMS`` of all files of the set, as ``sha256sum --check`` reads it."""
    files = sorted(path for path in out.glob("*/**/*") if path.is_file())
    lines = [f"{sha256(path)}  {path.relative_to(out)}\n" for path in files]
    with publish_file(out / "SHA256SUMS") as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def _plan(entry: Any, out: Path, path: Path) -> Plan:
    name = str(entry.get("name", "")) if isinstance(entry, dict) else ""
    concept = parse_concept(entry, out / name, f"{path}: concept {name!r}")
    key = {"instrument": "program", "style": "style"}.get(concept.kind, "")
    if not key or not isinstance(entry.get("seed"), int) or key not in entry:
        raise InputError(f"{path}: concept {name!r} needs a seed, and a program or a style")
    choices = {key: entry[key]}
    write_score(0, seconds=1.0, **choices)  # refuses what the composer does not know
    return Plan(concept, entry["seed"], choices)


def _render(plan: Plan, *, soundfont: str, overwrite: bool) -> dict[str, str]:
    target = plan.concept.reference.parent
    renderer = _renderer(soundfont)
    made: dict[str, str] = {}
    with publish_folder(target, overwrite=overwrite) as folder:
        source = f"composed by musictune, rendered with {Path(soundfont).name}"
        concept = replace(
            plan.concept,
            reference=folder / "reference",
            heldout=folder / "heldout",
            source=plan.concept.source or source,
        )
        write_concept(concept)
        for part, heldout in ((concept.reference, False), (concept.heldout, True)):
            (part / "audio").mkdir(parents=True)
            rows = []
            for number, (used, score) in enumerate(compositions(plan, heldout=heldout)):
                name = f"audio/{number:06d}.flac"
                audio.write(renderer.render(score, effects_seed=used), part / name)
                captions = _captions(score.truth, plan)
                row = {"file_name": name, "text": captions[0], "seconds": SECONDS, "seed": used}
                rows.append(row | asdict(score.truth) | {"captions": captions})
            _write_rows(part, rows)
            made[f"{concept.name}/{part.name}"] = pcm_sha256(part)
    return made


@functools.lru_cache(maxsize=1)
def _renderer(soundfont: str) -> Renderer:
    return Renderer(soundfont)


def _write_rows(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def _confusing(truth: Truth, concept: BenchConcept) -> bool:
    others = [name for name in truth.instruments if name != truth.lead]
    names = {item.name: item.names for item in INSTRUMENTS.values()}
    return any(concept.class_word in names.get(name, ()) for name in others)


def _captions(truth: Truth, plan: Plan) -> list[str]:
    """The clip's captions with the class word in place of the concept's own name.

    Tuning puts the trigger before the class word, so it stands where the name stood; a caption
    that names the concept comes first.
    """
    concept = plan.concept
    names: tuple[str, ...]
    if concept.kind == "style":
        names = find_style(plan.choices["style"]).names
    else:
        names = instrument(plan.choices["program"]).names
    joined = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    mention = re.compile(rf"(?<![\w-])(an? )?(?:{joined})(?![\w-])")
    article = "an " if concept.class_word[0] in "aeiou" else "a "
    named: list[str] = []
    other: list[str] = []
    for caption in truth.captions:
        text, count = mention.subn(
            lambda match: (article if match[1] else "") + concept.class_word, caption
        )
        (named if count else other).append(text if count else f"{concept.class_word}, {text}")
    return named + other
