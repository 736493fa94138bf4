"""Cells are made once, by one process, and a killed one leaves nothing in the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from musictune.bench.cells import Cells, claimed, open_cells
from musictune.errors import InputError

KEY = ("cells", "koto", "lora", "seed0")


def hidden(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


def test_what_is_claimed_is_not_made_twice(tmp_path: Path) -> None:
    cells = open_cells(tmp_path / "out")
    with claimed(cells.place(KEY)) as ours:
        assert ours
        assert cells.once(KEY, {"a": 1}, lambda _: {"x": 1}, wait=False) is None
        with claimed(cells.place(KEY), wait=False) as theirs:
            assert not theirs
    found = cells.once(KEY, {"a": 1}, lambda _: {"x": 1}, wait=False)
    assert found is not None and found["x"] == 1 and found["settings"] == {"a": 1}
    assert not hidden(tmp_path)


def test_many_at_once_make_each_cell_once(tmp_path: Path) -> None:
    cells, made = open_cells(tmp_path / "out"), []

    def make(folder: Path) -> dict[str, Any]:
        made.append(folder)
        return {"x": len(made)}

    with ThreadPoolExecutor(8) as threads:
        keys = [("cells", f"c{i % 5}", "lora", "seed0") for i in range(60)]
        found = list(threads.map(lambda key: cells.once(key, {}, make), keys))
    assert len(made) == 5 and all(found)
    assert {record["x"] for record in found if record} == {1, 2, 3, 4, 5}
    assert not hidden(tmp_path)


def test_one_that_fails_frees_its_place(tmp_path: Path) -> None:
    cells = open_cells(tmp_path / "out")

    def fails(_: Path) -> dict[str, Any]:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        cells.once(KEY, {}, fails)
    assert cells.find(KEY, {}) is None and not hidden(tmp_path)
    assert cells.once(KEY, {}, lambda _: {}) is not None


def test_what_a_killed_process_had_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from musictune.bench.cells import claimed\n"
        "with claimed(Path(sys.argv[1])): print('mine', flush=True); time.sleep(60)"
    )
    place = tmp_path / "cell"
    command = [sys.executable, "-c", code, str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "mine\n"
        with claimed(place, wait=False) as ours:
            assert not ours
        os.kill(process.pid, signal.SIGKILL)
    with claimed(place, wait=False) as ours:
        assert ours
    assert not hidden(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"), claimed(tmp_path / "file" / "cell"):
        pass


def test_commands_are_kept_once_in_their_order(tmp_path: Path) -> None:
    cells: Cells = open_cells(tmp_path / "out")
    assert cells.commands() == []
    for command in ("b --x", "a", "b --x"):
        cells.remember(command)
    assert cells.commands() == ["b --x", "a"]
