"""``musictune serve`` from the command line."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from musictune import serving
from musictune.__main__ import main
from musictune.data.concepts import Concept
from musictune.methods import save_adapter
from musictune.methods.concept_tokens import ConceptTokens
from musictune.models.musicgen import MusicGen
from musictune.serving import server


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "toy"
    MusicGen.toy().save(folder)
    return folder


@pytest.fixture(scope="module")
def run_folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose word sounds unlike anything."""
    folder = tmp_path_factory.mktemp("run")
    model = MusicGen.load(base)
    method = ConceptTokens([Concept("zorblax", "piano")])
    method.attach(model)
    with torch.no_grad():
        model.text_encoder.get_input_embeddings().rows.mul_(-30)
    save_adapter(model, method, folder / "adapter")
    return folder


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["serve", *map(str, arguments)])
    return int(stop.value.code or 0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake that is not found must not serve for ever."""

    def served(*_: object, **__: object) -> None:
        raise AssertionError("it was served")

    monkeypatch.setattr(server, "run", served)


def test_serves_until_ctrl_c(
    base: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    answers: list[tuple[int, bytes]] = []

    def ask(method: str, path: str, body: str = "") -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answers.append((answer.status, answer.read()))

    def client() -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                ask("GET", "/v1/models")
                break
            except OSError:
                time.sleep(0.05)
        for adapter in (None, "box", None):
            wanted = {"prompt": "slow <zorblax>", "seconds": 0.4, "adapter": adapter}
            ask("POST", "/v1/music?wait=true", json.dumps(wanted))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=client, daemon=True).start()
    options = ["--port", port, "--precision", "float32", "--batch", 3, "--longest", 5]
    adapter = ["--adapter", f"box={run_folder}=0.9"]
    assert run("--base", base, *options, *adapter) == 130
    assert [status for status, _ in answers] == [200] * 4
    told, sound, tuned, again = (body for _, body in answers)
    assert sound == again != tuned
    assert json.loads(told)["adapters"] == ["box"]
    assert json.loads(told)["limits"]["seconds"] == 5.0
    assert json.loads(told)["limits"]["batch"] == 3
    assert sound[:4] == b"RIFF" and len(sound) == 44 + 2 * 6_400
    out, error = capsys.readouterr()
    assert f"http://127.0.0.1:{port}/v1/music" in out and re.search(r"job \w+ done", out)
    assert error.strip() == "musictune: error: interrupted"


@pytest.mark.usefixtures("refused")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--base", "nonsense"], "unknown base"),
        (["--device", "toaster"], "unknown device"),
        (["--precision", "int3"], "unknown precision int3"),
        (["--batch", "0"], "batch 0"),
        (["--waiting", "0"], "waiting 0"),
        (["--longest", "0"], "seconds 0"),
        (["--port", "70000"], "70000"),
        (["--host", "0.0.0.0"], "--token-file"),
        (["--token-file", "no/such/file"], "token file no/such/file"),
        (["--adapter", "runs/box"], "not NAME=RUN"),
        (["--adapter", "=runs/box"], "not NAME=RUN"),
        (["--adapter", "box=no/such/run"], "adapter no/such/run does not exist"),
    ],
)
def test_bad_input_is_one_line(
    base: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    own = [] if "--base" in arguments else ["--base", base]
    port = [] if "--port" in arguments else ["--port", 0]
    assert run(*arguments, *own, *port) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and error.startswith("musictune: error: ") and "\n" not in error


@pytest.mark.usefixtures("refused")
def test_a_port_that_is_taken_is_one_line(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run("--base", base, "--port", port) == 2
    error = capsys.readouterr().err.strip()
    assert f"port {port} on 127.0.0.1 cannot be used" in error and "\n" not in error


def test_without_the_extra_it_says_what_to_install(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "musictune.serving.server")
    monkeypatch.delattr(serving, "server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run("--base", base, "--port", 0) == 2
    assert "pip install 'musictune[web]'" in capsys.readouterr().err
