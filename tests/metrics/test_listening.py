"""Hearing files: once each, alike in any number of processes, and again after a kill."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import pytest
import torch

from musictune.audio import Clip, write
from musictune.errors import CheckFailed, InputError
from musictune.metrics.base import Listener
from musictune.metrics.cache import Cache
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.listening import listen


class Length(Listener):
    """Hears how long a clip is."""

    key = "length"
    heard = 0

    def hear(self, clip: Clip) -> np.ndarray:
        self.heard += 1
        return np.array([[clip.seconds, float(clip.sample_rate)]])


class Deadly(Listener):
    """Dies with its process, unless that is the first one."""

    key = "deadly"

    def hear(self, clip: Clip) -> np.ndarray:
        if parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros((1, 1))


def tones(folder: Path, count: int, seconds: float = 1.0) -> list[Path]:
    folder.mkdir()
    time = torch.arange(round(seconds * 8000)) / 8000
    for i in range(count):
        wave = 0.3 * torch.sin(2 * math.pi * (200 + 40 * i) * time)[None]
        write(Clip(wave, 8000), folder / f"{i:03d}.wav")
    return sorted(folder.iterdir())


def test_each_file_is_heard_once_and_then_known(tmp_path: Path):
    files, ears, cache = tones(tmp_path / "a", 3), Length(), Cache(tmp_path / "c")
    first = listen(files, {"length": ears}, cache)
    again = listen(files, {"length": ears}, cache)
    assert ears.heard == 3
    assert first.digests == again.digests
    assert np.array_equal(first.features["length"].points, again.features["length"].points)
    assert first.features["length"].points[:, 0].tolist() == [1.0, 1.0, 1.0]


def test_new_audio_under_an_old_name_is_heard_anew(tmp_path: Path):
    files, ears, cache = tones(tmp_path / "a", 2), Length(), Cache(tmp_path / "c")
    listen(files, {"length": ears}, cache)
    write(Clip(torch.rand(1, 4000), 8000), files[0])
    found = listen(files, {"length": ears}, cache).features["length"]
    assert ears.heard == 3
    assert found.points[:, 0].tolist() == [0.5, 1.0]


def test_a_long_recording_is_heard_in_blocks_without_a_rest_too_short(tmp_path: Path):
    files = tones(tmp_path / "a", 1, seconds=125.0)
    long = tones(tmp_path / "b", 1, seconds=170.0)
    cache = Cache(tmp_path / "c")
    assert [row[0] for row in listen(files, {"l": Length()}, cache).features["l"][0]] == [120.0]
    found = listen(long, {"l": Length()}, cache).features["l"][0]
    assert [row[0] for row in found] == [120.0, 50.0]


def test_a_damaged_entry_is_heard_again_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files, ears, cache = tones(tmp_path / "a", 2), Length(), Cache(tmp_path / "c")
    first = listen(files, {"l": ears}, cache)
    place = cache.place(first.digests[1], ears.key)
    place.write_bytes(place.read_bytes()[:-5])
    again = listen(files, {"l": ears}, cache)
    assert ears.heard == 3
    assert "is damaged" in capsys.readouterr().err
    assert np.array_equal(first.features["l"].points, again.features["l"].points)


def test_scores_are_bit_identical_for_any_number_of_workers(tmp_path: Path):
    files, toy = tones(tmp_path / "a", 5, seconds=2.6), ClapEmbedder.toy()
    found = [
        listen(files, {"e": toy}, Cache(tmp_path / f"c{i}"), workers=workers).features["e"]
        for i, workers in enumerate((1, 1, 2))
    ]
    for other in found[1:]:
        assert np.array_equal(np.asarray(found[0].points), np.asarray(other.points))
        assert np.array_equal(found[0].lengths, other.lengths)
    torch.set_num_threads(2)
    try:
        threaded = listen(files, {"e": toy}, Cache(tmp_path / "t"), workers=1).features["e"]
    finally:
        torch.set_num_threads(1)
    assert np.array_equal(np.asarray(found[0].points), np.asarray(threaded.points))


def test_errors_come_through_from_other_processes(tmp_path: Path):
    files = tones(tmp_path / "a", 3)
    files[1].write_text("words")
    for workers in (1, 2):
        with pytest.raises(InputError, match=files[1].name) as caught:
            listen(files, {"l": Length()}, Cache(tmp_path / "c"), workers=workers)
        assert "\n" not in str(caught.value)


def test_a_process_that_dies_is_said_and_the_rest_kept(tmp_path: Path):
    files = tones(tmp_path / "a", 3)
    with pytest.raises(CheckFailed, match="fewer --workers"):
        listen(files, {"d": Deadly()}, Cache(tmp_path / "c"), workers=2)


def test_nothing_to_hear_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no clips"):
        listen([], {"l": Length()}, Cache(tmp_path))
    with pytest.raises(InputError, match="missing"):
        listen([tmp_path / "missing.wav"], {"l": Length()}, Cache(tmp_path))


class Slow(Listener):
    """Takes its time."""

    key = "slow"

    def hear(self, clip: Clip) -> np.ndarray:
        time.sleep(0.5)
        return np.zeros((1, 1))


_HEAR_IN_TWO = (
    "import sys\n"
    "sys.path.insert(0, sys.argv[1])\n"
    "from pathlib import Path\n"
    "from test_listening import Slow\n"
    "from musictune.metrics.cache import Cache\n"
    "from musictune.metrics.listening import listen\n"
    "if __name__ == '__main__':\n"
    "    files = sorted(Path(sys.argv[2]).iterdir())\n"
    "    listen(files, {'s': Slow()}, Cache(sys.argv[3]), workers=2)\n"
)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_no_process_is_left_when_the_first_one_ends(tmp_path: Path, how: signal.Signals):
    files, place = tones(tmp_path / "a", 40), tmp_path / "c"
    script = tmp_path / "hear.py"
    script.write_text(_HEAR_IN_TWO)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(files[0].parent)]
    running = subprocess.Popen(
        [*command, str(place)],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        # A shell that runs the tests in the background has them ignore it, and what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        _until(lambda: len(list(place.rglob("*.rows"))) >= 2 or running.poll() is not None)
        assert running.poll() is None
        running.send_signal(how)
        running.wait(timeout=30)
        _until(lambda: not _alive(running.pid))
        assert len(list(place.rglob("*.rows"))) <= 12  # those at hand, not those that waited
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)


def _alive(group: int) -> list[str]:
    """The processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                found.append(stat.parent.name)
    return found


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing has happened for a minute"
        time.sleep(0.02)


