"""The vote store outlives killed processes, full disks, and whatever else a file may meet."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import pytest

from musictune.data.preferences import Pair
from musictune.data.vote_schema import APPLICATION, VERSION
from musictune.data.vote_store import VoteStore
from musictune.errors import InputError
from tests.data.vote_sounds import put_pairs


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    return put_pairs(tmp_path / "sounds", 4)


@pytest.fixture
def store(tmp_path: Path, pairs: list[Pair]) -> VoteStore:
    store = VoteStore(tmp_path / "votes.db")
    store.add_pairs(pairs)
    return store


def test_threads_share_a_store(store: VoteStore) -> None:
    failures: list[BaseException] = []

    def work(rater: str) -> None:
        try:
            while trial := store.next_trial(rater):
                store.vote(trial.id, "first")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"rater {i % 3}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Two threads of one rater may answer the same trial: equally, so that is no fault.
    assert not failures
    assert Counter(vote.rater for vote in store.votes()) == {f"rater {i}": 4 for i in range(3)}


_WORKER = """
import sys
from pathlib import Path
from musictune.data.vote_store import VoteStore
with VoteStore(Path(sys.argv[1])) as store:
    while trial := store.next_trial(sys.argv[2]):
        store.vote(trial.id, "second", ["tag"], 1.0)
        print(trial.id, flush=True)
"""


def test_two_processes_share_a_store_that_neither_finds_ready(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    path = tmp_path / "new.db"
    filler = (
        "import sys, json; from pathlib import Path\n"
        "from musictune.data.preferences import read_votes, Pair\n"
        "from musictune.data.vote_store import VoteStore\n"
        "with VoteStore(Path(sys.argv[1])) as store:\n"
        "    rows = json.loads(sys.argv[2])\n"
        "    store.add_pairs(Pair(i, p, Path(a), Path(b)) for i, p, a, b in rows)\n"
    )
    rows = json.dumps([(p.id, p.prompt, str(p.a), str(p.b)) for p in pairs])
    makers = [
        subprocess.Popen([sys.executable, "-c", filler, str(path), rows], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for maker in makers:
        assert maker.communicate(timeout=60)[1] == b""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(path), rater],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rater in ("Ana", "Ben")
    ]
    for worker in workers:
        out, err = worker.communicate(timeout=60)
        assert err == b""
        assert len(out.split()) == 4
    with VoteStore(path) as store:
        assert Counter(v.rater for v in store.votes()) == {"Ana": 4, "Ben": 4}
        assert len({(v.rater, v.pair.id) for v in store.votes()}) == 8


def test_an_acknowledged_vote_outlives_kill_9(tmp_path: Path) -> None:
    pairs = put_pairs(tmp_path / "sounds", 40)
    path = tmp_path / "votes.db"
    with VoteStore(path) as store:
        store.add_pairs(pairs)
    acknowledged: list[bytes] = []
    for kill in range(10):
        worker = subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(path), "Ana"], stdout=subprocess.PIPE
        )
        assert worker.stdout is not None
        for _ in range(kill % 3 + 1):
            acknowledged.append(worker.stdout.readline().strip())
        worker.send_signal(signal.SIGKILL)
        assert worker.wait() == -signal.SIGKILL
        acknowledged += worker.stdout.read().split()
        worker.stdout.close()
        base = sqlite3.connect(path)
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        kept = {row[0].encode() for row in base.execute("SELECT id FROM trials WHERE answered")}
        base.close()
        # One more may be kept than was said: killed between keeping and saying so.
        assert set(filter(None, acknowledged)) <= kept
        if len(kept) == len(pairs):
            break
    with VoteStore(path) as store:
        assert len(store.votes()) >= len(set(filter(None, acknowledged))) >= 10
        assert all(v.choice != v.first and v.why == ("tag",) for v in store.votes())


def test_a_full_disk_is_said_and_loses_nothing(store: VoteStore, tmp_path: Path) -> None:
    trial = store.next_trial("Ana")
    assert trial is not None
    store.vote(trial.id, "first")
    before = store.votes()
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(InputError, match="disk full"):
        store.add_pairs(put_pairs(tmp_path / "more", 80)[4:])
    assert store.votes() == before
    store._connection.execute("PRAGMA max_page_count = 1000000")
    following = store.next_trial("Ana")
    assert following is not None
    store.vote(following.id, "first")
    assert len(store.votes()) == 2


def test_a_store_that_cannot_be_written_is_refused_at_once() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "votes.db"
        VoteStore(path).close()
        before = path.read_bytes()
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        child = os.fork()
        if child == 0:  # root may write everywhere, so somebody else tries
            status = 1
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                VoteStore(path)
            except InputError as error:
                status = 0 if "cannot be written" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert path.read_bytes() == before
        Path(folder).chmod(0o755)


def test_a_store_held_by_another_program_is_said(
    store: VoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store._connection.execute("PRAGMA busy_timeout = 20")
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(InputError, match="held by another program"):
        store.next_trial("Ana")
    other.execute("ROLLBACK")
    other.close()
    assert store.next_trial("Ana") is not None


def test_another_schema_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "votes.db"
    VoteStore(path).close()
    base = sqlite3.connect(path)
    base.execute(f"PRAGMA user_version = {VERSION + 1}")
    base.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match=rf"schema version {VERSION + 1}, this release reads"):
        VoteStore(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["votes.db"]


@pytest.mark.parametrize("content", [b"x", b"not a database" * 100, b"SQLite format 3\0short"])
def test_what_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "votes.db"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no vote store"):
        VoteStore(path)
    assert path.read_bytes() == content


def test_another_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "votes.db"
    base = sqlite3.connect(path)
    base.execute("CREATE TABLE mine (x)")
    base.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="no vote store"):
        VoteStore(path)
    assert path.read_bytes() == before


def test_a_damaged_store_is_said(tmp_path: Path, pairs: list[Pair]) -> None:
    path = tmp_path / "votes.db"
    with VoteStore(path) as store:
        store.add_pairs(pairs)
        assert store._connection.execute("PRAGMA application_id").fetchone() == (APPLICATION,)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(InputError, match="damaged or no vote store"), VoteStore(path) as store:
        store.next_trial("Ana")


def test_where_no_file_can_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        VoteStore(tmp_path)
    with pytest.raises(InputError, match="make it first"):
        VoteStore(tmp_path / "nowhere" / "votes.db")


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "votes.db"
    path.touch()
    with VoteStore(path) as store:
        assert store.votes() == []


def test_a_closed_store_says_so(store: VoteStore) -> None:
    store.close()
    with pytest.raises(InputError, match="closed"):
        store.votes()
    assert store.path.is_file()
