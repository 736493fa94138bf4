"""Finding the audio that a path stands for: a file, a folder, or a manifest of clips.

Manifests come from strangers, so what they name must lie in their own folder: no ``..`` out of it,
no absolute path elsewhere, no URL, no link that leads away. In a folder that a person points at,
links to files are followed, links to folders are not.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from musictune.audio import AUDIO_SUFFIXES
from musictune.errors import AudioError, InputError

# The first that is there: the AudioFolder convention, then what `generate` writes.
MANIFESTS = ("metadata.jsonl", "manifest.jsonl")

FILE_KEYS = ("file_name", "file", "path")  # AudioFolder, `generate`, audiocraft
_TEXT_KEYS = ("text", "caption", "description", "prompt")
_LONGEST_LINE = 2**20
_MOST_LINES = 1_000_000
_LONGEST_CAPTION = 2_000  # characters


@dataclass(frozen=True)
class Source:
    """An audio file with what is written about it.

    Attributes:
        path: where it lies.
        name: its path within the folder or manifest, for reports.
        caption: from the manifest, empty if it has none.
        origin: the recording it was cut from, if the manifest says so.
        captions: all that the manifest's list ``captions`` says of it, besides ``caption``.
    """

    path: Path
    name: str
    caption: str = ""
    origin: str = ""
    captions: tuple[str, ...] = ()


def discover(path: Path | str) -> list[Source]:
    """The audio files that ``path`` stands for, in a stable order.

    Args:
        path: an audio file; a manifest ``.jsonl`` or ``.jsonl.gz``, with ``file_name`` and ``text``
            (AudioFolder) or ``path`` and ``duration`` (audiocraft); a folder with such a
            ``metadata.jsonl``; or any folder, searched to its depths by suffix.

    Raises:
        InputError: missing, empty, or a manifest that is damaged or points outside its folder.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give an audio file, a folder or a manifest")
    if not path.is_dir():
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            return _from_manifest(path)
        return [Source(path, path.name)]
    for name in MANIFESTS:
        if (path / name).is_file():
            return _from_manifest(path / name)
    if not os.access(path, os.R_OK | os.X_OK):
        raise InputError(f"folder {path} cannot be read: no permission; check its owner and mode")
    sources = [Source(file, str(file.relative_to(path))) for file in audio_files(path)]
    if not sources:
        kinds = ", ".join(sorted(AUDIO_SUFFIXES))
        raise InputError(f"folder {path} holds no audio; put in files ending in {kinds}")
    return sources


def written_caption(source: Source) -> str:
    """The caption in the manifest, or in a ``.txt`` or ``.json`` of the same name beside the audio.

    Raises:
        AudioError: the file beside it is not text, or not a JSON object.
    """
    if source.caption:
        return source.caption
    beside = source.path.with_suffix(".txt")
    if _is_plain(beside):
        return _tidy(_head(beside))
    beside = source.path.with_suffix(".json")
    if not _is_plain(beside):
        return ""
    try:
        entry = json.loads(_head(beside))
    except (ValueError, RecursionError) as error:
        raise AudioError(f"caption {beside} is not JSON; correct or remove it") from error
    if not isinstance(entry, dict):
        raise AudioError(f'caption {beside} is not a JSON object; write {{"text": ...}}')
    return _text(entry)


def audio_files(folder: Path) -> list[Path]:
    """Audio in a folder and all below it, by suffix, sorted; nothing hidden, no linked folders."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(place, name)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_SUFFIXES
        ]
    return sorted(found)


def _from_manifest(manifest: Path) -> list[Source]:
    folder = manifest.parent
    sources = []
    for number, entry in json_lines(manifest):
        where = f"manifest {manifest} line {number}"
        name = next((entry[key] for key in FILE_KEYS if entry.get(key)), None)
        if not isinstance(name, str):
            raise InputError(f"{where} names no file; add {' or '.join(FILE_KEYS)}")
        path = inside(folder, name, where)
        origin = entry.get("source")
        origin = origin if isinstance(origin, str) else ""
        sources.append(Source(path, name, _text(entry), origin, _texts(entry)))
    if not sources:
        raise InputError(f"manifest {manifest} is empty; it needs one JSON object per line")
    return sources


def inside(folder: Path, name: str, where: str) -> Path:
    """The path that a list names, which must lie in ``folder``.

    Raises:
        InputError: it leads out of it; ``where`` says which line names it.
    """
    if "\0" in name or "://" in name:
        raise InputError(f"{where} names {name!r}; only files in {folder} can be used")
    root = folder.resolve()
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise InputError(f"{where} names {name!r}, which cannot be followed: {error}") from error
    if not path.is_relative_to(root):
        raise InputError(
            f"{where} points outside its folder: {name!r}; move the audio into {folder}"
        )
    return path


def json_lines(manifest: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON object of each line with the line's number.

    Raises:
        InputError: no regular file, damaged, not an object, or too large.
    """
    if not manifest.is_file():
        raise InputError(f"manifest {manifest} is not a regular file; give a .jsonl file")
    with gzip.open(manifest) if manifest.suffix == ".gz" else manifest.open("rb") as file:
        for number in range(1, _MOST_LINES + 1):
            line = _line(cast(BinaryIO, file), manifest)
            if not line:
                return
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict):
                raise InputError(f"manifest {manifest} line {number} is not a JSON object")
            yield number, entry
    raise InputError(f"manifest {manifest} has more than {_MOST_LINES} lines; split it")


def _line(file: BinaryIO, manifest: Path) -> bytes:
    try:
        line = file.readline(_LONGEST_LINE)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"manifest {manifest} cannot be read: {error}") from error
    if len(line) == _LONGEST_LINE:
        raise InputError(f"manifest {manifest} has a line of more than {_LONGEST_LINE} bytes")
    return line


def _text(entry: dict[str, Any]) -> str:
    for key in _TEXT_KEYS:
        if isinstance(entry.get(key), str) and entry[key].strip():
            return _tidy(entry[key])
    return ""


def _texts(entry: dict[str, Any]) -> tuple[str, ...]:
    """The list ``captions``, as `musictune compose` writes it."""
    listed = entry.get("captions")
    if not isinstance(listed, list):
        return ()
    return tuple(_tidy(text) for text in listed if isinstance(text, str) and text.strip())


def _tidy(text: str) -> str:
    return " ".join(text.split())[:_LONGEST_CAPTION]


def _is_plain(path: Path) -> bool:
    """Whether a caption file may be read: a link could show another file's text."""
    return path.is_file() and not path.is_symlink()


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(4 * _LONGEST_CAPTION).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AudioError(f"caption {path} is not readable UTF-8 text; correct it") from error
