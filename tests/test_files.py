"""Whole output or none."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from musictune.errors import InputError
from musictune.files import check_target, move_folder, publish_file, publish_folder, system_errors


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with publish_folder(target) as folder:
        (folder / "a.txt").write_text("a")
        assert not target.exists()
    assert (target / "a.txt").read_text() == "a"
    assert [p.name for p in target.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_and_takes_nothing(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with pytest.raises(type(error)), publish_folder(target, overwrite=True) as folder:
        (folder / "new.txt").write_text("new")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (target / "old.txt").read_text() == "old"


def test_overwriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for name in ("first", "second"):
        with publish_folder(target, overwrite=True) as folder:
            (folder / name).touch()
    assert [p.name for p in target.iterdir()] == ["second"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="disk full"), publish_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="disk full"), publish_file(tmp_path / "x.wav"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_targets_that_would_lose_something_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(InputError, match="is a file"):
        check_target(tmp_path / "file")
    with pytest.raises(InputError, match="which is a file"):
        check_target(tmp_path / "file" / "out")
    with pytest.raises(InputError, match="--overwrite"):
        check_target(tmp_path / "full")
    check_target(tmp_path / "full", overwrite=True)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(InputError, match="no permission"):
        check_target(tmp_path / "new")


def test_inputs_and_the_current_folder_are_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for out in (recordings, tmp_path):
        with pytest.raises(InputError, match="would replace"):
            check_target(out, overwrite=True, inputs=[recordings / "a.wav"])
    check_target(recordings / "out", overwrite=True, inputs=[recordings])
    monkeypatch.chdir(recordings)
    for out in (Path(), Path("..")):
        with pytest.raises(InputError, match="name a new folder"):
            check_target(out, overwrite=True)
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path / "disk")
    with pytest.raises(InputError, match="name a new folder"):
        check_target(tmp_path / "disk")


def test_a_folder_that_cannot_be_renamed_leaves_no_sibling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()

    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(Path, "rename", busy)
    with pytest.raises(OSError, match="busy"):
        move_folder(tmp_path / "new", tmp_path / "old")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "old"]


def test_what_safetensors_says_of_a_full_disk_is_a_system_error() -> None:
    words = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(OSError, match="No space left") as caught, system_errors():
        raise SafetensorError(words)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(SafetensorError), system_errors():
        raise SafetensorError("a header that is no JSON")
