"""Who may ask: hosts, origins, tokens and sizes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from musictune.serving.guard import Guard, Rules

TOKEN = "0123456789abcdef"


def ask(
    rules: Rules,
    headers: dict[str, str],
    method: str = "GET",
    path: str = "/v1/music",
    body: list[bytes] | None = None,
) -> tuple[int, dict[str, Any]]:
    """The status and answer that a request gets; the application itself says 200."""
    chunks, sent = list(body or [b""]), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message: Any) -> None:
        sent.append(message)

    lines = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": lines}
    asyncio.run(Guard(app, rules)(scope, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"], json.loads(sent[1]["body"]) | dict(sent[0]["headers"])


@pytest.mark.parametrize(
    ("bound", "host", "known"),
    [
        ("127.0.0.1", "127.0.0.1:8765", True),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "LOCALHOST.:8765", True),
        ("::1", "[::1]:8765", True),
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "evil.example:8765", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "localhost@evil.example", False),
        ("127.0.0.1", "192.168.0.7", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "[::1", False),
        ("music.lan", "music.lan:80", True),
        ("music.lan", "other.lan", False),
        ("0.0.0.0", "192.168.0.7:8765", True),
        ("::", "[fe80::1]:8765", True),
        ("0.0.0.0", "evil.example", False),
    ],
)
def test_only_its_own_names_are_answered(bound: str, host: str, known: bool) -> None:
    status, said = ask(Rules(bound, None, 100), {"Host": host})
    assert status == (200 if known else 421)
    assert known or "host name" in said["detail"]


@pytest.mark.parametrize(
    ("method", "origin", "status"),
    [
        ("POST", None, 200),
        ("POST", "http://localhost:8765", 200),
        ("POST", "http://localhost:3000", 403),
        ("POST", "https://evil.example", 403),
        ("POST", "null", 403),
        ("POST", "http://[", 403),
        ("DELETE", "https://evil.example", 403),
        ("GET", "https://evil.example", 200),  # and without CORS the page cannot read it
    ],
)
def test_other_origins_may_not_write(method: str, origin: str | None, status: int) -> None:
    headers = {"Host": "localhost:8765"} | ({"Origin": origin} if origin else {})
    assert ask(Rules("127.0.0.1", None, 100), headers, method)[0] == status


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Basic {TOKEN}", 401),
        ("Bearer", 401),
        ("Bearer \xe9", 401),
        (TOKEN, 401),
        (None, 401),
    ],
)
def test_a_token_is_asked_for(given: str | None, status: int) -> None:
    rules = Rules("127.0.0.1", TOKEN, 100, frozenset({"/v1/health"}))
    headers = {"Host": "localhost"} | ({"Authorization": given} if given else {})
    got, said = ask(rules, headers)
    assert got == status
    assert got == 200 or said[b"www-authenticate"] == b"Bearer"
    assert ask(rules, headers, path="/v1/health")[0] == 200
    assert ask(rules, {"Host": "evil.example"}, path="/v1/health")[0] == 421


@pytest.mark.parametrize(
    ("body", "length", "status"),
    [
        ([b"x" * 100], "100", 200),
        ([b"x" * 101], "101", 413),
        ([b"x" * 60, b"x" * 60], None, 413),  # chunked: found out while it comes
        ([b"x" * 60, b"x" * 60], "5", 413),
        ([b"x"], "99999999999", 413),
        ([b"x"], "many", 200),  # the server before us refuses that
    ],
)
def test_large_requests_are_not_read(body: list[bytes], length: str | None, status: int) -> None:
    headers = {"Host": "localhost"} | ({"Content-Length": length} if length else {})
    assert ask(Rules("127.0.0.1", None, 100), headers, "POST", body=body)[0] == status