def test_killed_and_run_again_it_hears_at_most_one_file_twice(tmp_path: Path):
    files = tones(tmp_path / "a", 40)
    script = (
        "import sys, time\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from musictune.metrics.base import Listener\n"
        "from musictune.metrics.cache import Cache\n"
        "from musictune.metrics.listening import listen\n"
        "class Slow(Listener):\n"
        "    key = 'length'\n"
        "    def hear(self, clip):\n"
        "        time.sleep(0.05)\n"
        "        return np.array([[clip.seconds, float(clip.sample_rate)]])\n"
        "files = sorted(Path(sys.argv[1]).iterdir())\n"
        "listen(files, {'l': Slow()}, Cache(sys.argv[2]), workers=1)\n"
    )
    place = tmp_path / "c"
    running = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "a"), str(place)])
    deadline = time.monotonic() + 60
    while len(list(place.rglob("*.rows"))) < 5:
        assert time.monotonic() < deadline, "it has heard nothing for a minute"
        assert running.poll() is None
        time.sleep(0.01)
    running.kill()
    running.wait()
    kept = len(list(place.rglob("*.rows")))
    ears = Length()
    listen(files, {"l": ears}, Cache(place), workers=1)
    assert 5 <= kept < 40
    assert ears.heard == 40 - kept
