"""Concept sets: what is written is read again, and what is broken is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from musictune import audio
from musictune.audio import Clip
from musictune.bench import concept_recordings
from musictune.bench.concept_recordings import cut_recordings
from musictune.bench.concept_set import BenchConcept, read_concept_set, write_concept
from musictune.data.clips import read_clips
from musictune.errors import InputError

RATE = 16_000


def _concept(folder: Path, name: str = "koto") -> BenchConcept:
    part = folder / name
    return BenchConcept(
        name,
        "instrument",
        "harp",
        keep=("a slow {concept} solo", "solo {concept}"),
        move=("techno with {concept}",),
        reference=part / "reference",
        heldout=part / "heldout",
        source="a test",
    )


def _written(folder: Path, name: str = "koto") -> BenchConcept:
    concept = _concept(folder, name)
    concept.reference.mkdir(parents=True)
    concept.heldout.mkdir()
    write_concept(concept)
    return concept


def test_a_set_is_read_as_it_was_written(tmp_path: Path) -> None:
    koto, banjo = _written(tmp_path), _written(tmp_path, "banjo")
    assert read_concept_set(tmp_path) == [banjo, koto]
    assert read_concept_set(tmp_path, ["koto"]) == [koto]
    assert read_concept_set(tmp_path, ["koto", "banjo", "koto"]) == [koto, banjo]


def test_what_is_no_set_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none does not exist.*prepare.py --out"):
        read_concept_set(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no concept set.*prepare.py --out"):
        read_concept_set(tmp_path)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    _written(tmp_path), _written(tmp_path, "banjo")
    with pytest.raises(InputError, match=r"'lute' is not in .*choose of banjo, koto"):
        read_concept_set(tmp_path, ["lute"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "is not a concept"),
        ('{"name": "koto"}', "'kind' must be text"),
        ('{"name": "koto", "kind": "instrument", "class_word": "harp", "keep": "x"}', "'keep'"),
    ],
)
def test_a_damaged_concept_is_named(tmp_path: Path, text: str, said: str) -> None:
    concept = _written(tmp_path)
    (concept.reference.parent / "concept.json").write_text(text)
    with pytest.raises(InputError, match=said):
        read_concept_set(tmp_path)


def test_missing_audio_is_named(tmp_path: Path) -> None:
    _written(tmp_path).heldout.rmdir()
    with pytest.raises(InputError, match="heldout is missing"):
        read_concept_set(tmp_path)


def test_a_folder_bears_the_name_of_its_concept(tmp_path: Path) -> None:
    _written(tmp_path)
    (tmp_path / "koto").rename(tmp_path / "lute")
    with pytest.raises(InputError, match="is about 'koto'"):
        read_concept_set(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "Koto"}, "lower case"),
        ({"name": "../koto"}, "concept name"),
        ({"class_word": ""}, "class word"),
        ({"kind": "noise"}, "'noise'"),
        ({"keep": ("a solo",)}, "'a solo' must hold {concept} once"),
        ({"keep": ("{concept} with {concept}",)}, "once"),
        ({"keep": ()}, "need prompts"),
        ({"keep": ("techno with {concept}",)}, "none of them twice"),
    ],
)
def test_what_makes_no_concept(tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(_concept(tmp_path), **change)


def _record(path: Path, seconds: float, seed: int = 0, caption: str = "a tone") -> None:
    """A tone that is another one each two seconds, so that no two windows are alike."""
    rng = np.random.default_rng(seed)
    count = round(seconds * RATE)
    pitches = rng.uniform(110, 1760, count // (2 * RATE) + 1).repeat(2 * RATE)[:count]
    wave = 0.4 * np.sin(2 * np.pi * np.cumsum(pitches) / RATE)
    audio.write(Clip(torch.from_numpy(wave.astype(np.float32))[None], RATE), path)
    path.with_suffix(".txt").write_text(caption)


def test_recordings_are_halved_in_time(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    _record(tmp_path / "in" / "one.flac", 47, 1)
    _record(tmp_path / "in" / "two.flac", 26, 2)
    _record(tmp_path / "in" / "short.flac", 6, 3, caption="")
    _record(tmp_path / "in" / "tiny.flac", 3, 4)
    concept = replace(_concept(tmp_path / "out", "mybox"), kind="recordings")
    cut_recordings(tmp_path / "in", concept)
    assert read_concept_set(tmp_path / "out") == [concept]
    rows = {
        part.name: [json.loads(line) for line in (part / "metadata.jsonl").read_text().splitlines()]
        for part in (concept.reference, concept.heldout)
    }
    for source in ("one.flac", "two.flac"):
        first = [row for row in rows["reference"] if row["source"] == source]
        second = [row for row in rows["heldout"] if row["source"] == source]
        assert first and second
        assert max(row["start"] + row["seconds"] for row in first) <= second[0]["start"]
    assert [row["start"] for row in rows["heldout"] if row["source"] == "one.flac"] == [30, 40]
    assert "tiny.flac" not in {row["source"] for part in rows.values() for row in part}
    clips = read_clips(concept.reference)
    assert len(clips) == len(rows["reference"])
    assert all(clip.sample_rate == 32_000 and clip.channels == 1 for clip in clips)
    captions = {row["source"]: row["text"] for part in rows.values() for row in part}
    assert captions["one.flac"] == "a tone"
    assert "harp" in captions["short.flac"]  # heard, for nothing is written


def test_of_long_recordings_clips_are_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concept_recordings, "_MOST", 3)
    _record(tmp_path / "long.flac", 120)
    concept = replace(_concept(tmp_path / "out", "mybox"), kind="recordings")
    cut_recordings(tmp_path / "long.flac", concept)
    starts = [
        [json.loads(line)["start"] for line in (part / "metadata.jsonl").open()]
        for part in (concept.reference, concept.heldout)
    ]
    assert starts == [[0, 20, 40], [60, 80, 100]]


@pytest.mark.parametrize("seconds", [39, 12])
def test_too_little_is_refused(tmp_path: Path, seconds: int) -> None:
    _record(tmp_path / "short.flac", seconds)
    concept = replace(_concept(tmp_path / "out", "mybox"), kind="recordings")
    with pytest.raises(InputError, match=f"hold {seconds} s; at least 40 s"):
        cut_recordings(tmp_path / "short.flac", concept)
    assert not (tmp_path / "out").exists()


def test_silence_and_repeats_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    audio.write(Clip(torch.zeros(1, 60 * RATE), RATE), tmp_path / "in" / "silent.flac")
    concept = replace(_concept(tmp_path / "out", "mybox"), kind="recordings")
    with pytest.raises(InputError, match="silent or repeats itself"):
        cut_recordings(tmp_path / "in", concept)
    _record(tmp_path / "in" / "one.flac", 20)
    with pytest.raises(InputError, match="hold 20 s that are neither silent nor repeated"):
        cut_recordings(tmp_path / "in", concept)
    assert not list((tmp_path / "out").iterdir())


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    _record(tmp_path / "one.flac", 45)
    concept = replace(_concept(tmp_path / "out", "mybox"), kind="recordings")
    cut_recordings(tmp_path / "one.flac", concept)
    with pytest.raises(InputError, match="already exists"):
        cut_recordings(tmp_path / "one.flac", concept)
    cut_recordings(tmp_path / "one.flac", concept, overwrite=True)
    assert read_concept_set(tmp_path / "out") == [concept]
