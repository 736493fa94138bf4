"""The worker: jobs join and leave the running batch, and nothing that one does ends the others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest
import torch

from musictune.errors import InputError
from musictune.generation import Engine
from musictune.generation.request import Request
from musictune.models.musicgen import MusicGen
from musictune.serving.jobs import Job, LineFullError, State, StoppedError, shortened
from musictune.serving.limits import Limits
from musictune.serving.worker import Worker

Start = Callable[..., Worker]
Until = Callable[..., None]


def clip(seconds: float = 0.4, seed: int = 0, prompt: str = "slow piano") -> Request:
    return Request(prompt, seconds, seed)


def states(*jobs: Job) -> list[str]:
    return [str(job.state) for job in jobs]


def test_jobs_make_what_the_engine_makes(engine: Engine, start: Start, until: Until) -> None:
    worker = start(engine)
    asked = [clip(0.2, 1), clip(0.5, 2, "fast drums"), clip(0.3, 3, ""), clip(0.2, 4)]
    jobs = [worker.submit(request) for request in asked[:2]]
    until(lambda: not worker.counts[1])
    jobs += [worker.submit(request) for request in asked[2:]]
    until(lambda: all(job.state is State.done for job in jobs))
    expected = dict(engine.play(asked))
    for index, job in enumerate(jobs):
        assert job.codes is not None and torch.equal(job.codes, expected[index])
        assert job.share == 1 and job.added <= job.started <= job.ended
    assert worker.counts == (0, 0)


def test_a_clip_joins_the_batch_that_plays(gated: Engine, start: Start, until: Until) -> None:
    worker = start(gated)
    first = worker.submit(clip(1.0))
    gated.allow(10)
    until(lambda: first.step == 10)
    second, third, fourth = (worker.submit(clip(0.4, seed)) for seed in (1, 2, 3))
    gated.allow(1)  # the step that waits already goes without them
    gated.allow(10)
    until(lambda: first.step == 21)
    assert states(first, second, third, fourth) == ["playing", "playing", "waiting", "waiting"]
    assert second.step == 10 and worker.ahead(third) == 0 and worker.ahead(fourth) == 1
    assert first.share == pytest.approx(21 / 53)
    gated.open()
    until(lambda: all(job.state is State.done for job in (first, second, third, fourth)))
    alone = dict(Engine(gated.model, "float32").play([clip(0.4, 1)]))
    assert torch.equal(second.codes, alone[0])


def test_a_full_line_says_when_to_come_back(gated: Engine, start: Start, until: Until) -> None:
    worker = start(gated, batch=1, waiting=1)
    first = worker.submit(clip())
    until(lambda: first.state is State.playing)
    second = worker.submit(clip())
    with pytest.raises(LineFullError) as full:
        worker.submit(clip())
    assert 1 <= full.value.seconds <= 600
    worker.cancel(second, "not wanted")
    assert states(second) == ["cancelled"]
    third = worker.submit(clip())
    gated.open()
    until(lambda: third.state is State.done)


def test_a_cancelled_clip_frees_its_place(gated: Engine, start: Start, until: Until) -> None:
    worker = start(gated, batch=1)
    first, second = worker.submit(clip(9.0)), worker.submit(clip())
    gated.allow(5)
    until(lambda: first.step == 5)
    worker.cancel(first, "not wanted", forget=True)
    assert worker.find(first.id) is None and first.state is State.cancelled
    gated.open()
    until(lambda: second.state is State.done)
    assert first.step <= 6 and first.error == "not wanted"
    worker.cancel(second, "too late")
    assert second.state is State.done


def test_the_last_listener_takes_the_job_along(gated: Engine, start: Start, until: Until) -> None:
    worker = start(gated)
    job = worker.submit(clip(1.0))
    heard: list[int] = []
    with worker.listening(job, lambda: None):
        with worker.listening(job, lambda: heard.append(job.step)):
            gated.allow(20)
            until(lambda: job.step == 20 and job.codes is not None)
            # 20 steps are 17 frames with all codebooks; looked at every tenth of a second.
            until(lambda: job.codes.shape == (4, 17))
            assert heard == [0, 5, 10, 15, 20] or heard == [5, 10, 15, 20]
        assert job.state is State.playing
    assert job.state is State.cancelled


def test_scores_that_are_no_numbers_fail_the_job_alone(start: Start, until: Until) -> None:
    model = MusicGen.toy()
    with torch.no_grad():
        model.network.decoder.lm_heads[0].weight[0] = math.nan
    worker = start(Engine(model, "float32"))
    for _ in range(2):  # and the server lives on
        job = worker.submit(clip())
        until(lambda job=job: job.state is State.failed)
        assert "not finite" in job.error and "\n" not in job.error
        assert worker.alive


def test_only_what_the_session_lost_has_failed(gated: Engine, start: Start, until: Until) -> None:
    worker = start(gated)
    session, step = worker._session, worker._session.step

    def broken() -> list[int]:
        done = step()
        if first.step == 3 and not first.state.over:
            session.cancel(0)
            raise InputError("clip 0 is lost")
        return done

    session.step = broken  # type: ignore[method-assign]
    first, second = worker.submit(clip()), worker.submit(clip())
    gated.open()
    until(lambda: second.state is State.done and first.state.over)
    assert first.state is State.failed and first.error == "clip 0 is lost"


def test_an_error_that_would_come_again_fails_what_plays(
    engine: Engine, start: Start, until: Until
) -> None:
    worker = start(engine)

    def broken() -> list[int]:
        raise InputError("no way on")

    worker._session.step = broken  # type: ignore[method-assign]
    job = worker.submit(clip())
    until(lambda: job.state.over)
    assert (job.state, job.error) == (State.failed, "no way on")


def test_an_unforeseen_error_ends_what_plays_but_not_the_server(
    engine: Engine, start: Start, until: Until, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = start(engine)

    def broken() -> list[int]:
        raise RuntimeError("out of\nluck")

    worker._session.step = broken  # type: ignore[method-assign]
    job = worker.submit(clip())
    until(lambda: job.state is State.failed)
    assert job.error == "unforeseen RuntimeError: out of luck"
    again = worker.submit(clip())
    until(lambda: again.state is State.done)
    assert "out of luck" in capsys.readouterr().err


def test_a_session_that_cannot_be_opened_again_ends_the_worker(
    engine: Engine, start: Start, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start(engine)

    def broken(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("threading.excepthook", lambda _: None)
    monkeypatch.setattr(engine, "session", broken)
    monkeypatch.setattr(worker._session, "step", broken)
    job = worker.submit(clip())
    until(lambda: not worker.alive)
    assert job.state is State.failed
    with pytest.raises(StoppedError, match="the server stops"):
        worker.submit(clip())


def test_stopping_cancels_everything(gated: Engine, start: Start, until: Until) -> None:
    worker = start(gated, batch=1)
    first, second = worker.submit(clip()), worker.submit(clip())
    until(lambda: first.state is State.playing)
    worker.stop()
    assert states(first, second) == ["cancelled", "cancelled"]
    assert first.error == "the server stops"
    gated.open()
    worker.join()
    assert not worker.alive


def test_jobs_that_are_over_are_forgotten(engine: Engine, start: Start, until: Until) -> None:
    worker = start(engine, kept=2, waiting=9)
    jobs = [worker.submit(clip(0.1, seed)) for seed in range(4)]
    until(lambda: all(job.state is State.done for job in jobs))
    ended = sorted(jobs, key=lambda job: job.ended)
    assert [worker.find(job.id) is not None for job in ended] == [False, False, True, True]
    short = start(engine, minutes=0.2 / 60)
    job = short.submit(clip(0.1))
    until(lambda: job.state is State.done)
    assert short.find(job.id) is job
    time.sleep(0.25)
    assert short.find(job.id) is None


def test_bad_requests_are_refused_before_they_wait(engine: Engine, start: Start) -> None:
    worker = start(engine, seconds=2.0)
    for seconds, says in ((0.0, "0 seconds"), (2.5, "makes up to 2"), (11.0, "up to 10")):
        with pytest.raises(InputError, match=says):
            worker.submit(clip(seconds))
    assert worker.counts == (0, 0)


def test_a_request_that_the_session_refuses_fails_alone(
    engine: Engine, start: Start, until: Until
) -> None:
    worker = start(engine)
    refused = worker._session.add

    def add(request: Request) -> int:
        if request.prompt == "bad":
            raise InputError("not this one")
        return refused(request)

    worker._session.add = add  # type: ignore[method-assign]
    bad, good = worker.submit(clip(prompt="bad")), worker.submit(clip())
    until(lambda: bad.state.over and good.state.over)
    assert (bad.state, bad.error, good.state) == (State.failed, "not this one", State.done)


def test_the_log_has_a_line_for_each_job_and_no_whole_prompts(
    engine: Engine, start: Start, until: Until, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = start(engine)
    secret = "piano \x1b[2J and\nnewlines " + "x" * 20 + "THE SECRET END"
    jobs = [worker.submit(clip(0.1, prompt=secret)), worker.submit(clip(0.1))]
    until(lambda: all(job.state is State.done for job in jobs))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(f"job {job.id} done: 0.1 s of" in "".join(lines) for job in jobs)
    assert "SECRET" not in "".join(lines) and "\x1b" not in "".join(lines)
    assert shortened("a" * 40) == "a" * 40 and shortened("a" * 41) == "a" * 40 + "..."


@pytest.mark.parametrize(
    ("limits", "says"),
    [({"batch": 0}, "batch 0"), ({"waiting": 0}, "waiting 0"), ({"seconds": 0.0}, "seconds 0")],
)
def test_limits_that_leave_nothing_are_refused(limits: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Limits(**({"seconds": 1.0} | limits))
