"""``musictune listen`` from the command line."""

from __future__ import annotations

import math
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch

from musictune.__main__ import main
from musictune.audio import Clip, write
from musictune.data.preferences import write_pairs
from musictune.data.vote_store import VoteStore
from musictune.data.vote_types import Pair, audio_digest, pair_id
from musictune.web import server


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["listen", "--no-open", *map(str, arguments)])
    return int(stop.value.code or 0)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "pairs"
    folder.mkdir()
    paths = [folder / "a.wav", folder / "b.wav"]
    for size, path in enumerate(paths, 1):
        wave = 0.1 * size * torch.sin(2 * math.pi * 330 * torch.arange(8000) / 16_000)
        write(Clip(wave[None], 16_000), path)
    name = pair_id("a tune", *map(audio_digest, paths))
    write_pairs([Pair(name, "a tune", *paths, "one", "two")], folder)
    return folder


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would be served; it ends at once, as by Ctrl-C."""
    seen: list[dict[str, Any]] = []

    def serve(app: Any, listening: socket.socket, *, browser: bool) -> None:
        seen.append({"address": listening.getsockname(), "browser": browser})
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "run", serve)
    return seen


def test_pairs_are_added_once_and_ctrl_c_ends_it(
    tmp_path: Path, pairs: Path, served: list[dict[str, Any]]
) -> None:
    store = tmp_path / "votes.db"
    for _ in range(2):
        assert run("--store", store, "--pairs", pairs, "--port", 0) == 130
    assert [each["browser"] for each in served] == [False, False]
    with VoteStore(store) as votes:
        assert votes.progress("ann") == (0, 1)
        assert votes.progress("ann", rating=True) == (0, 0)
    assert run("--store", store, "--port", 0) == 130  # what it has is enough
    assert run("--store", store, "--pairs", pairs, "--rate", "--port", 0) == 130
    with VoteStore(store) as votes:
        assert votes.progress("ann", rating=True) == (0, 2)


def test_a_port_that_is_taken(
    tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run("--store", tmp_path / "votes.db", "--pairs", pairs, "--port", port) == 2
    assert f"port {port} on 127.0.0.1 cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "votes.db").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org", ""])
def test_other_machines_are_not_served(
    tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    assert run("--store", tmp_path / "votes.db", "--pairs", pairs, "--host", host) == 2
    assert "use 127.0.0.1, ::1 or localhost" in capsys.readouterr().err


def test_a_store_of_another_version_is_left_alone(
    tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "votes.db"
    VoteStore(store).close()
    with sqlite3.connect(store) as base:
        base.execute("PRAGMA user_version = 99")
    base.close()
    before = store.read_bytes()
    assert run("--store", store, "--pairs", pairs, "--port", 0) == 2
    assert "version 99" in capsys.readouterr().err
    assert store.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--pairs", "empty"], "has neither pairs.jsonl nor exactly two folders"),
        (["--pairs", "nowhere"], "pairs folder nowhere does not exist"),
        ([], "nothing is to be heard; give --pairs"),
        (["--pairs", "empty", "--adapter", "base"], "two ways to give clips"),
        (["--adapter", "base"], "need each other"),
        (["--prompts", "prompts.txt"], "need each other"),
        (["--adapter", "base", "--prompts", "prompts.txt"], "give two different ones"),
        (["--adapter", "base", "--adapter", "gone", "--prompts", "prompts.txt"], "does not exist"),
        (["--adapter", "base", "--adapter", "base", "--prompts", "no.txt"], "cannot be read"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("prompts.txt").write_text("slow piano\n")
    assert run("--store", "votes.db", *arguments) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not Path("votes.db").exists()
