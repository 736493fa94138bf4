"""The ways in which labelled clips lie on disk; a new one is a function and a line in `LAYOUTS`.

Lists come from strangers, so what they name must lie in their own folder, as with manifests
(`musictune.data.sources`). Nothing is decoded here but one file that is known to be broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from musictune import audio
from musictune.audio import AUDIO_SUFFIXES
from musictune.data.labelled_tables import (
    Example,
    Row,
    example,
    has_columns,
    is_split,
    read_csv,
    read_json,
    read_text,
    split_name,
)
from musictune.data.sources import FILE_KEYS, audio_files, inside, json_lines
from musictune.errors import AudioError, InputError

_FILE = ("file", "filename", "file_name", "path")
_LABEL = ("label", "labels", "category", "class")
_GTZAN_FOLDERS = ("genres_original", "genres")
_GTZAN_BROKEN = frozenset({"jazz.00054"})  # as it is handed out, it does not decode
_NSYNTH_PARTS = ("nsynth-train", "nsynth-valid", "nsynth-test")


@dataclass(frozen=True)
class Found:
    """What a layout says: examples, whether they can have several labels, and files left out."""

    examples: Sequence[Example]
    multi_label: bool = False
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Layout:
    """A way in which labelled clips lie on disk.

    Attributes:
        fits: whether a path looks like it.
        read: the clips there; the second argument is what followed the colon of its name.
        needs: what has to be there, for an error.
        option: what can follow a colon; empty if nothing can.
    """

    fits: Callable[[Path], bool]
    read: Callable[[Path, str], Found]
    needs: str
    option: str = ""


# --- folders of classes ---


def _folders(source: Path, option: str) -> Found:
    parts = _folders_in(source)
    if not _are_parts(parts):
        return Found(_of_classes(source))
    _nothing_beside(source, "train, validation and test")
    return Found(
        [
            replace(clip, split=split_name(part.name, str(part)))
            for part in parts
            for clip in _of_classes(part)
        ]
    )


def _of_classes(folder: Path, ignored: Iterable[str] = ()) -> list[Example]:
    """Every clip below the folders of ``folder``, each of which is a class."""
    classes = [part for part in _folders_in(folder) if part.name not in set(ignored)]
    if not classes:
        kinds = ", ".join(sorted(AUDIO_SUFFIXES))
        raise InputError(f"{folder} has no folder for each class, with files ending in {kinds}")
    _nothing_beside(folder, "its classes")
    found = []
    for part in classes:
        if part.is_symlink():
            raise InputError(f"class folder {part} is a link, which is not followed; move it here")
        files = audio_files(part)
        if not files:
            raise InputError(f"class folder {part} holds no audio; put clips in or remove it")
        found += [example(file, [part.name], {}, str(part)) for file in files]
    return found


def _folders_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _are_parts(folders: Sequence[Path]) -> bool:
    names = {split_name(f.name, "") for f in folders if is_split(f.name)}
    return "train" in names and len(names) > 1 and all(is_split(f.name) for f in folders)


def _nothing_beside(folder: Path, folders: str) -> None:
    loose = sorted(
        p.name
        for p in folder.iterdir()
        if p.suffix.lower() in AUDIO_SUFFIXES and not p.name.startswith(".") and p.is_file()
    )
    if loose:
        raise InputError(
            f"{_clips(loose)} without a label, the first {loose[0]}, beside the folders of "
            f"{folders} in {folder}; move each into the folder of its class"
        )


def _speech_commands(source: Path, option: str) -> Found:
    listed: dict[str, str] = {}
    for name, part in (("validation_list.txt", "validation"), ("testing_list.txt", "test")):
        listed |= dict.fromkeys(read_text(source / name).split(), part)
    examples = [
        replace(
            clip,
            split=listed.get(clip.path.relative_to(source).as_posix(), "train"),
            group=clip.path.name.partition("_nohash_")[0],
        )
        for clip in _of_classes(source, ignored=["_background_noise_"])
    ]
    for part in ("validation", "test"):
        if not any(clip.split == part for clip in examples):
            raise InputError(f"the list of {part} clips in {source} names none of its files")
    return Found(examples)


def _gtzan(source: Path, option: str) -> Found:
    examples, refused = [], []
    for clip in _of_classes(_gtzan_folder(source)):
        if clip.path.stem in _GTZAN_BROKEN:
            try:
                audio.read(clip.path)
            except AudioError as error:
                refused.append((str(clip.path), str(error)))
                continue
        examples.append(clip)
    return Found(examples, refused=tuple(refused))


def _gtzan_folder(source: Path) -> Path:
    inner = (source / name for name in _GTZAN_FOLDERS)
    return next((folder for folder in inner if folder.is_dir()), source)


# --- tables ---


def _csv(source: Path, option: str) -> Found:
    table = _table(source)
    rows = read_csv(table, [_FILE, _LABEL])
    paths = [inside(table.parent, row.first(_FILE), row.where) for row in rows]
    _all_there(paths, table)
    labels = [[part for part in row.first(_LABEL).split(";") if part.strip()] for row in rows]
    _all_labelled([row.first(_FILE) for row, own in zip(rows, labels, strict=True) if not own],
                  table)  # fmt: skip
    clips = [
        example(path, own, row.cells, row.where, excerpts=True)
        for path, own, row in zip(paths, labels, rows, strict=True)
    ]
    return Found(clips, multi_label=any(len(clip.labels) > 1 for clip in clips))


def _table(source: Path) -> Path:
    """The CSV itself, or the one in a folder."""
    if not source.is_dir():
        return source
    usual = [source / name for name in ("labels.csv", "metadata.csv")]
    usual = [path for path in usual if path.is_file()] or sorted(source.glob("*.csv"))
    return usual[0] if usual else source / "labels.csv"


def _is_csv(source: Path) -> bool:
    table = _table(source)
    if not source.is_dir():
        return table.suffix.lower() == ".csv" and table.is_file()
    return table.is_file() and has_columns(table, [_FILE, _LABEL])


def _esc50(source: Path, option: str) -> Found:
    """Piczak 2015: 2,000 clips of 5 s, 50 classes, 5 folds that keep a recording whole."""
    return _published(
        source / "meta" / "esc50.csv",
        source / "audio",
        ("filename", "category", "src_file"),
        lambda row: row.cells["filename"],
    )


def _urbansound8k(source: Path, option: str) -> Found:
    """Salamon et al. 2014: 8,732 clips of up to 4 s, 10 classes, 10 folds.

    Its columns ``start`` and ``end`` are places in the recording that a clip was cut from.
    """
    return _published(
        source / "metadata" / "UrbanSound8K.csv",
        source / "audio",
        ("slice_file_name", "class", "fsid"),
        lambda row: f"fold{row.cells['fold']}/{row.cells['slice_file_name']}",
    )


def _published(
    table: Path, folder: Path, columns: tuple[str, str, str], place: Callable[[Row], str]
) -> Found:
    """A published table with folds; ``columns`` hold file, label and recording."""
    file, label, recording = columns
    rows = read_csv(table, [[file], [label], [recording], ["fold"]])
    paths = [inside(folder, place(row), row.where) for row in rows]
    _all_there(paths, table)
    _all_labelled([row.cells[file] for row in rows if not row.cells[label]], table)
    return Found(
        [
            example(
                path,
                [row.cells[label]],
                {"fold": row.cells["fold"], "group": row.cells[recording]},
                row.where,
            )
            for path, row in zip(paths, rows, strict=True)
        ]
    )


# --- JSON ---


def _jsonl(source: Path, option: str) -> Found:
    """An AudioFolder's ``metadata.jsonl``.

    Its ``start`` and ``seconds`` are places in the recording ``source`` that a clip was cut from.
    """
    manifest = source / "metadata.jsonl" if source.is_dir() else source
    fields = (option,) if option else ("label", "labels")
    clips, unlabelled, paths, several = [], [], [], False
    for number, entry in json_lines(manifest):
        where = f"manifest {manifest} line {number}"
        name = next((entry[key] for key in FILE_KEYS if entry.get(key)), None)
        if not isinstance(name, str):
            raise InputError(f"{where} names no file; add file_name")
        value = next((entry[field] for field in fields if field in entry), None)
        if value is None or value == "":
            unlabelled.append(name)
            continue
        paths.append(inside(manifest.parent, name, where))
        several = several or isinstance(value, list)
        said = {"group": entry.get("source")} | entry
        clips.append(example(paths[-1], _values(value, where), said, where))
    if unlabelled and not clips:
        raise InputError(
            f"no line of {manifest} has the field {' or '.join(fields)}; add it, or name another "
            f"as layout jsonl:FIELD"
        )
    _all_labelled(unlabelled, manifest)
    _all_there(paths, manifest)
    return Found(clips, several)


def _values(value: Any, where: str) -> list[str]:
    """One label or several, as text; an empty list says that none of them is true."""
    values = value if isinstance(value, list) else [value]
    for each in values:
        if not isinstance(each, (str, int)) or (isinstance(each, str) and not each.strip()):
            raise InputError(f"{where} has label {each!r}; text is needed, or a list of texts")
    return [str(each) for each in values]


def _nsynth(source: Path, option: str) -> Found:
    """Engel et al. 2017: notes of 4 s; instruments of one part are in no other."""
    field = option or "instrument_family_str"
    if (source / "examples.json").is_file():
        clips, several = _notes(source, field, "")
        return Found(clips, several)
    found: list[Example] = []
    several = False
    for name in _NSYNTH_PARTS:
        if (source / name / "examples.json").is_file():
            clips, lists = _notes(source / name, field, name.removeprefix("nsynth-"))
            found += clips
            several = several or lists
    return Found(found, several)


def _notes(folder: Path, field: str, part: str) -> tuple[list[Example], bool]:
    listing = folder / "examples.json"
    notes = read_json(listing)
    there = _names(folder / "audio")
    clips, missing, several = [], [], False
    for name, note in sorted(notes.items()):
        where = f"{listing} entry {name!r}"
        if not isinstance(note, dict) or note.get(field) in (None, ""):
            raise InputError(f"{where} has no {field}; name another as layout nsynth:FIELD")
        if f"{name}.wav" not in there:
            missing.append(f"{name}.wav")
            continue
        several = several or isinstance(note[field], list)
        said = {"split": part, "group": note.get("instrument_str")}
        path = folder / "audio" / f"{name}.wav"
        clips.append(example(path, _values(note[field], where), said, where))
    _none_missing(missing, listing)
    return clips, several


def _names(folder: Path) -> frozenset[str]:
    """Files directly in ``folder``: what a list names beside them is not there, wherever it is."""
    return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()


# --- checks ---


def _all_there(paths: Sequence[Path], listing: Path) -> None:
    _none_missing([str(path) for path in paths if not path.is_file()], listing)


def _none_missing(missing: Sequence[str], listing: Path) -> None:
    if missing:
        raise InputError(
            f"{listing} names {len(missing)} missing files, the first {missing[0]}; add them or "
            f"remove their entries"
        )


def _all_labelled(unlabelled: Sequence[str], listing: Path) -> None:
    if unlabelled:
        raise InputError(
            f"{_clips(unlabelled)} without a label in {listing}, the first {unlabelled[0]}; label "
            f"each or remove it"
        )


def _clips(names: Sequence[str]) -> str:
    return "1 clip" if len(names) == 1 else f"{len(names)} clips"


def _has(*names: str) -> Callable[[Path], bool]:
    return lambda source: all((source / name).is_file() for name in names)


def _is_nsynth(source: Path) -> bool:
    return any((source / name / "examples.json").is_file() for name in ("", *_NSYNTH_PARTS))


def _is_gtzan(source: Path) -> bool:
    return source.name in _GTZAN_FOLDERS or _gtzan_folder(source) != source


def _is_jsonl(source: Path) -> bool:
    listed = source.name.endswith((".jsonl", ".jsonl.gz")) and source.is_file()
    return listed or (source / "metadata.jsonl").is_file()


# Tried in this order: the most special first.
LAYOUTS: Mapping[str, Layout] = {
    "esc50": Layout(_has("meta/esc50.csv"), _esc50, "meta/esc50.csv and audio/"),
    "urbansound8k": Layout(
        _has("metadata/UrbanSound8K.csv"),
        _urbansound8k,
        "metadata/UrbanSound8K.csv and audio/foldN/",
    ),
    "speech_commands": Layout(
        _has("validation_list.txt", "testing_list.txt"),
        _speech_commands,
        "validation_list.txt, testing_list.txt and a folder for each word",
    ),
    "gtzan": Layout(_is_gtzan, _gtzan, "genres_original/GENRE/"),
    "nsynth": Layout(_is_nsynth, _nsynth, "examples.json and audio/", "FIELD"),
    "jsonl": Layout(_is_jsonl, _jsonl, "metadata.jsonl, or a .jsonl file", "FIELD"),
    "csv": Layout(_is_csv, _csv, "a CSV with columns for file and label"),
    "folders": Layout(lambda source: source.is_dir(), _folders, "a folder for each class"),
}
