"""The cache of what was heard: found again, by bytes and listener only, damage noticed."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest

from musictune.errors import InputError
from musictune.metrics.cache import Cache, cache_folder

AUDIO = "ab" * 32


def test_rows_come_back_with_their_type_and_bits(tmp_path: Path):
    cache = Cache(tmp_path)
    for kind in (np.float32, np.float64, np.int32):
        rows = np.arange(12, dtype=kind).reshape(4, 3)
        cache.put(AUDIO, kind.__name__, rows)
        found = cache.get(AUDIO, kind.__name__)
        assert found is not None
        assert found.dtype == kind
        assert np.array_equal(found, rows)


def test_other_audio_or_listener_is_not_known(tmp_path: Path):
    cache = Cache(tmp_path)
    cache.put(AUDIO, "clap", np.ones((1, 2)))
    assert cache.get("cd" * 32, "clap") is None
    assert cache.get(AUDIO, "clap-other-weights") is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "pickle"])
def test_a_damaged_entry_counts_as_none_and_is_said(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
):
    cache = Cache(tmp_path)
    cache.put(AUDIO, "clap", np.ones((5, 2)))
    place = cache.place(AUDIO, "clap")
    data = place.read_bytes()
    place.write_bytes(
        {
            "cut": data[:-3],
            "flipped": data[:-1] + bytes([data[-1] ^ 1]),
            "empty": b"",
            "pickle": b"\x80\x04K\x01.",
        }[damage]
    )
    assert cache.get(AUDIO, "clap") is None
    assert "is damaged; hearing the audio again" in capsys.readouterr().err
    assert cache.get(AUDIO, "clap") is None
    assert not capsys.readouterr().err  # once is enough


def test_objects_are_never_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cache = Cache(tmp_path)
    place = cache.place(AUDIO, "clap")
    place.parent.mkdir(parents=True)
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    place.write_bytes(hashlib.sha256(file.getvalue()).digest() + file.getvalue())
    assert cache.get(AUDIO, "clap") is None
    assert "is damaged" in capsys.readouterr().err


def test_nothing_is_left_beside_an_entry(tmp_path: Path):
    cache = Cache(tmp_path)
    cache.put(AUDIO, "clap", np.ones((1, 2)))
    cache.put(AUDIO, "clap", np.zeros((1, 2)))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [cache.place(AUDIO, "clap")]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        Cache(tmp_path / "file").put(AUDIO, "clap", np.ones((1, 2)))
    assert Cache(tmp_path / "file").get(AUDIO, "clap") is None
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"cannot be written.*--cache"):
            Cache(place).check()
    Cache(tmp_path / "new").check()


def test_the_place_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MUSICTUNE_CACHE", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("MUSICTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "b" / "musictune"
