"""Hearing: the excerpt and no more of it, in order; what cannot be decoded is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from musictune import audio
from musictune.audio import Clip
from musictune.data.heard import hear_all
from musictune.data.labelled import Example
from musictune.errors import InputError

RATE = 8_000


def ramp(path: Path, seconds: float) -> Path:
    """A wave whose every sample says where it is: 1/100 per second."""
    wave = np.arange(round(seconds * RATE)) / RATE / 100
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    return path


def ends(clip: Clip) -> torch.Tensor:
    """Seconds of the first sample and of the one past the last."""
    wave = clip.wave[0]
    return torch.stack([wave[0], wave[-1] + 0.01 / RATE]) * 100


def test_only_the_excerpt_is_heard(tmp_path: Path) -> None:
    path = ramp(tmp_path / "a.wav", 10.0)
    excerpts = [(0.0, None), (2.0, 3.0), (7.0, None), (4.0, 1.0)]
    examples = [Example(path, ("x",), start=start, seconds=s) for start, s in excerpts]
    whole = torch.stack(hear_all(examples, ends))
    expected = torch.tensor([[0.0, 10.0], [2, 5], [7, 10], [4, 5]])
    torch.testing.assert_close(whole, expected, atol=1e-3, rtol=0)
    most = torch.stack(hear_all(examples, ends, most_seconds=2.0))
    expected = torch.tensor([[0.0, 2.0], [2, 4], [7, 9], [4, 5]])
    torch.testing.assert_close(most, expected, atol=1e-3, rtol=0)


def test_a_long_file_is_not_decoded_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ramp(tmp_path / "a.wav", 120.0)
    decoded = []
    real = audio.open_audio

    class Counting:
        def __init__(self, opened: object) -> None:
            self.opened = opened

        def __enter__(self) -> Counting:
            self.reader = self.opened.__enter__()
            self.rate, self.frames = self.reader.rate, self.reader.frames
            self.channels = self.reader.channels
            return self

        def __exit__(self, *error: object) -> None:
            self.opened.__exit__(*error)

        def chunks(self, start: int) -> object:
            for chunk in self.reader.chunks(start):
                decoded.append(len(chunk))
                yield chunk

    monkeypatch.setattr(audio, "open_audio", lambda path: Counting(real(path)))
    hear_all([Example(path, ("x",))], ends, most_seconds=1.0)
    assert RATE <= sum(decoded) <= 3 * RATE


def test_what_cannot_be_heard_is_named(tmp_path: Path) -> None:
    good = ramp(tmp_path / "good.wav", 1.0)
    (tmp_path / "bad.wav").write_bytes(b"this is no audio")
    with pytest.raises(InputError, match=r"bad\.wav is not audio"):
        hear_all([Example(good, ("x",)), Example(tmp_path / "bad.wav", ("y",))], ends)
    with pytest.raises(InputError, match=r"gone\.wav does not exist"):
        hear_all([Example(tmp_path / "gone.wav", ("y",))], ends)
    with pytest.raises(InputError, match="has no samples at 5 s"):
        hear_all([Example(good, ("x",), start=5.0)], ends)
    with pytest.raises(InputError, match="choose more than 0"):
        hear_all([Example(good, ("x",))], ends, most_seconds=0.0)
    assert hear_all([], ends) == []
