"""Labelled clips: every layout as its authors lay it out, and every way to get one wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from musictune.data.labelled import Example, read_labelled, targets
from musictune.errors import InputError


def put(root: Path, *names: str) -> Path:
    """Files with nothing in them: reading labels decodes no audio."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def table(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def json_rows(folder: Path, rows: Iterable[dict[str, Any]]) -> Path:
    return table(folder / "metadata.jsonl", *(json.dumps(row) for row in rows))


def assert_refused(source: Path, says: str, layout: str = "auto") -> None:
    """One line, exit code 2."""
    with pytest.raises(InputError, match=says) as caught:
        read_labelled(source, layout)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def by_name(examples: Iterable[Example]) -> dict[str, Example]:
    return {example.path.name: example for example in examples}


# --- folders ---


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    put(tmp_path, "bells/a.wav", "bells/deep/down/b.FLAC", "strings/c.mp3", "strings/notes.txt")
    put(tmp_path, "README.md", ".hidden/d.wav", "strings/.e.wav")
    clips = read_labelled(tmp_path)
    assert (clips.layout, clips.labels, clips.multi_label) == (
        "folders",
        ("bells", "strings"),
        False,
    )
    assert {e.path.name: e.labels for e in clips.examples} == {
        "a.wav": ("bells",),
        "b.FLAC": ("bells",),
        "c.mp3": ("strings",),
    }
    assert {e.split for e in clips.examples} == {""}


def test_folders_of_parts_are_a_published_split(tmp_path: Path) -> None:
    put(tmp_path, "train/x/1.wav", "train/y/2.wav", "val/x/3.wav", "test/y/4.wav")
    clips = read_labelled(tmp_path)
    assert [e.split for e in clips.examples] == ["test", "train", "train", "validation"]
    assert clips.labels == ("x", "y")


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    put(tmp_path, "test/1.wav", "music/2.wav")
    assert read_labelled(tmp_path).labels == ("music", "test")


def test_clips_beside_the_folders_are_counted_and_named(tmp_path: Path) -> None:
    put(tmp_path, "x/1.wav", "y/2.wav", "loose.wav", "other.ogg")
    assert_refused(tmp_path, r"2 clips without a label, the first loose\.wav.*move each")
    below = tmp_path / "parts"
    put(below, "train/x/1.wav", "train/y/2.wav", "test/x/3.wav", "test/loose.wav")
    assert_refused(below, r"1 clip without a label, the first loose\.wav")


def test_folders_that_teach_nothing(tmp_path: Path) -> None:
    assert_refused(put(tmp_path / "one", "x/1.wav", "x/2.wav"), "one class only, 'x'")
    (put(tmp_path / "gap", "x/1.wav", "y/2.wav") / "z").mkdir()
    assert_refused(tmp_path / "gap", r"class folder .*z holds no audio; put clips in or remove it")
    (tmp_path / "void").mkdir()
    assert_refused(tmp_path / "void", "has no folder for each class")
    assert_refused(tmp_path / "nowhere", "does not exist")
    assert_refused(put(tmp_path, "song.wav") / "song.wav", "no folder, CSV or")


def test_links_to_files_are_followed_and_to_folders_are_not(tmp_path: Path) -> None:
    put(tmp_path, "data/x/1.wav", "elsewhere/2.wav", "data/z/3.wav")
    data = tmp_path / "data"
    (data / "z/linked.wav").symlink_to(tmp_path / "elsewhere/2.wav")
    assert len(read_labelled(data).examples) == 3
    (data / "x/same.wav").symlink_to(data / "z/3.wav")
    assert_refused(data, "has two labels, ")
    (data / "x/same.wav").unlink()
    (data / "y").symlink_to(tmp_path / "elsewhere")
    assert_refused(data, "class folder .*y is a link")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    put(tmp_path, "x/1.wav", "y/2.wav")
    (tmp_path / "x").chmod(0)
    assert_refused(tmp_path, "")
    (tmp_path / "x").chmod(0o755)


# --- CSV ---


def test_a_csv_says_it_all(tmp_path: Path) -> None:
    put(tmp_path, "a.wav", "sub/b.wav")
    table(
        tmp_path / "labels.csv",
        "File,Label,fold,split,group,start,end",
        'a.wav," slow  waltz ",1,train,ann,0,2.5',
        "a.wav,polka,1,train,ann,2.5,",
        "",
        "sub/b.wav,polka,2,Valid,ben,,",
    )
    clips = read_labelled(tmp_path)
    assert clips.layout == "csv"
    first, second, third = clips.examples
    assert first == Example(
        tmp_path.resolve() / "a.wav", ("slow waltz",), 1, "train", "ann", 0.0, 2.5
    )
    assert (second.start, second.seconds, second.labels) == (2.5, None, ("polka",))
    assert (third.split, third.group, third.fold) == ("validation", "ben", 2)
    assert read_labelled(tmp_path / "labels.csv").examples == clips.examples
    assert read_labelled(tmp_path, "csv").examples == clips.examples


