"""Who may ask: checks of every request before anything reads it.

A page in the user's own browser can reach a server on the same machine. It cannot set ``Host`` or
leave out ``Origin``, so a name that was pointed at this address (DNS rebinding) and writes from
other pages are told apart by these two.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_READS = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Rules:
    """What a request has to fulfil.

    Attributes:
        host: the address or name that the server is bound to.
        token: what ``Authorization: Bearer`` must bring; None asks for nothing.
        body: bytes that a request may have.
        open: paths that need no token.
    """

    host: str
    token: str | None
    body: int
    open: frozenset[str] = frozenset()

    def knows(self, host: str) -> bool:
        """Whether a ``Host`` header, port and all, names this server."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name in _LOOPBACK or name == self.host.lower():
            return True
        address = _address(self.host)
        if address is None or not address.is_unspecified:
            return False
        # Bound to all addresses: rebinding needs a name, so any address will do.
        return _address(name) is not None or name == socket.gethostname().lower()


class Guard:
    """ASGI middleware that answers for the application what it should not see.

    Args:
        app: what to guard.
        rules: see :class:`Rules`.
    """

    def __init__(self, app: App, rules: Rules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Refuse with 401, 403, 413 or 421, or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        refused = self._refusal(scope["method"], scope["path"], headers)
        if refused:
            await answer(send, *refused)
            return
        body = _Body(receive, self._rules.body)
        if body.declared(headers) > self._rules.body:
            await answer(send, 413, self._too_large)
            return
        sent = _Sent(send)
        try:
            await self._app(scope, body.receive, sent.send)
        except _TooLargeError:
            if not sent.begun:
                await answer(send, 413, self._too_large)

    @property
    def _too_large(self) -> str:
        return f"the request has more than {self._rules.body} bytes"

    def _refusal(
        self, method: str, path: str, headers: dict[str, bytes]
    ) -> tuple[int, str] | tuple[int, str, dict[str, str]] | None:
        rules = self._rules
        host = headers.get("host", b"").decode("latin-1")
        if not rules.knows(host):
            return 421, "this server does not go by that host name"
        origin = headers.get("origin")
        if origin is not None and method not in _READS and not _same(origin, host):
            return 403, "pages of other origins may not write here"
        if rules.token is None or path in rules.open:
            return None
        kind, _, given = headers.get("authorization", b"").partition(b" ")
        right = hmac.compare_digest(given.strip(), rules.token.encode())
        if kind.lower() == b"bearer" and right:
            return None
        return 401, "a token is needed: Authorization: Bearer ...", {"www-authenticate": "Bearer"}


async def answer(
    send: Send, status: int, detail: str, headers: dict[str, str] | None = None
) -> None:
    """Send an error as all of ours are: ``{"detail": "one line"}``."""
    body = json.dumps({"detail": detail}).encode()
    lines = {"content-type": "application/json", "content-length": str(len(body))} | (headers or {})
    encoded = [(name.encode(), value.encode()) for name, value in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


class _TooLargeError(Exception):
    """More bytes came than were allowed."""


class _Body:
    """Counts the bytes of a request, whatever it says about itself."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._left = receive, limit

    @staticmethod
    def declared(headers: dict[str, bytes]) -> int:
        """What ``Content-Length`` says, 0 if nothing."""
        length = headers.get("content-length", b"")
        return int(length) if length.isdigit() else 0

    async def receive(self) -> Message:
        """The next message.

        Raises:
            _TooLargeError: with it the request is too large.
        """
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise _TooLargeError
        return message


class _Sent:
    """Notes whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send, self.begun = send, False

    async def send(self, message: Message) -> None:
        """Pass a message on."""
        self.begun = True
        await self._send(message)


def _same(origin: bytes, host: str) -> bool:
    try:
        return urlsplit(origin.decode("latin-1")).netloc.lower() == host.lower()
    except ValueError:
        return False


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
