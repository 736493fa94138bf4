"""Pairs of short clips, a store over them, the page in this process, and a real browser."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from starlette.testclient import TestClient

from musictune.audio import Clip, write
from musictune.data.preferences import write_pairs
from musictune.data.vote_store import VoteStore
from musictune.data.vote_types import Pair, audio_digest, pair_id
from musictune.web.app import create_app
from musictune.web.server import open_socket

RATE = 16_000
SYSTEMS = ("hushhush", "clandestine")
URL = "http://127.0.0.1:8766"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


def tone(seconds: float, hertz: float, size: float) -> Clip:
    time = torch.arange(round(seconds * RATE)) / RATE
    return Clip(size * torch.sin(2 * math.pi * hertz * time)[None], RATE)


@pytest.fixture
def make_pairs(tmp_path: Path) -> Callable[..., list[Pair]]:
    """Writes a folder of pairs; the second system is the louder one."""

    def make(count: int = 3, seconds: float = 1.0, folder: Path | None = None) -> list[Pair]:
        place = folder or tmp_path / "pairs"
        place.mkdir(exist_ok=True)
        pairs = []
        for i in range(count):
            paths = [place / f"{system}-{i}.wav" for system in SYSTEMS]
            for side, path in enumerate(paths):
                write(tone(seconds, 220 * (1 + i) * (1 + side), 0.02 + 0.4 * side), path)
            prompt = f"tune number {i}"
            name = pair_id(prompt, *map(audio_digest, paths))
            pairs.append(Pair(name, prompt, *paths, *SYSTEMS))
        write_pairs(pairs, place)
        return pairs

    return make


@pytest.fixture
def pairs(make_pairs: Callable[..., list[Pair]]) -> list[Pair]:
    return make_pairs()


@pytest.fixture
def store(tmp_path: Path, pairs: list[Pair]) -> Iterator[VoteStore]:
    with VoteStore(tmp_path / "votes.db") as store:
        store.add_pairs(pairs)
        yield store


@pytest.fixture
def client(store: VoteStore) -> Iterator[TestClient]:
    with TestClient(create_app(store), URL) as client:
        yield client


@pytest.fixture
def live() -> Iterator[Callable[..., str]]:
    """Real servers on sockets; the call gives the address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def begin(store: VoteStore, **options: Any) -> str:
        config = uvicorn.Config(
            create_app(store, **options), log_config=None, log_level="critical", lifespan="off"
        )
        server = uvicorn.Server(config)
        listening = open_socket("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        running.append((server, thread))
        end = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.005)
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield begin
    for server, thread in running:
        server.force_exit = server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a window or a network."""
    if not BROWSER:
        pytest.skip("no chromium; Debian has it as `chromium`")
    driver = pytest.importorskip("playwright.sync_api")
    with driver.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Pages, each of a browser of its own; in the end none may have complained or gone abroad."""
    opened: list[tuple[Any, str, list[str], list[str]]] = []

    def begin(url: str, rater: str = "", **options: Any) -> Any:
        page = browser.new_context(**options).new_page()
        page.set_default_timeout(20_000)
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        opened.append((page, url, said, asked))
        page.goto(url)
        if rater:
            page.get_by_label("Your name").fill(rater)
            page.keyboard.press("Enter")
        page.said = said
        return page

    yield begin
    for page, url, said, asked in opened:
        page.context.close()
        assert [line for line in said if "Failed to load resource" not in line] == []
        assert asked
        assert [each for each in asked if not each.startswith(f"{url}/")] == []
