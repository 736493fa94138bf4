"""Sound in memory: bounded, decoded once, and sent in the parts that players ask for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.data.vote_types import Pair
from musictune.errors import AudioError
from musictune.web import sounds
from musictune.web.sounds import Sounds, part_of

WAV = bytes(range(100))


def test_a_clip_becomes_wav_as_loud_as_its_neighbour(pairs: list[Pair]) -> None:
    both = Sounds()
    loud, soft = both.wav(pairs[0].b, pairs[0].a), both.wav(pairs[0].a, pairs[0].b)
    powers = [np.square(soundfile.read(io.BytesIO(wav))[0]).mean() for wav in (loud, soft)]
    raw = [np.square(soundfile.read(path)[0]).mean() for path in (pairs[0].b, pairs[0].a)]
    assert raw[0] > 100 * raw[1]
    assert 0.5 < powers[0] / powers[1] < 2  # equal to the ear, which hears higher tones better
    assert soundfile.info(io.BytesIO(loud)).subtype == "PCM_16"
    assert loud[36:40] == b"data"  # wave.js reads the samples behind 44 bytes, and nothing else
    assert len(loud) == 44 + 2 * soundfile.info(pairs[0].b).frames


def test_a_pair_is_decoded_once_and_memory_is_bounded(
    pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Sequence[Path]] = []

    def decode(paths: Sequence[Path]) -> list[bytes]:
        decoded.append(paths)
        return [bytes(1000) for _ in paths]

    monkeypatch.setattr(sounds, "_decoded", decode)
    kept = Sounds(kept=4500)
    for pair in pairs:
        kept.wav(pair.a, pair.b)
        kept.wav(pair.b, pair.a)
    assert len(decoded) == 3
    kept.wav(pairs[2].a, pairs[2].b)
    kept.wav(pairs[1].a, pairs[1].b)
    assert len(decoded) == 3
    kept.wav(pairs[0].a, pairs[0].b)  # the oldest had to go
    assert len(decoded) == 4
    small = Sounds(kept=10)
    assert small.wav(pairs[0].a) == small.wav(pairs[0].a)
    assert len(decoded) == 5


def test_what_is_no_audio_is_an_error(tmp_path: Path, pairs: list[Pair]) -> None:
    text = tmp_path / "text.wav"
    text.write_text("no music")
    with pytest.raises(AudioError):
        Sounds().wav(text)
    with pytest.raises(AudioError):
        Sounds().wav(pairs[0].a, tmp_path / "gone.wav")


@settings(deadline=None)
@given(st.integers(0, 120), st.integers(0, 120))
def test_a_stretch_is_what_it_says(first: int, last: int) -> None:
    answer = part_of(WAV, f"bytes={first}-{last}")
    if first > min(last, 99):
        assert answer.status_code == 416
        assert answer.headers["content-range"] == "bytes */100"
        return
    assert answer.status_code == 206
    assert answer.body == WAV[first : last + 1]
    assert answer.headers["content-range"] == f"bytes {first}-{min(last, 99)}/100"


@pytest.mark.parametrize(
    ("wanted", "status", "body"),
    [
        (None, 200, WAV),
        ("bytes=90-", 206, WAV[90:]),
        ("bytes=-5", 206, WAV[-5:]),
        ("bytes=-500", 206, WAV),
        ("bytes=-0", 416, b""),
        ("bytes=-", 200, WAV),
        ("bytes=0-1,5-6", 200, WAV),
        ("seconds=0-1", 200, WAV),
        ("bytes=" + "9" * 5000 + "-", 200, WAV),
    ],
)
def test_other_ranges(wanted: str | None, status: int, body: bytes) -> None:
    answer = part_of(WAV, wanted)
    assert (answer.status_code, answer.body) == (status, body)
