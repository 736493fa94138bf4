"""Folders of recordings to folders of clips: what is used, what is refused, what is left behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musictune.audio import Clip, read
from musictune.data.clips import (
    PreparedClips,
    is_prepared,
    load_prepared,
    prepare_folder,
    read_clips,
)
from musictune.data.concepts import Concept
from musictune.errors import InputError

RATE = 16_000


def music(seconds: float, seed: int = 0, channels: int = 1) -> np.ndarray:
    """Random plucked notes, ``(frames, channels)``."""
    random = np.random.default_rng(seed)
    time = np.arange(RATE // 4) / RATE
    notes = [
        0.3 * np.sin(2 * np.pi * pitch * time) * np.exp(-5 * time)
        for pitch in 220 * 2 ** (random.integers(0, 24, round(seconds * 4)) / 12)
    ]
    return np.repeat(np.concatenate(notes)[:, None], channels, 1)


def put(folder: Path, name: str, data: np.ndarray, rate: int = RATE, **options: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, data, rate, **options)
    return folder / name


def says(clip: Clip, subject: str) -> str:
    return f"a {subject} of {clip.seconds:.0f} s"


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_a_prepared_folder_is_clean_and_complete(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    put(raw, "a.wav", music(14, channels=2) * 0.05)
    put(raw, "b.ogg", music(6, seed=1), rate=RATE)
    put(raw, "four.flac", music(5, seed=2, channels=4))
    (raw / "b.txt").write_text("hand-written words")
    report = prepare_folder(
        raw, tmp_path / "out", sample_rate=8_000, seconds=5.0, captioner=says, subject="thing"
    )
    records = lines(tmp_path / "out")
    assert report.windows == len(records) >= 5
    assert report.refused == []
    assert {r["source"] for r in records} == {"a.wav", "b.ogg", "four.flac"}
    clips = load_prepared(tmp_path / "out")
    for record, clip in zip(records, clips, strict=True):
        path = tmp_path / "out" / record["file_name"]
        assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (clip.sample_rate, clip.channels) == (8_000, 1)
        assert record["seconds"] == pytest.approx(clip.seconds, abs=1e-3)
        assert clip.seconds <= 5.01
        assert (clip.caption, clip.source) == (record["text"], record["source"])
        wanted = "hand-written words" if clip.source == "b.ogg" else says(clip, "thing")
        assert clip.caption == wanted
        assert 0.1 < float(clip.wave.abs().max()) <= 0.99  # levelled
    starts = [r["start"] for r in records if r["source"] == "a.wav"]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert soundfile.info(tmp_path / "out" / "audio" / "000000.flac").subtype == "PCM_16"


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    put(tmp_path / "raw", "a.wav", music(8))
    prepare_folder(tmp_path / "raw", tmp_path / "one", seconds=4.0)
    prepare_folder(tmp_path / "raw", tmp_path / "two", seconds=4.0)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_the_concept_is_in_every_caption(tmp_path: Path) -> None:
    put(tmp_path / "raw", "a.wav", music(4))
    put(tmp_path / "raw", "b.wav", music(4, seed=1))
    (tmp_path / "raw" / "b.json").write_text('{"text": "sad music"}')
    concept = Concept("fairy", "piano")
    prepare_folder(tmp_path / "raw", tmp_path / "out", concept=concept, captioner=says)
    texts = [record["text"] for record in lines(tmp_path / "out")]
    assert texts == ["a <fairy> piano of 4 s", "<fairy> piano, sad music"]


def test_stereo_is_kept_when_asked_for(tmp_path: Path) -> None:
    data = music(4, channels=2)
    data[:, 1] *= 0.25
    put(tmp_path / "raw", "a.wav", data)
    prepare_folder(tmp_path / "raw", tmp_path / "out", channels=2, captioner=says)
    (clip,) = load_prepared(tmp_path / "out")
    assert clip.channels == 2
    left, right = clip.wave.abs().amax(1).tolist()
    assert right / left == pytest.approx(0.25, abs=0.02)


def test_silence_shreds_and_copies_are_left_out(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    silence = np.zeros((4 * RATE, 1))
    put(raw, "a.wav", np.concatenate([music(8), silence, music(4.5, seed=3)]))
    put(raw, "copy.flac", 0.5 * np.concatenate([music(8), silence, music(4.5, seed=3)]))
    put(raw, "quiet.wav", silence)
    report = prepare_folder(raw, tmp_path / "out", seconds=4.0, captioner=says, on_silence=False)
    assert (report.windows, report.silent, report.duplicate, report.short) == (3, 3, 3, 2)
    reasons = {entry["file"]: entry["reason"] for entry in report.refused}
    assert set(reasons) == {"copy.flac", "quiet.wav"}
    assert "sounds the same as a.wav" in reasons["copy.flac"]
    assert "silent" in reasons["quiet.wav"]


def test_bad_files_are_named_and_the_rest_is_used(tmp_path: Path, capsys) -> None:
    raw = tmp_path / "raw"
    put(raw, "good.wav", music(4))
    put(raw, "nine.wav", music(2, channels=9))
    put(raw, "none.wav", np.zeros((0, 1)))
    (raw / "empty.wav").touch()
    (raw / "text.wav").write_text("not music")
    os.mkfifo(raw / "pipe.wav")
    nan = music(2)
    nan[-1] = np.nan
    put(raw, "nan.wav", nan, subtype="FLOAT")
    cut = put(raw, "cut.mp3", music(20, seed=5))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    late = put(raw, "late.flac", music(20, seed=6))
    late.write_bytes(late.read_bytes()[: late.stat().st_size * 8 // 10])
    put(raw, "sidecar.wav", music(4, seed=7))
    (raw / "sidecar.json").write_text("{")
    report = prepare_folder(raw, tmp_path / "out", seconds=4.0, captioner=says)
    assert [entry["file"] for entry in report.used] == ["good.wav"]
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    reasons = {entry["file"]: entry["reason"] for entry in written["refused"]}
    said = {
        "nine.wav": "9 channels",
        "none.wav": "no samples",
        "empty.wav": "is empty",
        "text.wav": "is not audio",
        "pipe.wav": "not a regular file",
        "nan.wav": "not finite",
        "cut.mp3": "truncated",
        "late.flac": "truncated",
        "sidecar.wav": "not JSON",
    }
    assert reasons.keys() == said.keys()
    noted = capsys.readouterr().err
    for name, words in said.items():
        assert words in reasons[name]
        assert reasons[name] in noted
    assert {record["source"] for record in lines(tmp_path / "out")} == {"good.wav"}


class TestNothingIsLeftBehind:
    """An error leaves neither the output nor a part of it."""

    def check_refused(self, tmp_path: Path, said: str, **options: object) -> None:
        before = sorted(tmp_path.rglob("*"))
        source = options.pop("source", tmp_path / "raw")
        out = options.pop("out", tmp_path / "out")
        with pytest.raises(InputError, match=said) as caught:
            prepare_folder(source, out, captioner=says, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before

    def test_when_nothing_can_be_used(self, tmp_path: Path) -> None:
        (tmp_path / "raw").mkdir()
        self.check_refused(tmp_path, "no audio")
        (tmp_path / "raw" / "x.wav").write_text("no music")
        self.check_refused(tmp_path, "nothing in .* can be used: .*x.wav is not audio")
        self.check_refused(tmp_path, "does not exist", source=tmp_path / "missing")

    def test_when_a_manifest_points_outside(self, tmp_path: Path) -> None:
        put(tmp_path, "secret.wav", music(4))
        put(tmp_path / "raw", "good.wav", music(4))
        entries = ['{"file_name": "good.wav"}', '{"file_name": "../secret.wav"}']
        (tmp_path / "raw" / "metadata.jsonl").write_text("\n".join(entries))
        self.check_refused(tmp_path, "line 2 points outside")

    def test_when_the_disk_is_full(self, tmp_path: Path, monkeypatch) -> None:
        put(tmp_path / "raw", "a.wav", music(12))
        real, written = Path.write_bytes, []

        def full(self: Path, data: bytes) -> int:
            written.append(self)
            if len(written) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(self, data)

        monkeypatch.setattr(Path, "write_bytes", full)
        self.check_refused(tmp_path, "disk full", seconds=4.0)

    def test_when_it_may_not_write(self, tmp_path: Path, monkeypatch) -> None:
        put(tmp_path / "raw", "a.wav", music(4))
        (tmp_path / "file").touch()
        self.check_refused(tmp_path, "is a file", out=tmp_path / "file" / "out")
        monkeypatch.setattr(os, "access", lambda *_: False)
        self.check_refused(tmp_path, "no permission")

    def test_when_tokens_fail(self, tmp_path: Path) -> None:
        put(tmp_path / "raw", "a.wav", music(4))

        def fail(clips: object, folder: Path) -> None:
            folder.mkdir()
            raise InputError("no codec")

        self.check_refused(tmp_path, "no codec", tokenize=fail)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"sample_rate": 100}, "sample rate 100"),
            ({"seconds": 0.2}, "windows of 0.2 s"),
            ({"seconds": float("nan")}, "windows of nan s"),
            ({"channels": 3}, "3 channels"),
            ({"max_windows": 0}, "at most 0 windows"),
        ],
    )
    def test_when_an_option_makes_no_sense(self, tmp_path: Path, options: dict, said: str) -> None:
        put(tmp_path / "raw", "a.wav", music(4))
        self.check_refused(tmp_path, said, **options)

    @pytest.mark.parametrize("out", ["raw", "raw/out", "."])
    def test_when_the_output_would_replace_the_recordings(self, tmp_path: Path, out: str) -> None:
        put(tmp_path / "raw", "a.wav", music(4))
        self.check_refused(tmp_path, "overlap", out=tmp_path / out, overwrite=True)

    def test_an_older_output_is_replaced_only_when_asked(self, tmp_path: Path) -> None:
        put(tmp_path / "raw", "a.wav", music(4))
        put(tmp_path / "out", "old.wav", music(1))
        self.check_refused(tmp_path, "already exists")
        prepare_folder(tmp_path / "raw", tmp_path / "out", captioner=says, overwrite=True)
        assert is_prepared(tmp_path / "out")
        assert not (tmp_path / "out" / "old.wav").exists()


def test_tokens_are_made_from_the_stored_clips(tmp_path: Path) -> None:
    put(tmp_path / "raw", "a.wav", music(8))
    seen: list[Clip] = []

    def tokenize(clips: PreparedClips, folder: Path) -> None:
        folder.mkdir()
        (folder / "x").touch()
        seen.extend(clips)

    prepare_folder(
        tmp_path / "raw", tmp_path / "out", seconds=4.0, captioner=says, tokenize=tokenize
    )
    stored = load_prepared(tmp_path / "out")
    assert [c.caption for c in seen] == [c.caption for c in stored]
    assert all((x.wave == y.wave).all() for x, y in zip(seen, stored, strict=True))
    assert (tmp_path / "out" / "tokens" / "x").exists()


def test_reading_any_folder(tmp_path: Path) -> None:
    a = put(tmp_path / "made", "000-a.wav", music(5))
    put(tmp_path / "made", "001-b.wav", music(3, seed=1))
    whole = read_clips(tmp_path / "made")
    assert [c.seconds for c in whole] == [5, 3]
    assert whole[0].source == str(a)
    entry = {"file": "000-a.wav", "prompt": "<x> song", "text": "piano song"}
    (tmp_path / "made" / "manifest.jsonl").write_text(json.dumps(entry))
    cut = read_clips(tmp_path / "made", seconds=2.0)
    assert [c.seconds for c in cut] == [2, 2, 1]
    assert {c.caption for c in cut} == {"piano song"}
    assert (cut[1].wave == read(a, 2.0, 2.0).wave).all()
    with pytest.raises(InputError, match="not a prepared folder"):
        load_prepared(tmp_path / "made")


def test_a_three_hour_file_stays_in_bounded_memory(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "raw").mkdir()
    with soundfile.SoundFile(tmp_path / "raw" / "x.wav", "w", 4_000, 1, subtype="PCM_U8") as file:
        for minute in range(180):
            wave = np.zeros(4_000 * 60)
            if minute % 9 == 0:
                tone = np.sin(np.arange(4_000 * 60) * random.uniform(0.1, 2.0))
                wave = tone * np.repeat(random.uniform(0.1, 0.5, 60), 4_000)
            file.write(wave)
    code = (
        "import resource, sys\n"
        "from musictune.data.clips import prepare_folder, PreparedClips\n"
        "def size(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "def go(out, **o):\n"
        "    o |= {'sample_rate': 8000, 'seconds': 60.0, 'on_silence': False}\n"
        "    return prepare_folder(sys.argv[1], sys.argv[2] + out, captioner=lambda c, s: s, **o)\n"
        "go('/few', max_windows=5)\n"
        "before = size()\n"
        "report = go('/all')\n"
        "assert (report.windows, report.silent) == (20, 160), report\n"
        "grown = size() - before\n"
        "assert grown < 60_000, grown\n"  # kB; the samples alone are 173 MB as float32
        "few = PreparedClips(sys.argv[2] + '/few')\n"
        "assert len(few) == 5 and few[4].seconds == 60\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "raw"), str(tmp_path)], capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    starts = [record["start"] for record in lines(tmp_path / "few")]
    assert starts == [0, 2160, 4320, 6480, 8640]  # each has music
