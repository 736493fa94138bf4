"""Folders of clips to score, as ``generate`` writes them, or any folder of audio."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from musictune.audio import AUDIO_SUFFIXES, Clip, read
from musictune.errors import InputError

MANIFEST = "manifest.jsonl"

_SHOWN = 100  # characters of a name
_LONGEST = 1e7  # seconds; JSON holds numbers beyond any clip's, and beyond any float


@dataclass(frozen=True)
class ClipFile:
    """A clip in a file, read when it is needed.

    Attributes:
        path: the audio.
        file: its name within the folder.
        prompt: as it was typed; empty if not known.
        text: the prompt with concept triggers replaced by their class words.
        seed: of its sampling, if known.
        seconds: as long as it should be, if known.
        digest: hex SHA-256 of the file when it was made, if known.
        base: the base model, if known.
        adapters: what the manifest says was loaded.
    """

    path: Path
    file: str
    prompt: str = ""
    text: str = ""
    seed: int | None = None
    seconds: float | None = None
    digest: str = ""
    base: str = ""
    adapters: tuple[Any, ...] = ()

    @property
    def calls_concept(self) -> bool:
        """Whether the prompt names a concept's trigger, which the text says in other words."""
        return self.prompt != self.text

    def read(self) -> Clip:
        """The audio, its caption being ``text``."""
        return replace(read(self.path), caption=self.text)


@dataclass(frozen=True)
class ClipSet:
    """Clips that belong together, under the name that people see."""

    name: str
    files: tuple[ClipFile, ...]


def shown(text: str) -> str:
    """Text as it can be written, on one line: what is no character, or steers a terminal, escaped.

    Names of files may be any bytes, and JSON may hold half a character.
    """
    hidden = {c for c in text if unicodedata.category(c) in ("Cc", "Cs")}
    return text.translate({ord(c): repr(c)[1:-1] for c in hidden})


def read_made(folder: Path) -> tuple[ClipFile, ...]:
    """The clips of a folder: in the manifest's order, or without a manifest by name.

    Raises:
        InputError: no such folder, nothing in it, or a manifest that is damaged, names a file that
            is missing or points outside the folder.
    """
    if not folder.exists():
        raise InputError(f"{folder} does not exist; give a folder of audio")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give the folder it lies in")
    if os.path.lexists(folder / MANIFEST):
        return _from_manifest(folder)
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in AUDIO_SUFFIXES)
    if not files:
        kinds = ", ".join(sorted(AUDIO_SUFFIXES))
        raise InputError(f"folder {folder} holds no audio; put in files ending in {kinds}")
    return tuple(ClipFile(path, shown(path.name)) for path in files)


def pair(made: Sequence[ClipFile], against: Sequence[ClipFile]) -> list[tuple[int, int]]:
    """Indices of clips that share seed and prompt, each used once, in the order of ``made``.

    What counts as the prompt is the text a judge reads, or else the words that were typed: a base
    that does not know a concept keeps its trigger.
    """
    pairs: dict[int, int] = {}
    for key in ("text", "prompt"):
        free = defaultdict(list)
        used = set(pairs.values())
        for j, clip in enumerate(against):
            if j not in used:
                free[getattr(clip, key), clip.seed].append(j)
        for i, clip in enumerate(made):
            words = getattr(clip, key)
            if i in pairs or not words or clip.seed is None:
                continue
            if matches := free[words, clip.seed]:
                pairs[i] = matches.pop(0)
    return sorted(pairs.items())


def _from_manifest(folder: Path) -> tuple[ClipFile, ...]:
    manifest = folder / MANIFEST
    if not manifest.is_file():  # a pipe could be read for ever
        raise InputError(f"manifest {manifest} is not a regular file; remove it or write it anew")
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"manifest {manifest} cannot be read: {error}") from error
    clips = [_clip(folder, line, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not clips:
        raise InputError(f"manifest {manifest} is empty; run `musictune generate` again")
    return tuple(clips)


def _clip(folder: Path, line: str, number: int) -> ClipFile:
    where = f"manifest {folder / MANIFEST} line {number}"
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON; run `musictune generate` again") from error
    name = entry.get("file") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f'{where} names no file; each line needs "file"')
    path = folder / name
    try:
        inside, there = path.resolve().is_relative_to(folder.resolve()), path.is_file()
    except (OSError, RuntimeError):  # a name too long, or a loop of links
        inside, there = True, False
    if not inside:
        raise InputError(f"{where} points outside its folder: {name!r}; only files in it are read")
    if not there:
        raise InputError(f"{where} names {name[:_SHOWN]!r}, which is not there; generate it again")
    prompt, seed, adapters = entry.get("prompt"), entry.get("seed"), entry.get("adapters")
    text, seconds, digest = entry.get("text", prompt), entry.get("seconds"), entry.get("sha256")
    return ClipFile(
        path=path,
        file=shown(name),
        prompt=shown(prompt).strip() if isinstance(prompt, str) else "",
        text=shown(text).strip() if isinstance(text, str) else "",
        seed=seed if isinstance(seed, int) and not isinstance(seed, bool) else None,
        seconds=_length(seconds, where),
        digest=digest if isinstance(digest, str) else "",
        base=str(entry.get("base") or ""),
        adapters=tuple(adapters) if isinstance(adapters, list) else (),
    )


def _length(seconds: Any, where: str) -> float | None:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return None
    if not 0 < seconds < _LONGEST:
        raise InputError(f"{where} says a clip lasts {str(seconds)[:20]} s; correct or remove it")
    return float(seconds)
