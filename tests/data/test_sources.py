"""What a path stands for, and manifests that lie."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musictune.data.sources import discover, written_caption
from musictune.errors import AudioError, InputError


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(1000, 0.1), 8_000)
    return path


def manifest(path: Path, *entries: object) -> Path:
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def test_a_folder_is_searched_to_its_depths_in_order(tmp_path: Path) -> None:
    for name in ("b.wav", "a/z.FLAC", "a/b/c.ogg", ".hidden/x.wav", ".x.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "notes.txt").write_text("no audio")
    assert [s.name for s in discover(tmp_path)] == ["a/b/c.ogg", "a/z.FLAC", "b.wav"]


def test_a_single_file(tmp_path: Path) -> None:
    path = put(tmp_path / "a.wav")
    assert [s.path for s in discover(path)] == [path]


@pytest.mark.parametrize("kind", ["missing", "empty", "without audio"])
def test_nothing_there_is_said(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "x"
    if kind != "missing":
        folder.mkdir()
    if kind == "without audio":
        (folder / "notes.txt").write_text("no audio")
    with pytest.raises(InputError, match="does not exist" if kind == "missing" else "no audio"):
        discover(folder)


def test_audiofolder_and_generated_manifests(tmp_path: Path) -> None:
    put(tmp_path / "a.wav")
    put(tmp_path / "unnamed.wav")
    manifest(tmp_path / "manifest.jsonl", {"file": "a.wav", "prompt": "<x>", "text": "a  piano\n"})
    assert [(s.name, s.caption) for s in discover(tmp_path)] == [("a.wav", "a piano")]
    manifest(tmp_path / "metadata.jsonl", {"file_name": "a.wav", "text": "first", "source": "s"})
    assert [(s.caption, s.origin) for s in discover(tmp_path)] == [("first", "s")]


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
def test_audiocraft_manifests(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / "sub" / "a.wav")
    entries = [
        {"path": str(path), "duration": 0.1, "sample_rate": 8000, "amplitude": None},
        {"path": "sub/a.wav", "duration": 0.1, "sample_rate": 8000},
    ]
    found = discover(manifest(tmp_path / name, *entries))
    assert [s.path for s in found] == [path.resolve()] * 2


@pytest.mark.parametrize(
    "name",
    [
        "../secret.wav",
        "sub/../../secret.wav",
        "/etc/passwd",
        "/dev/zero",
        "http://example.org/a.wav",
        "file:///etc/passwd",
        "away.wav",  # a link out of the folder
        "away/secret.wav",  # through a linked folder
        "loop.wav",
        "a\0b.wav",
        "",
        7,
        None,
    ],
)
def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path, name: object) -> None:
    put(tmp_path / "secret.wav")
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "away.wav").symlink_to(tmp_path / "secret.wav")
    (folder / "away").symlink_to(tmp_path)
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    path = manifest(folder / "metadata.jsonl", {"file_name": name})
    with pytest.raises(InputError, match="line 1") as caught:
        discover(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"not json\n", "line 1 is not a JSON object"),
        (b'{"file_name": "a.wav"}\n[1]\n', "line 2 is not a JSON object"),
        (b"[" * 100_000 + b"\n", "line 1 is not a JSON object"),
        (b"\xff\xfe\n", "line 1 is not a JSON object"),
        (b" " * 2**20, "a line of more than"),
    ],
)
def test_damaged_manifests(tmp_path: Path, content: bytes, said: str) -> None:
    put(tmp_path / "a.wav")
    path = tmp_path / "metadata.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        discover(path)


def test_a_damaged_gzip_manifest(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    for content in (b"not gzip", gzip.compress(b'{"path": "a.wav"}\n' * 100)[:40]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            discover(path)


def test_captions_beside_the_audio(tmp_path: Path) -> None:
    text, entry, _ = (put(tmp_path / f"{name}.wav") for name in ("text", "entry", "none"))
    text.with_suffix(".txt").write_text("  a calm\nflute ")
    entry.with_suffix(".json").write_text(json.dumps({"bpm": 90, "description": "a drum loop"}))
    captions = {s.name: written_caption(s) for s in discover(tmp_path)}
    assert captions == {"text.wav": "a calm flute", "entry.wav": "a drum loop", "none.wav": ""}


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", b"{"), ("a.json", b"[1]"), ("a.txt", b"\xff\xfe\x00"), ("a.json", b"[" * 7000)],
)
def test_damaged_captions_name_their_file(tmp_path: Path, name: str, content: bytes) -> None:
    put(tmp_path / "a.wav")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioError, match=name):
        written_caption(discover(tmp_path)[0])


def test_a_linked_caption_is_not_read(tmp_path: Path) -> None:
    put(tmp_path / "music" / "a.wav")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "music" / "a.txt").symlink_to(tmp_path / "secret.txt")
    assert written_caption(discover(tmp_path / "music")[0]) == ""
