"""Toy engines, workers and servers, all closed in the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from musictune.generation import Engine
from musictune.generation.session import Session
from musictune.models.musicgen import MusicGen
from musictune.serving.app import create_app
from musictune.serving.limits import Limits
from musictune.serving.server import open_socket
from musictune.serving.worker import Worker

BATCH, WAITING, SECONDS = 2, 2, 10.0


class GatedEngine(Engine):
    """Its sessions take a step only when the test lets them; an opened gate lets all through."""

    def __init__(self, model: MusicGen) -> None:
        super().__init__(model, "float32")
        self._allowed = threading.Semaphore(0)
        self._open = False

    def allow(self, steps: int) -> None:
        self._allowed.release(steps)

    def open(self) -> None:
        self._open = True
        self._allowed.release()

    def session(self, batch: int = 8, longest: float | None = None, guided: bool = True) -> Session:
        session = super().session(batch, longest, guided)
        step = session.step

        def gated() -> list[int]:
            if not self._open:
                self._allowed.acquire()
            return step()

        session.step = gated  # type: ignore[method-assign]
        return session


@pytest.fixture(scope="session")
def toy() -> MusicGen:
    return MusicGen.toy()


@pytest.fixture
def gated(toy: MusicGen) -> Iterator[GatedEngine]:
    engine = GatedEngine(toy)
    yield engine
    engine.open()


@pytest.fixture
def engine(toy: MusicGen) -> Engine:
    return Engine(toy, "float32")


@pytest.fixture
def start() -> Iterator[Callable[..., Worker]]:
    """Workers that run until the test ends."""
    workers: list[Worker] = []

    def begin(engine: Engine, **limits: Any) -> Worker:
        chosen = {"seconds": SECONDS, "batch": BATCH, "waiting": WAITING} | limits
        workers.append(Worker(engine, Limits(**chosen)))
        workers[-1].start()
        return workers[-1]

    yield begin
    for worker in workers:
        worker.stop()
        if isinstance(worker.engine, GatedEngine):
            worker.engine.open()
        worker.join()


@pytest.fixture
def live() -> Iterator[Callable[..., int]]:
    """Real servers on sockets; the call gives the port."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def begin(worker: Worker, **options: Any) -> int:
        app = create_app(worker, base="toy", **options)
        config = uvicorn.Config(app, log_config=None, log_level="critical", lifespan="off")
        server = uvicorn.Server(config)
        listening = open_socket("127.0.0.1", 0, None)
        port = listening.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        running.append((server, thread))
        until(lambda: server.started)
        return port

    yield begin
    for server, thread in running:
        server.force_exit = server.should_exit = True
        thread.join()


def until(met: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., None]:
    return until