def test_several_labels_in_one_cell(tmp_path: Path) -> None:
    put(tmp_path, "a.wav", "b.wav")
    path = table(tmp_path / "x.csv", "path,labels", "a.wav,happy; fast", "b.wav,slow", "a.wav,loud")
    clips = read_labelled(path)
    assert clips.multi_label
    assert by_name(clips.examples)["a.wav"].labels == ("fast", "happy", "loud")
    expected = torch.tensor([[1.0, 1, 1, 0], [0, 0, 0, 1]])
    assert torch.equal(targets(clips.examples, clips.labels), expected)


def test_order_does_not_matter_and_repeats_count_once(tmp_path: Path) -> None:
    put(tmp_path, "a.wav", "b.wav", "c.wav")
    rows = ["a.wav,x", "b.wav,y", "c.wav,x"]
    one = read_labelled(table(tmp_path / "1.csv", "file,label", *rows))
    other = read_labelled(table(tmp_path / "2.csv", "file,label", *reversed(rows), rows[0]))
    assert one.examples == other.examples


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["file,label", "a.wav,x", "b.wav,"], r"1 clip without a label in .*, the first b\.wav"),
        (["file,label", "a.wav,x", "b.wav, ; "], "1 clip without a label"),
        (["file,label", "a.wav,x", "b.wav,x"], "one class only, 'x'"),
        (["file,label", "a.wav,x", "no.wav,y", "n2.wav,y"], r"names 2 missing files.*no\.wav"),
        (["file,label", "a.wav,x", "a.wav,y"], r"a\.wav has two labels, 'x' and 'y'"),
        (["file,label,fold", "a.wav,x,1", "a.wav,x,2", "b.wav,y,1"], "listed twice"),
        (["file,label", "a.wav,x", "../out.wav,y"], "points outside its folder"),
        (["file,label", "a.wav,x", "/etc/passwd,y"], "points outside its folder"),
        (["file,label", "a.wav,x", "http://x/y.wav,y"], "only files in"),
        (["file,mood", "a.wav,x"], "file, mood; add one named label or labels"),
        (["label", "x"], "add one named file or filename"),
        (["file,label,label", "a.wav,x,y"], "two columns 'label'"),
        (["file,label", "a.wav,x,y"], "line 2 has 3 cells, the header 2"),
        (["file,label"], "has a header but no rows"),
        (["file,label,fold", "a.wav,x,one", "b.wav,y,2"], "fold 'one'; a whole number"),
        (["file,label,fold", "a.wav,x,1.5", "b.wav,y,2"], "fold '1.5'; a whole number"),
        (["file,label,fold", "a.wav,x,", "b.wav,y,2"], "1 of 2 clips .* have no fold"),
        (["file,label,split", "a.wav,x,", "b.wav,y,test"], "1 of 2 clips .* have no split"),
        (["file,label,split", "a.wav,x,mine", "b.wav,y,test"], "split 'mine'; give train"),
        (["file,label,start", "a.wav,x,-1", "b.wav,y,0"], "start '-1'; give seconds"),
        (["file,label,start", "a.wav,x,nan", "b.wav,y,0"], "start 'nan'; give seconds"),
        (["file,label,start,end", "a.wav,x,2,1", "b.wav,y,0,1"], "ends at 1 s"),
        (["file,label", f"a.wav,{'x' * 300}", "b.wav,y"], "longer than 200 characters"),
        (['file,label', 'a.wav,"x'], "cannot be read as a CSV"),
    ],
)  # fmt: skip
def test_a_bad_csv_is_one_line(tmp_path: Path, lines: list[str], says: str) -> None:
    put(tmp_path, "data/a.wav", "data/b.wav", "out.wav")
    assert_refused(table(tmp_path / "data/labels.csv", *lines), says)


def test_a_csv_in_another_encoding(tmp_path: Path) -> None:
    put(tmp_path, "a.wav")
    (tmp_path / "x.csv").write_bytes("file,label\na.wav,tänze\n".encode("utf-16"))
    assert_refused(tmp_path / "x.csv", "cannot be read as a CSV in UTF-8")


def test_a_link_that_leads_out_of_a_csvs_folder(tmp_path: Path) -> None:
    put(tmp_path, "data/a.wav", "secret.wav")
    (tmp_path / "data/b.wav").symlink_to(tmp_path / "secret.wav")
    assert_refused(
        table(tmp_path / "data/x.csv", "file,label", "a.wav,x", "b.wav,y"),
        "points outside its folder",
    )


