"""Sockets, tokens, and a server that stops when it is told to."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from musictune.errors import InputError
from musictune.generation import Engine
from musictune.serving.limits import Limits
from musictune.serving.server import open_socket, read_token, run

TOKEN = "0123456789abcdef"


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} on 127.0.0.1 cannot be used"):
            open_socket("127.0.0.1", port, None)
    open_socket("127.0.0.1", port, None).close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_loopback_needs_no_token(host: str) -> None:
    with open_socket(host, 0, None) as listening:
        assert listening.getsockname()[1] > 0


def test_other_machines_need_a_token() -> None:
    with pytest.raises(InputError, match=r"host 0\.0\.0\.0 can be reached .* --token-file"):
        open_socket("0.0.0.0", 0, None)
    open_socket("0.0.0.0", 0, TOKEN).close()


def test_what_is_no_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for port in (-1, 65_536):
        with pytest.raises(InputError, match=f"port {port} is not between"):
            open_socket("127.0.0.1", port, None)

    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(InputError, match="host nowhere with port 80 is no address"):
        open_socket("nowhere", 80, None)


def test_addresses_of_other_machines_are_refused() -> None:
    with pytest.raises(InputError, match=r"192\.0\.2\.1 cannot be used"):
        open_socket("192.0.2.1", 0, TOKEN)


def test_a_token_is_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    assert read_token(path) == TOKEN


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (b"", 0o600, "one word of 16 characters"),
        (b"short", 0o600, "one word of 16"),
        (b"two words of some length", 0o600, "one word of 16"),
        (b"\xc3\xa9" * 20, 0o600, "ASCII"),
        (TOKEN.encode(), 0o644, "open to other users; chmod 600"),
    ],
)
def test_bad_tokens_are_named(tmp_path: Path, content: bytes, mode: int, says: str) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(InputError, match=says) as refused:
        read_token(path)
    assert TOKEN not in str(refused.value)


def test_token_files_that_are_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="token file"):
            read_token(path)


def test_ctrl_c_cancels_what_plays_and_closes_everything(
    gated: Any, until: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A client is in the middle of a stream when the signal comes."""
    listening = open_socket("127.0.0.1", 0, None)
    port = listening.getsockname()[1]
    broken: list[Exception] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        body = json.dumps({"prompt": "slow piano", "seconds": 9.0})
        connection.request("POST", "/v1/music", body, {"Content-Type": "application/json"})
        job = json.loads(connection.getresponse().read())["id"]
        gated.allow(60)
        connection.request("GET", f"/v1/music/{job}/audio")
        answer = connection.getresponse()
        answer.read(1_000)
        os.kill(os.getpid(), signal.SIGINT)
        gated.open()
        try:
            answer.read()
        except http.client.HTTPException as error:
            broken.append(error)

    threading.Thread(target=client, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run(gated, Limits(seconds=10.0, batch=1), listening, base="toy")
    until(lambda: broken)
    assert isinstance(broken[0], http.client.IncompleteRead)
    out = capsys.readouterr().out
    assert f"serving toy on http://127.0.0.1:{port}/v1/music" in out
    assert 'cancelled: 9 s of "slow piano"' in out and "the server stops" in out
    assert listening.fileno() == -1
    assert not [t for t in threading.enumerate() if t.name == "musictune-worker"]
    open_socket("127.0.0.1", port, None).close()


def test_more_than_memory_holds_is_said_before_serving(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise InputError("not enough memory")

    monkeypatch.setattr(engine, "session", full)
    with pytest.raises(InputError, match="not enough memory"):
        run(engine, Limits(seconds=10.0), open_socket("127.0.0.1", 0, None), base="toy")
