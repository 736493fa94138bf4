"""Folders of clips: manifests, what they may name, and which clips are pairs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from musictune.audio import Clip, write
from musictune.errors import InputError
from musictune.metrics.folder import ClipFile, pair, read_made, shown


def sound(path: Path, seconds: float = 0.5, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(Clip(torch.rand(1, round(seconds * rate)) - 0.5, rate), path)
    return path


def manifest(folder: Path, *entries: object) -> None:
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def test_manifest_gives_prompt_text_seed_and_origin(tmp_path: Path):
    sound(tmp_path / "a.wav")
    sound(tmp_path / "not-listed.wav")
    adapter = {"path": "runs/x", "weight": 0.5}
    line = {"file": "a.wav", "prompt": "a <x> tune", "text": "a piano tune", "seed": 3}
    manifest(tmp_path, line | {"base": "mini", "adapters": [adapter]})
    (clip,) = read_made(tmp_path)
    assert (clip.prompt, clip.text, clip.seed) == ("a <x> tune", "a piano tune", 3)
    assert (clip.base, clip.adapters) == ("mini", (adapter,))
    assert clip.read().caption == "a piano tune"


def test_prompt_stands_in_for_a_missing_text(tmp_path: Path):
    sound(tmp_path / "a.wav")
    manifest(tmp_path, {"file": "a.wav", "prompt": "a tune"})
    assert read_made(tmp_path)[0].text == "a tune"


def test_without_a_manifest_the_audio_by_name(tmp_path: Path):
    sound(tmp_path / "b.wav")
    sound(tmp_path / "a.flac")
    (tmp_path / "notes.txt").write_text("x")
    clips = read_made(tmp_path)
    assert [clip.file for clip in clips] == ["a.flac", "b.wav"]
    assert clips[0].text == ""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{not json", "line 1 is not JSON"),
        ({"prompt": "x"}, "names no file"),
        ([1], "names no file"),
        ({"file": "gone.wav"}, "not there"),
        ({"file": "../outside.wav"}, "outside its folder"),
        ("", "empty"),
        ({"file": "a" * 5000}, "not there"),
        ({"file": "loop.wav"}, "not there"),
        ({"file": "a.wav", "seconds": 0}, "line 1 says a clip lasts 0 s"),
        ({"file": "a.wav", "seconds": -3}, "lasts -3 s"),
        ('{"file": "a.wav", "seconds": NaN}', "lasts nan s"),
        ('{"file": "a.wav", "seconds": 1e999}', "lasts inf s"),
        ('{"file": "a.wav", "seconds": %s}' % ("9" * 400), "lasts 9+ s"),
    ],
)
def test_a_bad_manifest_is_refused(tmp_path: Path, line: object, words: str):
    sound(tmp_path / "outside.wav")
    folder = tmp_path / "made"
    sound(folder / "a.wav")
    (folder / "loop.wav").symlink_to("loop.wav")
    manifest(folder, line)
    with pytest.raises(InputError, match=words):
        read_made(folder)


def test_missing_empty_and_file_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    path = sound(tmp_path / "one.wav")
    for place, words in [
        (tmp_path / "no", "exist"),
        (tmp_path / "empty", "no audio"),
        (path, "a file"),
    ]:
        with pytest.raises(InputError, match=words):
            read_made(place)


def named(prompt: str, seed: int | None, text: str | None = None) -> ClipFile:
    return ClipFile(Path("x.wav"), "x.wav", prompt, prompt if text is None else text, seed=seed)


def test_pairs_share_text_or_prompt_and_seed():
    made = [
        named("a <x> tune", 1, "a piano tune"),
        named("a <x> tune", 2, "a piano tune"),
        named("a <x> waltz", 1, "a piano waltz"),
        named("march", 1),
        named("", None),
    ]
    against = [
        named("march", 2),
        named("a <x> waltz", 1),  # a base that does not know the concept keeps its trigger
        named("a piano tune", 2),
        named("a piano tune", 1),
        named("", None),
    ]
    assert pair(made, against) == [(0, 3), (1, 2), (2, 1)]


def test_each_clip_is_paired_once():
    assert pair([named("a", 1), named("a", 1), named("a", 1)], [named("a", 1)] * 2) == [
        (0, 0),
        (1, 1),
    ]


def test_a_manifest_that_is_no_file_is_refused(tmp_path: Path):
    sound(tmp_path / "a.wav")
    os.mkfifo(tmp_path / "manifest.jsonl")
    with pytest.raises(InputError, match="not a regular file"):
        read_made(tmp_path)


def test_what_is_no_text_or_seed_is_not_taken_for_one(tmp_path: Path):
    sound(tmp_path / "a.wav")
    manifest(tmp_path, {"file": "a.wav", "prompt": "  ", "seed": True, "seconds": True})
    (clip,) = read_made(tmp_path)
    assert (clip.prompt, clip.text, clip.seed, clip.seconds) == ("", "", None, None)


def test_names_and_prompts_of_any_bytes_can_be_written(tmp_path: Path):
    name = os.fsdecode(b"b\xff\n.wav")
    try:
        sound(tmp_path / "a.wav").rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes text only")
    (clip,) = read_made(tmp_path)
    assert clip.file == r"b\udcff\n.wav"
    assert clip.read().samples == 4000
    sound(tmp_path / "c.wav")
    manifest(tmp_path, '{"file": "c.wav", "prompt": "a\\ud800 \\u001b[31mb"}')
    assert read_made(tmp_path)[0].text == r"a\ud800 \x1b[31mb"
    assert shown("Flöte, 笛, \U0001f3b5 <b>") == "Flöte, 笛, \U0001f3b5 <b>"
