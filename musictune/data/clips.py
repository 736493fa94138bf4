"""From a folder of recordings to a folder of short, clean, captioned clips, and back to memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

from musictune import audio
from musictune.audio import Clip
from musictune.console import note, progress
from musictune.data.captions import caption, hear
from musictune.data.concepts import Concept, captions_for
from musictune.data.sources import Source, discover, written_caption
from musictune.data.windows import Duplicates, Window, cut, is_silent, spread
from musictune.errors import AudioError, InputError
from musictune.files import publish_folder, sha256

Captioner = Callable[[Clip, str], str]

_SHORTEST = 1.0  # seconds; less says nothing about music
_NAMED = 3  # reasons shown when nothing could be used


@dataclass
class Report:
    """What became of the recordings.

    Attributes:
        used: ``{file, windows, seconds}`` of each recording that was used.
        refused: ``{file, reason}`` of each that was not.
        windows: clips written.
        seconds: their length together.
        silent, duplicate, short: windows left out.
    """

    used: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)
    windows: int = 0
    seconds: float = 0.0
    silent: int = 0
    duplicate: int = 0
    short: int = 0


def describe(clip: Clip, subject: str) -> str:
    """The default captioner: what `hear` hears, said about ``subject``."""
    return caption(hear(clip), subject)


def prepare_folder(
    source: Path | str,
    out: Path | str,
    *,
    sample_rate: int = 32_000,
    seconds: float = 10.0,
    channels: int = 1,
    concept: Concept | None = None,
    subject: str = "piece of music",
    captioner: Captioner = describe,
    on_silence: bool = True,
    max_windows: int | None = None,
    tokenize: Callable[[Sequence[Clip], Path], object] | None = None,
    overwrite: bool = False,
) -> Report:
    """Cut, clean and caption recordings into ``out``, which appears whole or not at all.

    ``out`` gets ``audio/*.flac``, ``metadata.jsonl`` (AudioFolder: file_name, text, source, start,
    seconds, sha256) and ``report.json``. Windows are brought to -20 LUFS; silent ones, ones
    shorter than a second and near-duplicates are left out. A file that cannot be used is named in
    the report and passed over.

    Args:
        source: what `discover` reads.
        out: the new folder.
        sample_rate: Hz of the clips.
        seconds: the longest clip.
        channels: 1, or 2 to keep stereo; more are mixed down to one.
        concept: puts its trigger into every caption.
        subject: what captions made from listening speak of, when there is no concept.
        captioner: makes a caption where none is written.
        on_silence: cut at quiet places rather than evenly.
        max_windows: the most windows from one recording, spread evenly over it; all if not given.
        tokenize: called at the end with the clips and the folder for their codec tokens.
        overwrite: replace ``out``.

    Raises:
        InputError: nothing could be used, or ``out`` cannot be written.
    """
    _check_options(sample_rate, seconds, channels, max_windows)
    _check_apart(Path(source), Path(out))
    if concept:
        subject = f"{concept.trigger} {concept.class_word}"
    report = Report()
    duplicates = Duplicates()
    with publish_folder(out, overwrite=overwrite) as folder:
        usable = _usable(discover(source), report)
        (folder / "audio").mkdir()
        records: list[dict[str, Any]] = []
        with progress("seconds of audio", math.ceil(sum(s for _, s in usable))) as advance:
            for item, length in usable:
                written = written_caption(item)
                if written:
                    written = captions_for(written, concept, 1, 0)[0]
                taken: list[dict[str, Any]] = []
                same_as = ""
                for window in _windows(item, length, seconds, on_silence, max_windows):
                    advance(int(window.start + window.clip.seconds) - int(window.start))
                    clip = _clean(window, channels, sample_rate, report)
                    if clip is None:
                        continue
                    if same := duplicates.find(clip):
                        report.duplicate += 1
                        same_as = same
                        continue
                    duplicates.add(clip, item.name)
                    name = f"audio/{len(records) + len(taken):06d}.flac"
                    audio.write(clip, folder / name)
                    taken.append(
                        {
                            "file_name": name,
                            "text": written or captioner(clip, subject),
                            "source": item.origin or item.name,
                            "start": round(window.start, 3),
                            "seconds": round(clip.seconds, 3),
                            "sha256": sha256(folder / name),
                        }
                    )
                records += taken
                _account(report, item, taken, same_as)
        if not records:
            reasons = "; ".join(entry["reason"] for entry in report.refused[:_NAMED])
            if report.short and seconds < 2 * _SHORTEST:
                reasons += f"; windows of at most {seconds:g} s leave little: take longer ones"
            raise InputError(f"nothing in {source} can be used: {reasons}")
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
        (folder / "report.json").write_text(
            json.dumps({"schema": 1, **asdict(report)}, indent=1, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
        if tokenize:
            tokenize(PreparedClips(folder), folder / "tokens")
    return report


def is_prepared(folder: Path | str) -> bool:
    """Whether `prepare_folder` wrote this folder."""
    return (Path(folder) / "metadata.jsonl").is_file() and (Path(folder) / "report.json").is_file()


class PreparedClips(Sequence[Clip]):
    """The clips of a prepared folder, each read when it is asked for.

    Raises:
        InputError: not a prepared folder.
    """

    def __init__(self, folder: Path | str) -> None:
        if not is_prepared(folder):
            raise InputError(f"{folder} is not a prepared folder; run `musictune prepare` first")
        self._sources = discover(folder)

    def __len__(self) -> int:
        return len(self._sources)

    @overload
    def __getitem__(self, index: int) -> Clip: ...

    @overload
    def __getitem__(self, index: slice) -> list[Clip]: ...

    def __getitem__(self, index: int | slice) -> Clip | list[Clip]:
        if isinstance(index, slice):
            return [_load(item, item.origin) for item in self._sources[index]]
        return _load(self._sources[index], self._sources[index].origin)


def load_prepared(folder: Path | str) -> list[Clip]:
    """The clips of a prepared folder, with captions, ``source`` being the recording each is from.

    Raises:
        InputError: not a prepared folder, or a file of it is missing or damaged.
    """
    return list(PreparedClips(folder))


def read_clips(path: Path | str, seconds: float | None = None) -> list[Clip]:
    """All audio that `discover` finds, with written captions, ``source`` being the file of each.

    Args:
        path: a file, manifest or folder: raw, prepared, or made by ``generate``.
        seconds: cut each file evenly into windows of at most this; whole files if not given.

    Raises:
        InputError: nothing there, or a file that cannot be used.
    """
    sources = discover(path)
    if seconds is None:
        return [_load(item, str(item.path)) for item in sources]
    return [
        Clip(window.clip.wave, window.clip.sample_rate, written_caption(item), str(item.path))
        for item in sources
        for window in cut(item.path, seconds, on_silence=False)
    ]


def _load(item: Source, source: str) -> Clip:
    clip = audio.read(item.path)
    return Clip(clip.wave, clip.sample_rate, written_caption(item), source)


def _usable(sources: list[Source], report: Report) -> list[tuple[Source, float]]:
    """Sources that decode to their end, with their seconds; the others go into the report.

    Each file is read through before anything of it is used, so that one that breaks off near its
    end leaves nothing behind.
    """
    usable = []
    for item in sources:
        try:
            length = sum(block.seconds for block in audio.stream(item.path, 10.0))
            written_caption(item)
        except AudioError as error:
            _refuse(report, item, str(error))
            continue
        usable.append((item, length))
    return usable


def _windows(
    item: Source, length: float, seconds: float, on_silence: bool, most: int | None
) -> Iterator[Window]:
    if most is not None and length > most * seconds:
        return spread(item.path, seconds, most)
    return cut(item.path, seconds, on_silence=on_silence)


def _clean(window: Window, channels: int, sample_rate: int, report: Report) -> Clip | None:
    """The window as it is stored, or None if there is no music in it."""
    clip = window.clip
    if clip.seconds < _SHORTEST:
        report.short += 1
        return None
    if is_silent(clip):
        report.silent += 1
        return None
    if clip.channels > channels:
        clip = clip.mono()
    return clip.resample(sample_rate).level()


def _account(report: Report, item: Source, taken: list[dict[str, Any]], same_as: str) -> None:
    if not taken:
        reason = f"sounds the same as {same_as}" if same_as else "is silent or under a second long"
        _refuse(report, item, f"audio {item.path} {reason}; remove it")
        return
    length = sum(record["seconds"] for record in taken)
    report.used.append({"file": item.name, "windows": len(taken), "seconds": round(length, 3)})
    report.windows += len(taken)
    report.seconds = round(report.seconds + length, 3)


def _refuse(report: Report, item: Source, reason: str) -> None:
    report.refused.append({"file": item.name, "reason": reason})
    note(f"skipped: {reason}")


def _check_options(rate: int, seconds: float, channels: int, max_windows: int | None) -> None:
    if not 8_000 <= rate <= 192_000:
        raise InputError(f"sample rate {rate} Hz cannot be used; choose 8000 to 192000")
    if not _SHORTEST <= seconds <= 120:
        raise InputError(f"windows of {seconds:g} s cannot be used; choose {_SHORTEST:g} to 120")
    if channels not in (1, 2):
        raise InputError(f"{channels} channels cannot be kept; choose 1 or 2")
    if max_windows is not None and max_windows < 1:
        raise InputError(f"at most {max_windows} windows leave nothing; choose 1 or more")


def _check_apart(source: Path, out: Path) -> None:
    """Replacing the folder that is being read, or one around it, would delete the recordings."""
    source, out = source.resolve(), out.resolve()
    folder = source if source.is_dir() else source.parent
    below = source.is_dir() and out.is_relative_to(source)
    if below or folder.is_relative_to(out):
        raise InputError(f"output {out} and the audio in {folder} overlap; choose another --out")
