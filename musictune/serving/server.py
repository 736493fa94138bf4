"""A socket, a worker and an endpoint, until somebody stops them; needs the extra ``web``."""

from __future__ import annotations

import socket
import stat
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from musictune import console
from musictune.errors import InputError
from musictune.generation.engine import Engine
from musictune.serving.app import create_app
from musictune.serving.limits import Limits
from musictune.serving.sockets import open_socket as open_socket
from musictune.serving.worker import Worker

_SHORTEST_TOKEN = 16
_LAST_WORDS = 5  # seconds that open answers have once the server stops
_MORE = 64  # connections beside those of jobs


def read_token(path: Path) -> str:
    """The secret in a file.

    Raises:
        InputError: no regular file, others may read it, or what it holds is no token.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise InputError(f"token file {path} is not a file")
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise InputError(f"token file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"token file {path} must hold ASCII letters and digits") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InputError(f"token file {path} is open to other users; chmod 600 it")
    if len(token) < _SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise InputError(
            f"token file {path} must hold one word of {_SHORTEST_TOKEN} characters or more, such "
            "as `openssl rand -hex 32` prints"
        )
    return token


def run(
    engine: Engine,
    limits: Limits,
    listening: socket.socket,
    *,
    base: str,
    adapters: Sequence[str] = (),
    host: str = "127.0.0.1",
    token: str | None = None,
) -> None:
    """Serve until a signal comes.

    Args:
        engine: what plays.
        limits: what is taken on.
        listening: of :func:`open_socket`; closed in the end.
        base: the name of the model.
        adapters: names that requests may ask for.
        host: what ``listening`` is bound to, as the user gave it.
        token: what clients must bring, if anything.

    Raises:
        InputError: the engine cannot hold that much.
        KeyboardInterrupt: it was stopped by Ctrl-C; everything is closed then.
    """
    worker = Worker(engine, limits)
    app = create_app(worker, base=base, adapters=adapters, host=host, token=token)
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",  # jobs have lines of their own
        access_log=False,
        server_header=False,
        lifespan="off",
        limit_concurrency=limits.batch + limits.waiting + _MORE,
        timeout_graceful_shutdown=_LAST_WORDS,
        h11_max_incomplete_event_size=64 * 1024,
    )
    worker.start()
    name, port = listening.getsockname()[:2]
    place = f"[{name}]" if ":" in name else name
    console.say(f"serving {base} on http://{place}:{port}/v1/music (Ctrl-C stops it)")
    try:
        _Server(config, worker).run(sockets=[listening])
    finally:
        worker.stop()
        worker.join()
        listening.close()


class _Server(uvicorn.Server):
    """Stops the music at once when it is asked to stop; answers that wait for it can then end."""

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self._worker = worker

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does it, which waits for answers."""
        self._worker.stop()
        await super().shutdown(sockets)
