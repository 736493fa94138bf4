"""Captioned clips: what is read, what is refused, what stays together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.data.captioned import CaptionedClip, by_recording, read_captioned
from musictune.errors import InputError


def folder(root: Path, rows: list[dict[str, object]]) -> Path:
    for row in rows:
        sf.write(root / str(row["file_name"]), np.zeros(800), 8000)
    (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return root


def test_text_comes_first_and_captions_follow_once(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a.wav", "text": "hum", "captions": ["a hum", "hum", " ", 3], "source": "x"},
        {"file_name": "b.wav", "captions": ["tone"]},
    ]
    clips = read_captioned(folder(tmp_path, rows))
    assert [clip.captions for clip in clips] == [("hum", "a hum"), ("tone",)]
    assert [clip.recording for clip in clips] == ["x", "b.wav"]


def test_captions_beside_the_audio_will_do(tmp_path: Path) -> None:
    for name in ("a", "b"):
        sf.write(tmp_path / f"{name}.wav", np.zeros(800), 8000)
        (tmp_path / f"{name}.txt").write_text(f"sound {name}")
    assert [clip.captions for clip in read_captioned(tmp_path)] == [("sound a",), ("sound b",)]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["hum", ""], "1 of 2 clips .* have no caption, the first 1.wav"),
        (["hum"], "holds one clip"),
        (["hum", "hum", "hum"], "all 3 clips .* 'hum'"),
    ],
)
def test_clips_without_contrast_are_refused(texts: list[str], says: str, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"file_name": f"{i}.wav", "text": text} for i, text in enumerate(texts)
    ]
    with pytest.raises(InputError, match=says):
        read_captioned(folder(tmp_path, rows))


def test_captions_that_are_no_list_are_passed_over(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"file_name": "a.wav", "text": "hum", "captions": "no list"},
        {"file_name": "b.wav", "text": "tone", "captions": None},
    ]
    assert [len(clip.captions) for clip in read_captioned(folder(tmp_path, rows))] == [1, 1]


clips = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("uvwxyz")), min_size=2, max_size=20
).map(
    lambda rows: [
        CaptionedClip(Path(f"{i}.wav"), (caption,), recording)
        for i, (caption, recording) in enumerate(rows)
    ]
)


@settings(max_examples=60, deadline=None)
@given(clips, st.floats(0.01, 0.99), st.integers(0, 5))
def test_no_recording_is_on_both_sides(
    given_clips: list[CaptionedClip], share: float, seed: int
) -> None:
    try:
        train, held = by_recording(given_clips, share, seed)
    except InputError:
        return
    assert {clip.recording for clip in train}.isdisjoint(clip.recording for clip in held)
    assert sorted(map(str, (c.path for c in train + held))) == sorted(
        str(c.path) for c in given_clips
    )
    assert len({clip.captions[0] for clip in train}) >= 2
    assert held
    assert by_recording(given_clips, share, seed) == (train, held)


def test_nothing_is_held_out_where_nothing_is_asked_for() -> None:
    one = [CaptionedClip(Path("a"), ("x",), "r"), CaptionedClip(Path("b"), ("y",), "r")]
    assert by_recording(one, 0.0, 0) == (one, [])
    with pytest.raises(InputError, match="cannot be parted"):
        by_recording(one, 0.5, 0)