# --- the known sets ---


def test_esc50(tmp_path: Path) -> None:
    names = ["1-100032-A-0.wav", "5-9032-A-1.wav", "5-9032-B-1.wav"]
    put(tmp_path, *(f"audio/{name}" for name in names))
    listing = table(
        tmp_path / "meta/esc50.csv",
        "filename,fold,target,category,esc10,src_file,take",
        f"{names[0]},1,0,dog,True,100032,A",
        f"{names[1]},5,1,rooster,False,9032,A",
        f"{names[2]},5,1,rooster,False,9032,B",
    )
    clips = read_labelled(tmp_path)
    assert (clips.layout, clips.labels) == ("esc50", ("dog", "rooster"))
    assert by_name(clips.examples)[names[1]] == Example(
        tmp_path.resolve() / "audio" / names[1], ("rooster",), 5, group="9032"
    )
    listing.write_text(listing.read_text() + "../meta/esc50.csv,1,0,dog,True,1,A\n")
    assert_refused(tmp_path, "points outside its folder")


def test_urbansound8k_takes_no_excerpts(tmp_path: Path) -> None:
    put(tmp_path, "audio/fold5/100032-3-0-0.wav", "audio/fold10/100263-2-0-117.wav")
    table(
        tmp_path / "metadata/UrbanSound8K.csv",
        "slice_file_name,fsID,start,end,salience,fold,classID,class",
        "100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark",
        "100263-2-0-117.wav,100263,58.5,62.5,1,10,2,children_playing",
    )
    clips = read_labelled(tmp_path)
    assert clips.layout == "urbansound8k"
    later = by_name(clips.examples)["100263-2-0-117.wav"]
    assert (later.fold, later.group, later.start, later.seconds) == (10, "100263", 0.0, None)
    (tmp_path / "audio/fold5/100032-3-0-0.wav").unlink()
    assert_refused(tmp_path, "names 1 missing files")


def test_speech_commands(tmp_path: Path) -> None:
    put(tmp_path, "_background_noise_/pink_noise.wav")
    put(tmp_path, "yes/aa_nohash_0.wav", "yes/aa_nohash_1.wav", "no/bb_nohash_0.wav")
    put(tmp_path, "no/cc_nohash_0.wav")
    table(tmp_path / "validation_list.txt", "no/bb_nohash_0.wav")
    table(tmp_path / "testing_list.txt", "no/cc_nohash_0.wav", "absent/dd_nohash_0.wav")
    clips = read_labelled(tmp_path)
    assert (clips.layout, clips.labels) == ("speech_commands", ("no", "yes"))
    said = {e.path.name: (e.split, e.group) for e in clips.examples}
    assert said == {
        "aa_nohash_0.wav": ("train", "aa"),
        "aa_nohash_1.wav": ("train", "aa"),
        "bb_nohash_0.wav": ("validation", "bb"),
        "cc_nohash_0.wav": ("test", "cc"),
    }
    table(tmp_path / "testing_list.txt", "")
    assert_refused(tmp_path, "the list of test clips in .* names none of its files")


def test_gtzan_leaves_its_broken_file_out(tmp_path: Path) -> None:
    folder = tmp_path / "genres_original"
    put(folder, "blues/blues.00000.wav", "jazz/jazz.00053.wav")
    (folder / "jazz/jazz.00054.wav").write_bytes(b"RIFF but no audio")
    clips = read_labelled(tmp_path)
    assert (clips.layout, len(clips.examples)) == ("gtzan", 2)
    assert clips.refused[0][0].endswith("jazz.00054.wav")
    assert read_labelled(folder).examples == clips.examples
    soundfile.write(folder / "jazz/jazz.00054.wav", np.zeros(100) + 0.1, 8000)
    assert len(read_labelled(tmp_path).examples) == 3


def notes(folder: Path, *names: str, **said: Any) -> None:
    put(folder, *(f"audio/{name}.wav" for name in names))
    entries = {
        name: {
            "instrument_family_str": name.split("_")[0],
            "instrument_source_str": name.split("_")[1],
            "instrument_str": name.rpartition("-")[0],
            "qualities_str": ["dark"] if name.endswith("0") else [],
        }
        | said
        for name in names
    }
    (folder / "examples.json").write_text(json.dumps(entries))


