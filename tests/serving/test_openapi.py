"""What the endpoint says about itself is what it does: schemathesis, in process and on a socket."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from musictune.generation import Engine
from musictune.models.musicgen import MusicGen
from musictune.serving.app import create_app
from musictune.serving.worker import Worker

TOKEN = "0123456789abcdef"


def settings(examples: int, stateful: bool, url: str, **more: Any) -> SchemathesisConfig:
    """All checks; the same requests each time."""
    return SchemathesisConfig.from_dict(
        {
            "base-url": url,
            "generation": {"max-examples": examples, "deterministic": True},
            "phases": {"stateful": {"enabled": stateful}},
        }
        | more
    )


def findings(schema: Any) -> tuple[list[str], Counter[str]]:
    """What is wrong, and how often each check was made."""
    wrong, made = [], Counter[str]()
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            wrong.append(str(event))
        if not isinstance(event, events.ScenarioFinished):
            continue
        for case, checks in event.recorder.checks.items():
            for check in checks:
                made[check.name] += 1
                if check.failure_info is not None:
                    request = event.recorder.cases[case].value.as_curl_command()
                    wrong.append(f"{check.name}: {check.failure_info.failure} {request}")
    return wrong, made


def checked(worker: Worker, config: Callable[..., SchemathesisConfig], token: str | None) -> Any:
    """The findings about an application over ``worker``, asked in this process."""
    app = create_app(worker, base="toy", token=token)
    bearer = {"Authorization": f"Bearer {token}"} if token else {}
    schema = schemathesis.openapi.from_asgi(
        "/v1/openapi.json",
        app,
        config=config(url="http://localhost", headers=bearer),
        headers={"Host": "localhost"} | bearer,
    )
    return findings(schema)


def test_the_application_keeps_its_word(engine: Engine, start: Callable[..., Worker]) -> None:
    worker = start(engine, seconds=0.1, waiting=999)
    wrong, made = checked(worker, functools.partial(settings, 1, False), TOKEN)
    assert wrong == []
    load_all_checks()
    assert set(made) == {check.__name__ for check in CHECKS.get_all()}
    assert made["status_code_conformance"] > 50


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, TOKEN])
def test_the_application_keeps_its_word_for_long(
    engine: Engine, start: Callable[..., Worker], token: str | None
) -> None:
    worker = start(engine, seconds=0.5, waiting=9_999)
    wrong, made = checked(worker, functools.partial(settings, 60, True), token)
    assert wrong == []
    assert made["use_after_free"] > 300


@pytest.mark.slow
def test_a_real_server_keeps_its_word_and_stops_cleanly(tmp_path: Path) -> None:
    MusicGen.toy().save(tmp_path / "toy")
    command = [sys.executable, "-m", "musictune", "serve", "--base", str(tmp_path / "toy")]
    command += ["--port", "0", "--longest", "0.5", "--waiting", "9999", "--precision", "float32"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        command, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes
    ) as server:  # type: ignore[call-overload]
        try:
            said = server.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", said)
            assert found, said
            url = f"{found[0]}/v1/openapi.json"
            config = settings(15, True, found[0])
            wrong, made = findings(schemathesis.openapi.from_url(url, config=config))
            assert wrong == []
            assert made["response_schema_conformance"] > 100
        finally:
            server.send_signal(signal.SIGINT)
            out, error = server.communicate(timeout=30)
    assert server.returncode == 130
    assert error.splitlines()[-1] == "musictune: error: interrupted"
    assert "Traceback" not in error
    assert any(re.match(r"job \w+ done: 0\.\d+ s of", line) for line in out.splitlines())


def test_every_answer_is_described(engine: Engine, start: Callable[..., Worker]) -> None:
    schema = create_app(start(engine), base="toy", adapters=["box"], token=TOKEN).openapi()
    operations = {
        f"{method} {path}": operation
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    }
    assert set(operations) == {
        "post /v1/music",
        "get /v1/music/{job_id}",
        "get /v1/music/{job_id}/audio",
        "delete /v1/music/{job_id}",
        "get /v1/health",
        "get /v1/models",
    }
    for name, operation in operations.items():
        assert operation["description"] and operation["operationId"]
        described = operation["responses"]
        assert {"400", "403", "413", "421", "422"} <= set(described)
        assert ("401" in described) == (name != "get /v1/health")
        assert all(answer["description"] for answer in described.values())
    made = operations["post /v1/music"]["responses"]
    assert set(made) >= {"200", "202", "409", "429", "500", "503"}
    assert set(made["200"]["content"]) == {"audio/wav"}
    assert "Location" in made["202"]["headers"] and "Retry-After" in made["429"]["headers"]
    music = schema["components"]["schemas"]["Music"]["properties"]
    assert music["prompt"]["maxLength"] == 2_000
    assert music["seconds"]["maximum"] == 10.0 and music["seconds"]["exclusiveMinimum"] == 0
    assert music["adapter"]["anyOf"][0] == {"const": "box", "type": "string"}
