"""The endpoint, asked in this process."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import soundfile
import torch
from starlette.testclient import TestClient

from musictune.generation import Engine
from musictune.generation.request import Request
from musictune.generation.wav import wav_bytes
from musictune.models.musicgen import MusicGen
from musictune.serving.app import create_app
from musictune.serving.worker import Worker

Start = Callable[..., Worker]
Until = Callable[..., None]
ASK = {"prompt": "slow piano", "seconds": 0.4, "seed": 3}


@pytest.fixture
def client(engine: Engine, start: Start) -> Iterator[TestClient]:
    app = create_app(start(engine), base="toy", adapters=["box"])
    with TestClient(app, "http://localhost:8765") as client:
        yield client


def over(client: TestClient, job: str, until: Until) -> dict[str, Any]:
    def state() -> dict[str, Any]:
        return client.get(f"/v1/music/{job}").json()

    until(lambda: state()["state"] not in ("waiting", "playing"))
    return state()


def test_a_job_is_made_heard_and_forgotten(
    client: TestClient, engine: Engine, until: Until
) -> None:
    asked = client.post("/v1/music", json=ASK)
    assert asked.status_code == 202
    job = asked.json()["id"]
    assert asked.headers["location"] == f"/v1/music/{job}"
    assert asked.json() | {"state": "", "share": 0} == {
        "id": job,
        "state": "",
        "share": 0,
        "seconds": 0.4,
        "ahead": 0,
        "error": None,
    }
    assert over(client, job, until) | {"id": ""} == {
        "id": "",
        "state": "done",
        "share": 1.0,
        "seconds": 0.4,
        "ahead": 0,
        "error": None,
    }
    heard = client.get(f"/v1/music/{job}/audio")
    assert heard.status_code == 200 and heard.headers["content-type"] == "audio/wav"
    _, clips = engine.rollout(["slow piano"], 0.4, 3)
    assert heard.content == wav_bytes(clips[0])  # what `generate` writes
    assert client.delete(f"/v1/music/{job}").status_code == 204
    for path in ("", "/audio"):
        assert client.get(f"/v1/music/{job}{path}").status_code == 404
    assert client.delete(f"/v1/music/{job}").status_code == 404


@pytest.mark.parametrize(
    "how", [{"params": {"wait": "true"}}, {"headers": {"Accept": "audio/wav"}}]
)
def test_the_music_is_the_answer_for_who_waits(
    client: TestClient, engine: Engine, how: dict
) -> None:
    options = {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "guidance": 2, "adapter": None}
    answer = client.post("/v1/music", json=ASK | options, **how)
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(answer.content)
    sound, rate = soundfile.read(io.BytesIO(answer.content))
    assert rate == 16_000 and len(sound) == 6_400
    plain = client.post("/v1/music", json=ASK, **how)
    assert plain.content != answer.content


def test_every_option_reaches_the_engine(client: TestClient, monkeypatch: Any) -> None:
    asked: list[Request] = []
    monkeypatch.setattr(Worker, "submit", lambda _, request: asked.append(request) or 1 / 0)
    given = {"temperature": 0.5, "top_k": 7, "top_p": 0.25, "guidance": 1.5, "adapter": "box"}
    with pytest.raises(ZeroDivisionError):
        client.post("/v1/music", json=ASK | given)
    (request,) = asked
    assert (request.prompt, request.seconds, request.seed) == ("slow piano", 0.4, 3)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k) == (0.5, 7)
    assert (sampling.top_p, sampling.guidance) == (0.25, 1.5)
    assert request.adapter == "box"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prompt": "x" * 2_001}, "prompt: String should have at most 2000"),
        ({"prompt": None}, "prompt: Input should be a valid string"),
        ({"prompt": "\ud800"}, "prompt: "),
        ({"seconds": 0}, "seconds: Input should be greater than 0"),
        ({"seconds": -1.0}, "seconds: "),
        ({"seconds": 10.5}, "seconds: Input should be less than or equal to 10"),
        ({"seconds": math.nan}, "seconds: "),
        ({"seconds": math.inf}, "seconds: "),
        ({"seconds": "1"}, "seconds: "),
        ({"seed": -1}, "seed: "),
        ({"seed": 0.5}, "seed: "),
        ({"seed": True}, "seed: "),
        ({"temperature": 0}, "temperature: "),
        ({"top_k": -1}, "top_k: "),
        ({"top_p": 1.1}, "top_p: "),
        ({"guidance": 0.5}, "guidance: "),
        ({"adapter": "other"}, "adapter: Input should be 'box'"),
        ({"speed": 1}, "speed: Extra inputs"),
    ],
)
def test_bad_requests_are_one_line(client: TestClient, changed: dict, says: str) -> None:
    body = json.dumps(ASK | changed)  # Python's own, which writes NaN and lone surrogates
    answer = client.post("/v1/music", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert set(answer.json()) == {"detail"}
    detail = answer.json()["detail"]
    assert says in detail and "\n" not in detail and len(detail) < 200


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b"\xff\xfe", "application/json"),
        (json.dumps(ASK).encode(), "text/plain"),  # what a form of another page could send
        (b"prompt=piano&seconds=1", "application/x-www-form-urlencoded"),
    ],
)
def test_what_is_not_json_is_refused(client: TestClient, body: bytes, kind: str) -> None:
    answer = client.post("/v1/music", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 422 and "detail" in answer.json()


def test_sizes_origins_and_hosts_are_checked(client: TestClient) -> None:
    large = client.post("/v1/music", json=ASK | {"prompt": "x" * 40_000})
    assert large.status_code == 413 and "32768 bytes" in large.json()["detail"]
    foreign = client.post("/v1/music", json=ASK, headers={"Origin": "http://evil.example"})
    assert foreign.status_code == 403
    assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 421
    answer = client.get("/v1/models", headers={"Origin": "http://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_full_line_is_429(gated: Engine, start: Start, until: Until) -> None:
    worker = start(gated, batch=1, waiting=1)
    with TestClient(create_app(worker, base="toy"), "http://localhost") as client:
        first = client.post("/v1/music", json=ASK).json()["id"]
        until(lambda: client.get(f"/v1/music/{first}").json()["state"] == "playing")
        second = client.post("/v1/music", json=ASK).json()
        assert second["state"] == "waiting"
        full = client.post("/v1/music", json=ASK)
        assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
        health = client.get("/v1/health").json()
        assert health == {"playing": 1, "waiting": 1}
        gated.open()


def test_what_failed_says_why(start: Start, until: Until) -> None:
    model = MusicGen.toy()
    with torch.no_grad():
        model.network.decoder.lm_heads[0].weight[0] = math.nan
    worker = start(Engine(model, "float32"))
    with TestClient(create_app(worker, base="toy"), "http://localhost") as client:
        waited = client.post("/v1/music", json=ASK, params={"wait": "true"})
        assert waited.status_code == 500 and "not finite" in waited.json()["detail"]
        job = client.post("/v1/music", json=ASK).json()["id"]
        state = over(client, job, until)
        assert state["state"] == "failed" and "not finite" in state["error"]
        heard = client.get(f"/v1/music/{job}/audio")
        assert heard.status_code == 500 and "not finite" in heard.json()["detail"]
        assert client.get("/v1/health").status_code == 200


def test_a_worker_that_plays_no_more_is_told(engine: Engine, start: Start) -> None:
    worker = start(engine)
    worker.stop()
    with TestClient(create_app(worker, base="toy"), "http://localhost") as client:
        assert client.get("/v1/health").status_code == 503
        assert client.post("/v1/music", json=ASK).status_code == 503


def test_the_model_and_the_limits_are_told(client: TestClient) -> None:
    assert client.get("/v1/models").json() == {
        "base": "toy",
        "adapters": ["box"],
        "precision": "float32",
        "sample_rate": 16_000,
        "channels": 1,
        "limits": {
            "seconds": 10.0,
            "prompt": 2_000,
            "batch": 2,
            "waiting": 2,
            "kept": 256,
            "minutes": 30.0,
        },
    }


def test_a_token_guards_all_but_health(engine: Engine, start: Start) -> None:
    token = "0123456789abcdef"
    app = create_app(start(engine), base="toy", token=token)
    with TestClient(app, "http://localhost") as client:
        assert client.get("/v1/models").status_code == 401
        assert client.post("/v1/music", json=ASK).status_code == 401
        assert client.get("/v1/openapi.json").status_code == 401
        assert client.get("/v1/health").status_code == 200
        client.headers["Authorization"] = f"Bearer {token}"
        assert client.get("/v1/models").status_code == 200
        schema = client.get("/v1/openapi.json").json()
    assert schema["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert schema["paths"]["/v1/music"]["post"]["security"]
    assert "security" not in schema["paths"]["/v1/health"]["get"]
