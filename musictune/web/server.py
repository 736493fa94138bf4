"""The listening page on a socket of this machine, until somebody stops it."""

from __future__ import annotations

import ipaddress
import socket
import threading
import webbrowser

import uvicorn
from fastapi import FastAPI

from musictune import console
from musictune.errors import InputError
from musictune.serving import sockets

_LAST_WORDS = 3  # seconds that open answers have once it stops


def open_socket(host: str, port: int) -> socket.socket:
    """Listen on ``host``, which only this machine reaches, and ``port``; 0 takes any free one.

    Raises:
        InputError: an address that others reach or that is none, or a port that cannot be used.
    """
    try:
        own = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        own = False
    if not own:
        raise InputError(
            f"host {host} is not this machine's own address; the page is for this machine alone, "
            "use 127.0.0.1, ::1 or localhost"
        )
    return sockets.open_socket(host, port, None)


def run(app: FastAPI, listening: socket.socket, *, browser: bool = False) -> None:
    """Serve until a signal comes.

    Args:
        app: of :func:`musictune.web.app.create_app`.
        listening: of :func:`open_socket`; closed in the end.
        browser: whether to show the page in the user's browser.

    Raises:
        KeyboardInterrupt: it was stopped by Ctrl-C.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=_LAST_WORDS,
        h11_max_incomplete_event_size=64 * 1024,
    )
    name, port = listening.getsockname()[:2]
    page = f"http://{f'[{name}]' if ':' in name else name}:{port}/"
    console.say(f"listen on {page} (Ctrl-C stops it; votes are kept as they are given)")
    if browser:
        # The socket takes connections already. Some browsers return only when they are closed.
        threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        listening.close()
