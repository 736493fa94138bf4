"""Streams over real sockets: audio while it is made, and clients that go away."""

from __future__ import annotations

import http.client
import io
import json
import math
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
import soundfile
import torch

from musictune.errors import InputError
from musictune.generation import Engine
from musictune.generation.request import Request
from musictune.generation.streaming import stream_clip
from musictune.generation.wav import pcm16, wav_header
from musictune.serving.jobs import State
from musictune.serving.worker import Worker

Start = Callable[..., Worker]
Until = Callable[..., None]
HEAD = 44
PIECE = 16_000  # bytes of half a second


def ask(port: int, seconds: float, seed: int = 0) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    body = json.dumps({"prompt": "slow piano", "seconds": seconds, "seed": seed})
    connection.request("POST", "/v1/music", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 202
    job = json.loads(answer.read())["id"]
    connection.close()
    return job


def listen(port: int, job: str) -> socket.socket:
    """A client of its own: a socket that has asked for the audio."""
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    lines = f"GET /v1/music/{job}/audio HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
    client.sendall(lines.encode())
    return client


def read_all(client: socket.socket) -> bytes:
    parts = []
    while part := client.recv(65_536):
        parts.append(part)
    return b"".join(parts)


def test_audio_comes_in_order_while_it_is_made(
    gated: Any, start: Start, live: Callable[..., int], until: Until
) -> None:
    worker = start(gated)
    port = live(worker)
    job = ask(port, 1.5, seed=3)
    gated.allow(40)  # 37 frames of 75: the first piece and not the second
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", f"/v1/music/{job}/audio")
    answer = connection.getresponse()
    assert answer.status == 200 and answer.headers["content-type"] == "audio/wav"
    assert answer.headers["transfer-encoding"] == "chunked"
    head = answer.read(HEAD)
    assert head == wav_header(16_000, 1, 24_000)
    first = answer.read(2 * 20 * 320)  # 20 frames of the first 25; the rest looks ahead
    found = worker.find(job)
    assert found is not None and found.state is State.playing and 28 <= found.step <= 40
    gated.open()
    rest = answer.read()
    pieces = stream_clip(Engine(gated.model, "float32"), Request("slow piano", 1.5, 3))
    assert first + rest == b"".join(pcm16(piece) for piece in pieces)
    sound, rate = soundfile.read(io.BytesIO(head + first + rest))
    assert (len(sound), rate) == (24_000, 16_000) and sound.std() > 0.001
    until(lambda: found.state is State.done)
    connection.request("GET", f"/v1/music/{job}/audio")  # again, now whole
    assert len(connection.getresponse().read()) == len(head + first + rest)
    connection.close()


def test_a_client_gone_while_streaming_frees_its_place(
    gated: Any, start: Start, live: Callable[..., int], until: Until
) -> None:
    worker = start(gated, batch=1)
    port = live(worker)
    first, second = ask(port, 9.0), ask(port, 0.4)
    client = listen(port, first)
    gated.allow(60)
    heard = b""
    while len(heard) < PIECE:
        heard += client.recv(65_536)
    job = worker.find(first)
    assert job is not None and job.state is State.playing
    # Reset, not closed in order: as when a player is killed.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    until(lambda: job.state is State.cancelled)
    assert "nobody listens" in job.error
    gated.open()
    other = worker.find(second)
    until(lambda: other is not None and other.state is State.done)
    assert job.step < 70 and worker.counts == (0, 0)


def test_a_client_gone_while_waiting_frees_its_place(
    gated: Any, start: Start, live: Callable[..., int], until: Until
) -> None:
    worker = start(gated)
    port = live(worker)
    body = json.dumps({"prompt": "slow piano", "seconds": 5.0})
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    head = (
        f"POST /v1/music?wait=true HTTP/1.1\r\nHost: localhost:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    client.sendall((head + body).encode())
    until(lambda: worker.counts == (1, 0))
    client.shutdown(socket.SHUT_RDWR)
    client.close()
    (job,) = worker._jobs.values()
    until(lambda: job.state is State.cancelled)
    assert "nobody listens" in job.error
    gated.open()
    until(lambda: worker.counts == (0, 0))
    assert job.step < 250 and job.state is State.cancelled
    following = worker.find(ask(port, 0.2))
    until(lambda: following is not None and following.state is State.done)
    assert worker.counts == (0, 0)


def test_a_job_that_fails_half_way_breaks_the_stream_off(
    gated: Any, start: Start, live: Callable[..., int], until: Until
) -> None:
    worker = start(gated)
    port = live(worker)
    session, step = worker._session, worker._session.step

    def broken() -> list[int]:
        done = step()
        if job is not None and job.step > 50 and not job.state.over:
            session.cancel(0)
            raise InputError("scores are not finite")
        return done

    session.step = broken  # type: ignore[method-assign]
    job = None
    name = ask(port, 3.0)
    job = worker.find(name)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", f"/v1/music/{name}/audio")
    gated.allow(40)
    answer = connection.getresponse()
    assert len(answer.read(HEAD)) == HEAD
    gated.open()
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    assert job is not None and job.state is State.failed
    after = worker.find(ask(port, 0.4))
    until(lambda: after is not None and after.state is State.done)


def test_a_job_cancelled_before_it_sounds_has_a_status(
    gated: Any, start: Start, live: Callable[..., int], until: Until
) -> None:
    worker = start(gated)
    port = live(worker)
    job = worker.find(ask(port, 3.0))
    assert job is not None
    client = listen(port, job.id)
    until(lambda: job.listeners == 1)
    worker.cancel(job, "not wanted")
    answer = http.client.HTTPResponse(client)
    answer.begin()
    assert answer.status == 409
    assert "not wanted" in json.loads(answer.read())["detail"]
    client.close()


def test_several_listeners_hear_the_same(
    engine: Engine, start: Start, live: Callable[..., int], until: Until
) -> None:
    worker = start(engine)
    port = live(worker)
    job = ask(port, 4.0)
    clients = [listen(port, job) for _ in range(2)]
    for client in clients:
        client.settimeout(20)
    answers = []
    for client in clients:
        answer = http.client.HTTPResponse(client)
        answer.begin()
        answers.append(answer.read())
        client.close()
    assert len(answers[0]) == HEAD + 2 * 64_000
    assert answers[0] == answers[1]


def test_a_slow_reader_holds_nobody_up(
    engine: Engine, start: Start, live: Callable[..., int], until: Until
) -> None:
    worker = start(engine)
    port = live(worker)
    slow, fast = ask(port, 6.0), ask(port, 1.0)
    client = listen(port, slow)
    job, other = worker.find(slow), worker.find(fast)
    assert job is not None and other is not None
    until(lambda: job.state is State.done and other.state is State.done)
    time.sleep(0.05)
    client.settimeout(20)
    answer = http.client.HTTPResponse(client)
    answer.begin()
    assert len(answer.read()) == HEAD + 2 * 96_000
    client.close()


def test_bad_weights_do_not_end_the_server(
    start: Start, live: Callable[..., int], until: Until
) -> None:
    engine = Engine(_broken(), "float32")
    port = live(start(engine))
    for _ in range(2):
        client = listen(port, ask(port, 0.4))
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert answer.status == 500 and "not finite" in json.loads(answer.read())["detail"]
        client.close()


def _broken() -> Any:
    from musictune.models.musicgen import MusicGen

    model = MusicGen.toy()
    with torch.no_grad():
        model.network.decoder.lm_heads[0].weight[0] = math.nan
    return model