def test_nsynth(tmp_path: Path) -> None:
    notes(tmp_path / "nsynth-train", "bass_synthetic_033-0", "flute_acoustic_002-1")
    notes(tmp_path / "nsynth-valid", "bass_electronic_001-0")
    clips = read_labelled(tmp_path)
    assert (clips.layout, clips.labels) == ("nsynth", ("bass", "flute"))
    said = {e.path.name: (e.split, e.group) for e in clips.examples}
    assert said["bass_electronic_001-0.wav"] == ("validation", "bass_electronic_001")
    assert said["flute_acoustic_002-1.wav"] == ("train", "flute_acoustic_002")
    other = read_labelled(tmp_path, "nsynth:instrument_source_str")
    assert other.labels == ("acoustic", "electronic", "synthetic")
    one = read_labelled(tmp_path / "nsynth-train")
    assert {e.split for e in one.examples} == {""}
    assert_refused(tmp_path, "has no colour; name another", "nsynth:colour")
    (tmp_path / "nsynth-valid/audio/bass_electronic_001-0.wav").unlink()
    assert_refused(tmp_path, "names 1 missing files")


def test_nsynth_names_only_its_own_files(tmp_path: Path) -> None:
    notes(tmp_path / "data", "bass_synthetic_033-0", "flute_acoustic_002-1")
    listing = tmp_path / "data/examples.json"
    known = json.loads(listing.read_text())
    known["../../secret"] = known["flute_acoustic_002-1"]
    put(tmp_path, "secret.wav")
    listing.write_text(json.dumps(known))
    assert_refused(tmp_path / "data", "names 1 missing files")
    listing.write_text("[1]")
    assert_refused(tmp_path / "data", "not a JSON object")
    listing.write_text("{")
    assert_refused(tmp_path / "data", "is not JSON")


def test_our_own_folders(tmp_path: Path) -> None:
    put(tmp_path, "a.wav", "b.wav", "c.wav")
    rows = [
        {"file_name": "a.wav", "label": "x", "style": "waltz", "moods": ["sad", "slow"]},
        {"file_name": "b.wav", "label": "y", "style": "polka", "moods": []},
        {"file_name": "c.wav", "label": "y", "style": "waltz", "moods": ["slow"]},
    ]
    places = {"start": 30.0, "seconds": 5.0, "source": "album.flac", "split": "train"}
    json_rows(tmp_path, [row | places for row in rows])
    clips = read_labelled(tmp_path)
    assert (clips.layout, clips.labels, clips.multi_label) == ("jsonl", ("x", "y"), False)
    first = clips.examples[0]
    # Where in the recording a clip was cut from is no excerpt of the clip.
    assert (first.start, first.seconds, first.group) == (0.0, None, "album.flac")
    assert read_labelled(tmp_path, "jsonl:style").labels == ("polka", "waltz")
    moods = read_labelled(tmp_path / "metadata.jsonl", "jsonl:moods")
    assert moods.multi_label
    assert [e.labels for e in moods.examples] == [("sad", "slow"), (), ("slow",)]
    assert_refused(tmp_path, "has the field colour; add it, or name another", "jsonl:colour")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"file_name": "b.wav"}, r"1 clip without a label in .*, the first b\.wav"),
        ({"file_name": "b.wav", "label": ""}, "1 clip without a label"),
        ({"file_name": "b.wav", "label": {"x": 1}}, "text is needed"),
        ({"file_name": "b.wav", "labels": [None]}, "text is needed"),
        ({"label": "y"}, "line 2 names no file"),
        ({"file_name": "../out.wav", "label": "y"}, "points outside its folder"),
        ({"file_name": "no.wav", "label": "y"}, "names 1 missing files"),
        ({"file_name": "a.wav", "label": "y"}, "has two labels"),
        ({"file_name": "b.wav", "label": "y", "split": "mine"}, "split 'mine'"),
    ],
)
def test_a_bad_manifest_is_one_line(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    put(tmp_path, "data/a.wav", "data/b.wav", "out.wav")
    json_rows(tmp_path / "data", [{"file_name": "a.wav", "label": "x"}, row])
    assert_refused(tmp_path / "data", says)


@pytest.mark.parametrize("layout", ["mine", "folders:x", "jsonl:", "auto:x", "", "esc50:x"])
def test_an_unknown_layout(tmp_path: Path, layout: str) -> None:
    put(tmp_path, "x/1.wav", "y/2.wav")
    assert_refused(tmp_path, "is not known; choose auto, esc50", layout)


def test_a_layout_that_does_not_fit(tmp_path: Path) -> None:
    put(tmp_path, "x/1.wav", "y/2.wav")
    assert_refused(tmp_path, "not laid out as esc50, which needs meta/esc50.csv", "esc50")


def test_targets_of_unknown_labels() -> None:
    known = [Example(Path("a"), ("x",)), Example(Path("b"), ("z",))]
    with pytest.raises(InputError, match="clip b has label 'z', which is none of the 2"):
        targets(known, ["x", "y"])
    assert targets([], ["x", "y"]).shape == (0, 2)
