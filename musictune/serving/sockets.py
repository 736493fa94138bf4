"""Addresses to listen on, without what is then served."""

from __future__ import annotations

import ipaddress
import socket

from musictune.errors import InputError

_PORTS = 65_535


def open_socket(host: str, port: int, token: str | None) -> socket.socket:
    """Listen on ``host`` and ``port``; 0 takes any free one.

    Raises:
        InputError: an address that is not this machine's, a port that is taken or not allowed, or
            one that others can reach without a token.
    """
    if not 0 <= port <= _PORTS:  # the system would take the rest of a division
        raise InputError(f"port {port} is not between 0 and {_PORTS}; choose another --port")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(f"host {host} with port {port} is no address; use 127.0.0.1") from error
    family, kind, protocol, _, address = found[0]
    if token is None and not ipaddress.ip_address(address[0]).is_loopback:
        raise InputError(
            f"host {host} can be reached from other machines; give --token-file with a secret, or "
            "use 127.0.0.1"
        )
    listening = socket.socket(family, kind, protocol)
    try:
        # Without it a restart has to wait until connections of before are forgotten.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        # uvicorn listens only once the model is there; the port is ours from here on.
        listening.listen(128)
    except OSError as error:
        listening.close()
        reason = error.strerror or str(error)
        raise InputError(
            f"port {port} on {host} cannot be used: {reason}; choose another --port"
        ) from error
    return listening
